"""The recipe's `model` section of multi-source attention fusion."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from finetune.families.fusion.configuration import (
    Arrangement,
    AttVariant,
    AuxLoss,
    EncoderMask,
    Inputs,
    LinearInit,
    Method,
    WeightInit,
    WeightNorm,
)
from pretrain.recipe import Section


class LossWeights(Section):
    """α, β and γ of Eq. 1; the released code's values."""

    persona: float = Field(default=0.5, ge=0)
    """Weight of the encoder's own loss on the persona."""
    history: float = Field(default=0.5, ge=0)
    """The same on the history."""
    reply: float = Field(default=2.0, gt=0)
    """Weight of the reply's loss."""


class FusionSettings(Section):
    """The `model` section. Fields of the same name in `FusionConfig` say more."""

    config: dict[str, Any] = Field(default_factory=dict)
    """Changes to the backbone's configuration; for `scratch` the shape of a MemBART, or with
    `model_type: gpt2` of a GPT-2."""
    inputs: Inputs = "sources"
    """`sources`: persona and history apart; `single`: one sequence, the paper's single-input baselines."""
    fusion: Method = "linear"
    """How a decoder layer merges what it found in its sources; `none` where there is one sequence."""
    weight_norm: WeightNorm = "softmax"
    """Of `sw` and `dw`: by a softmax, by the sum of the weights (`paper`), by the number of sources
    (`code`)."""
    weight_init: WeightInit = "equal"
    """`bart` starts `sw` and `dw` as strong as BART's two attentions."""
    linear_init: LinearInit = "code"
    """`code`: PyTorch's; `normal`: N(0, 0.02), the paper's; `average`: starts as `avg`."""
    att_variant: AttVariant = "paper"
    """Roles and sign of `att` as in Eq. 3, or as released."""
    layout: Arrangement = "parallel"
    """`parallel`: all attentions read the layer's input, the paper's block; `serial`: the reply first, then
    the contexts, which keeps BART's function."""
    fusion_gain: float = Field(default=1.0, gt=0)
    """Factor on the fused result of a MemBART."""
    encoder_mask: EncoderMask | Literal["auto"] = "auto"
    """`auto`: causal for a GPT-2, bidirectional for a MemBART."""
    aux_loss: AuxLoss | Literal["auto"] = "auto"
    """`auto`: the next token where the encoder is causal, else none."""
    mlm_share: float = Field(default=0.15, gt=0, lt=1)
    """Share of the tokens that `aux_loss: mlm` hides."""
    loss_weights: LossWeights = LossWeights()
    shared_module: bool = False
    """The encoder is the decoder, without contexts."""
    shared_attention: bool = False
    """One attention for all sources."""
    untie_embeddings: bool = False
    """A MemBART's encoder and decoder have a table of words each."""

    max_history: int = Field(default=7, gt=0)
    """Utterances that the history keeps; what was before is only in memory."""
    special_tokens: Literal["auto", "authors"] = "auto"
    """`auto`: the paper's nine where the tokenizer has no marks of its own, as GPT-2's; `authors`: always."""
    start_end: bool = False
    """Marks around the persona and around each utterance."""
    types_from_vocab: bool = False
    """Token types are rows of the table of words, as released, and not of a table of their own."""
    new_token_init: Literal["mean", "zero"] = "mean"
    """Rows of new tokens: the mean of all rows, or zeros."""

    beam: Literal["standard", "authors"] = "standard"
    """The beam search of transformers, or the released one."""
    warmup_share: float | None = Field(default=None, gt=0, lt=1)
    """The paper's schedule, with `optimizer.schedule: constant` and no warm-up steps: x / share up to this
    share of the updates, then 1 - x."""

    def config_fields(self) -> dict[str, Any]:
        """Fields of `FusionConfig`, as far as they depend on neither body nor tokenizer."""
        return {name: getattr(self, name) for name in _CONFIG_FIELDS}


_CONFIG_FIELDS = (
    *("inputs", "fusion", "weight_norm", "weight_init", "linear_init", "att_variant", "layout"),
    *("fusion_gain", "mlm_share", "shared_module", "shared_attention", "untie_embeddings"),
)
