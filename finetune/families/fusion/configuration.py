"""The configuration of multi-source attention fusion: a body, and how its sources meet in the decoder."""

from __future__ import annotations

from typing import Any, Literal

from transformers import AutoConfig, PreTrainedConfig

from finetune.configuration import body_config, check_choices
from pretrain.errors import UserError

Inputs = Literal["sources", "single"]
Method = Literal["avg", "max", "min", "sw", "dw", "linear", "att", "none"]
WeightNorm = Literal["softmax", "paper", "code"]
WeightInit = Literal["equal", "bart"]
LinearInit = Literal["code", "normal", "average"]
AttVariant = Literal["paper", "code"]
Arrangement = Literal["parallel", "serial"]
EncoderMask = Literal["causal", "bidirectional"]
AuxLoss = Literal["next_token", "mlm", "none"]

_CHOICES = {
    "inputs": Inputs,
    "fusion": Method,
    "weight_norm": WeightNorm,
    "weight_init": WeightInit,
    "linear_init": LinearInit,
    "att_variant": AttVariant,
    "layout": Arrangement,
    "encoder_mask": EncoderMask,
    "aux_loss": AuxLoss,
}
_WHERE = "family fusion"

REPLY = "reply"
INFO, TALKER1, TALKER2, ANSWER = range(4)
"""Token types: persona, the one who answers, the other party, the reply."""
TYPES = 4


class FusionConfig(PreTrainedConfig):
    """How sources are read and fused; `body` is the whole configuration of a MemBART or GPT-2.

    Raises `UserError` for a combination that the model cannot honour.
    """

    model_type = "fusion"

    tie_word_embeddings: bool = True
    body: dict[str, Any] | None = None
    inputs: str = "sources"
    """`sources`: persona and history apart; `single`: one sequence, the paper's single-input baselines."""
    fusion: str = "linear"
    """How a decoder layer merges what it found in its sources; `none` where there is one sequence."""
    weight_norm: str = "softmax"
    """Of `sw` and `dw`: by a softmax, by the sum of the weights (paper), by the number of sources (code)."""
    weight_init: str = "equal"
    """`bart` starts `sw` and `dw` at A^c + (A^p + A^h) / 2, as strong as BART's two attentions."""
    linear_init: str = "code"
    """`code`: PyTorch's; `normal`: N(0, 0.02), the paper's; `average`: starts as `avg`."""
    att_variant: str = "paper"
    """Roles and sign of `att` as in Eq. 3, or as released."""
    layout: str = "parallel"
    """`parallel`: all attentions read the layer's input, the paper's block; `serial`: the reply first, then
    the contexts, which keeps BART's function."""
    fusion_gain: float = 1.0
    """Factor on the fused result of a MemBART."""
    encoder_mask: str = "bidirectional"
    aux_loss: str = "none"
    """What the encoder's own losses predict: the `next_token`, tokens hidden by `<mask>` (`mlm`), nothing."""
    mlm_share: float = 0.15
    shared_module: bool = False
    """The encoder is the decoder, without contexts."""
    shared_attention: bool = False
    """One attention for all sources."""
    untie_embeddings: bool = False
    """A MemBART's encoder and decoder have a table of words each."""
    type_tokens: tuple[int, ...] = ()
    """Words whose rows serve as the four token types; empty: a table of its own."""
    reply_prefix: tuple[int, ...] = (0,)
    """What the decoder reads before the reply's first word."""
    reply_type: int = ANSWER
    special_tokens: tuple[int, ...] = ()
    """Never a target of the encoder's losses."""
    mask_token_id: int | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        super().__post_init__(**kwargs)
        for field in ("type_tokens", "reply_prefix", "special_tokens"):
            setattr(self, field, tuple(getattr(self, field)))
        check_choices(self, _CHOICES, _WHERE)
        for what, mend in self._contradictions():
            raise UserError(what, where=_WHERE, mend=mend)

    def _contradictions(self) -> list[tuple[str, str]]:
        """What cannot be, each with what to do."""
        single = self.inputs == "single"
        checks = {
            ("one sequence leaves nothing to fuse", "fusion: none"): single and self.fusion != "none",
            ("several sources need a fusion", "fusion: linear, or inputs: single"): not single
            and self.fusion == "none",
            ("one sequence has no losses of the encoder", "aux_loss: none"): single
            and self.aux_loss != "none",
            ("one sequence has no attentions or modules to share", "shared_*: false"): single
            and (self.shared_attention or self.shared_module),
            ("a bidirectional encoder sees the next token that it is to predict", "aux_loss: mlm or none"): (
                self.aux_loss == "next_token" and self.encoder_mask == "bidirectional"
            ),
            ("a causal encoder cannot fill gaps", "aux_loss: next_token or none"): self.aux_loss == "mlm"
            and self.encoder_mask == "causal",
            ("aux_loss mlm needs a <mask> token", "aux_loss: none"): self.aux_loss == "mlm"
            and self.mask_token_id is None,
            ("weight_init bart belongs to weight_norm code", "weight_norm: code"): self.weight_init == "bart"
            and self.weight_norm != "code",
            ("att merges three sources, serial has two", "layout: parallel"): self.layout == "serial"
            and self.fusion == "att",
            ("serial attends to contexts with attentions of their own", "shared_attention: false"): (
                self.layout == "serial" and self.shared_attention
            ),
        }
        if self.body is not None and self.kind == "gpt2":
            checks[("layout serial is a BART's order of attentions", "layout: parallel")] = (
                self.layout == "serial"
            )
            checks[("a GPT-2 has tables of words apart already", "untie_embeddings: false")] = (
                self.untie_embeddings
            )
        elif self.body is not None:
            checks[("a MemBART has an encoder of its own", "shared_module: false")] = self.shared_module
            checks[("a MemBART's encoder is bidirectional", "encoder_mask: bidirectional")] = (
                self.encoder_mask == "causal"
            )
        return [words for words, wrong in checks.items() if wrong]

    @property
    def kind(self) -> str:
        """`membart` or `gpt2`."""
        assert self.body is not None, "a configuration without a body builds no model"
        return str(self.body["model_type"])

    def body_config(self) -> Any:
        """The configuration object of the body."""
        assert self.body is not None
        return body_config(self.body)

    @property
    def contexts(self) -> tuple[str, ...]:
        """Sources that are encoded and attended to, in order."""
        if self.inputs == "sources":
            return ("persona", "history")
        return () if self.kind == "gpt2" else ("history",)

    @property
    def is_serial(self) -> bool:
        """Whether a layer attends to its contexts after the reply; a single context is BART itself."""
        return self.layout == "serial" or (self.inputs == "single" and self.kind != "gpt2")

    @property
    def fused(self) -> tuple[str, ...]:
        """What a decoder layer fuses, in the order of rows of `sw`, `dw` and blocks of `linear`."""
        return self.contexts if self.is_serial else (REPLY, *self.contexts)

    @property
    def parts(self) -> tuple[str, ...]:
        """Names of the losses."""
        return ("reply",) if self.aux_loss == "none" else ("reply", "persona", "history")


AutoConfig.register("fusion", FusionConfig)
