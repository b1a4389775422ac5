"""Family 2, multi-source attention fusion: persona, history and reply are attended to apart, then fused.

Paper: "Pretrained Language Models for Dialogue Generation with Multiple Input Sources" (Findings of EMNLP
2020). On GPT-2 it is the paper's model. On a MemBART the encoder reads both contexts, the history with
memory; the paper's block takes the place of BART's two attentions in series.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LogitsProcessorList,
    PreTrainedTokenizerBase,
    RepetitionPenaltyLogitsProcessor,
)

from finetune.backbone import Backbone
from finetune.batch import MULTIPLE, Example, TurnBatch
from finetune.cell import TurnCell
from finetune.dialogue.dialogue import Dialogue
from finetune.drawing import drawing, row_keys
from finetune.families.fusion import mapping, search, targets, watch
from finetune.families.fusion.configuration import (
    ANSWER,
    TALKER1,
    Arrangement,
    AttVariant,
    AuxLoss,
    EncoderMask,
    FusionConfig,
    Inputs,
    LinearInit,
    Method,
    WeightInit,
    WeightNorm,
)
from finetune.families.fusion.layout import MARKS, ROLES, FusionLayout
from finetune.families.fusion.modeling import FusionModel, Read
from finetune.families.fusion.writing import Writer
from finetune.family import Replies
from finetune.recipe import DialogueSection, GenerationSection
from finetune.weights import FRESH, Origin, WeightMap, from_membart, named_tensors
from pretrain.errors import UserError
from pretrain.model import MemBartConfig, MemBartForConditionalGeneration
from pretrain.model.convert import is_memory
from pretrain.model.loss import IGNORED
from pretrain.recipe import Section

GROUPS = ("", "fusion")
"""Parameter groups that the paper's schedule moves: the backbone's, and the key of our recipes."""
WHERE = "family fusion"


class LossWeights(Section):
    """α, β and γ of Eq. 1; the released code's values."""

    persona: float = Field(default=0.5, ge=0)
    history: float = Field(default=0.5, ge=0)
    reply: float = Field(default=2.0, gt=0)


class FusionSettings(Section):
    """The `model` section. Fields of the same name in `FusionConfig` say more."""

    config: dict[str, Any] = Field(default_factory=dict)
    """Changes to the backbone's configuration; for `scratch` the shape of a MemBART, or with
    `model_type: gpt2` of a GPT-2."""
    inputs: Inputs = "sources"
    fusion: Method = "linear"
    weight_norm: WeightNorm = "softmax"
    weight_init: WeightInit = "equal"
    linear_init: LinearInit = "code"
    att_variant: AttVariant = "paper"
    layout: Arrangement = "parallel"
    fusion_gain: float = Field(default=1.0, gt=0)
    encoder_mask: EncoderMask | Literal["auto"] = "auto"
    """`auto`: causal for a GPT-2, bidirectional for a MemBART."""
    aux_loss: AuxLoss | Literal["auto"] = "auto"
    """`auto`: the next token where the encoder is causal, else none."""
    mlm_share: float = Field(default=0.15, gt=0, lt=1)
    loss_weights: LossWeights = LossWeights()
    shared_module: bool = False
    shared_attention: bool = False
    untie_embeddings: bool = False

    max_history: int = Field(default=7, gt=0)
    """Utterances that the history keeps; what was before is only in memory."""
    special_tokens: Literal["auto", "authors"] = "auto"
    """`auto`: the paper's nine where the tokenizer has no marks of its own, as GPT-2's; `authors`: always."""
    start_end: bool = False
    """Marks around the persona and around each utterance."""
    types_from_vocab: bool = False
    """Token types are rows of the table of words, as released, and not of a table of their own."""
    new_token_init: Literal["mean", "zero"] = "mean"

    beam: Literal["standard", "authors"] = "standard"
    warmup_share: float | None = Field(default=None, gt=0, lt=1)
    """The paper's schedule, with `optimizer.schedule: constant` and no warm-up steps: x / share up to this
    share of the updates, then 1 - x."""


_CONFIG_FIELDS = (
    *("inputs", "fusion", "weight_norm", "weight_init", "linear_init", "att_variant", "layout"),
    *("fusion_gain", "mlm_share", "shared_module", "shared_attention", "untie_embeddings"),
)


class Family:
    """See `finetune.family.Family`."""

    Settings = FusionSettings
    model_class = FusionModel
    metrics: ClassVar[tuple[str, ...]] = (
        *("bleu_4", "meteor_nltk15", "nist_4", "entropy_4_no_articles", "distinct_2_no_articles"),
        *("length_no_articles", "entropy_4", "distinct_2", "length", "f1"),
    )

    numbers: Mapping[str, int | float] = {}

    def __init__(
        self, settings: FusionSettings, data: DialogueSection, tokenizer: PreTrainedTokenizerBase, steps: int
    ) -> None:
        self.settings, self.data, self.steps = settings, data, steps
        self.layout = FusionLayout(
            data,
            tokenizer,
            authors_tokens=settings.special_tokens == "authors",
            single=settings.inputs == "single",
            ends=settings.start_end,
            types_from_vocabulary=settings.types_from_vocab,
            max_history=settings.max_history,
        )
        self.text, self.pads = self.layout.text, self.layout.pads
        # A body decides what `auto` means, and the tokenizer's style tells the body.
        self.encoder_mask = settings.encoder_mask
        if self.encoder_mask == "auto":
            self.encoder_mask = "causal" if self.layout.is_bare else "bidirectional"
        self.aux_loss = settings.aux_loss
        if self.aux_loss == "auto":
            sources = settings.inputs == "sources"
            self.aux_loss = "next_token" if sources and self.encoder_mask == "causal" else "none"
        self.config = self._config(None)
        self.parts = self.config.parts

    def _config(self, body: dict[str, Any] | None) -> FusionConfig:
        """The model's configuration; without a body only the settings are checked against each other."""
        settings, layout = self.settings, self.layout
        gpt2_alone = settings.inputs == "single" and layout.is_bare
        return FusionConfig(
            body=body,
            **{name: getattr(settings, name) for name in _CONFIG_FIELDS},
            encoder_mask=self.encoder_mask,
            aux_loss=self.aux_loss,
            type_tokens=layout.type_tokens if settings.types_from_vocab else (),
            reply_prefix=(layout.marks["<talker1_bos>"],) if gpt2_alone else layout.prefix,
            reply_type=TALKER1 if gpt2_alone else ANSWER,
            special_tokens=layout.special,
            mask_token_id=self.text.tokenizer.mask_token_id,
            bos_token_id=self.text.bos,
            eos_token_id=self.text.eos,
            pad_token_id=self.text.pad,
        )

    # --- the model ---

    def build(self, backbone: Backbone) -> tuple[FusionModel, WeightMap]:
        source, taken = self._source(backbone)
        body = source.config.to_dict()
        self._check(backbone, source.config)
        body["vocab_size"] = max(int(body["vocab_size"]), len(self.text.tokenizer))
        config = self._config(body)
        model = FusionModel(config)
        report = mapping.load(model, source, taken, self.settings.new_token_init)
        if backbone.is_scratch:
            rows = tuple(Origin(name, tuple(t.shape), FRESH) for name, t in named_tensors(model).items())
            report = WeightMap(backbone.place, rows)
        return model, report

    def _source(self, backbone: Backbone) -> tuple[Any, WeightMap]:
        """The backbone as a model of its own kind, and the map of its tensors."""
        changes = dict(self.settings.config)
        if backbone.is_scratch:
            kind = changes.pop("model_type", "membart")
            special = {
                "vocab_size": len(self.text.tokenizer),
                "bos_token_id": self.text.bos,
                "eos_token_id": self.text.eos,
            }
            try:
                if kind == "gpt2":
                    self._no_memory(kind)
                    made = GPT2LMHeadModel(GPT2Config(**{**special, **changes}))
                    return made, WeightMap(backbone.place, ())
                special |= {"pad_token_id": self.text.pad}
                if self.data.memory == "off":
                    changes["memory_len"] = 0
                config = MemBartConfig(**{**special, **changes})
                return MemBartForConditionalGeneration.from_scratch(config), WeightMap(backbone.place, ())
            except (TypeError, ValueError) as error:
                raise UserError(f"model.config: {error}", where=WHERE) from None
        if backbone.config.model_type == "gpt2":
            self._no_memory("gpt2")
            return backbone.hub_model(GPT2LMHeadModel, **changes), WeightMap(backbone.place, ())
        if not backbone.is_membart:
            raise UserError(
                f"a {backbone.config.model_type} is neither GPT-2 nor BART nor MemBART",
                where=backbone.place,
                mend="give one of them",
            )
        if self.data.memory == "off":
            changes["memory_len"] = 0
        made = backbone.membart(**changes)
        return made, from_membart(made, backbone)

    def _no_memory(self, kind: str) -> None:
        if self.data.memory == "carry":
            raise UserError(
                f"data.memory is 'carry', but a {kind} has no memory",
                where=WHERE,
                mend="data.memory=reset or off; both mean the same here",
            )

    def _check(self, backbone: Backbone, config: Any) -> None:
        """That tokenizer, positions and attention of a body are as the model needs them."""
        gpt2, layout = config.model_type == "gpt2", self.layout
        if gpt2 and not layout.is_bare:
            raise UserError(
                "a GPT-2 reads the paper's special tokens, this tokenizer has others",
                where=WHERE,
                mend="model.special_tokens=authors",
            )
        if not gpt2 and layout.is_bare:
            raise UserError(
                "this tokenizer has a GPT-2's marks, the backbone has a BART's",
                where=backbone.place,
                mend="give the backbone's own tokenizer, and model.special_tokens=auto",
            )
        ours = {*ROLES.values(), *MARKS}
        beyond = [
            word
            for word, number in self.text.tokenizer.get_vocab().items()
            if number >= config.vocab_size and word not in ours
        ]
        if beyond or (not gpt2 and config.eos_token_id != self.text.eos):
            raise UserError(
                f"the tokenizer ({len(beyond)} words more, end {self.text.eos}) is not that of the model "
                f"({config.vocab_size} words, end {config.eos_token_id})",
                where=backbone.place,
                mend="give the model's own tokenizer",
            )
        if gpt2 and (config.scale_attn_by_inverse_layer_idx or not config.scale_attn_weights):
            raise UserError(
                "this GPT-2 scales its attention in a way of its own",
                where=backbone.place,
                mend="give another",
            )
        there = config.n_positions if gpt2 else config.max_position_embeddings
        reads = -(-self.data.context_tokens // MULTIPLE) * MULTIPLE
        writes = -(-self.data.target_tokens // MULTIPLE) * MULTIPLE + 1
        alone = gpt2 and self.settings.inputs == "single"
        needed = self.data.context_tokens + self.data.target_tokens if alone else max(reads, writes)
        if needed > there:
            raise UserError(
                f"{needed} tokens do not fit the {there} positions of this {config.model_type}",
                where=WHERE,
                mend="lower data.context_tokens or data.target_tokens",
            )

    def prepare(self, model: FusionModel) -> None:
        """Memory that nothing uses rests: weight decay would wear it away."""
        if not model.is_gpt2 and not model.memory_slots:
            for name, parameter in model.encoder.named_parameters():
                if is_memory(name):
                    parameter.requires_grad_(False)

    def cell(self, model: FusionModel) -> nn.Module:
        return TurnCell(model)

    def memory_shape(self, model: FusionModel) -> tuple[int, int]:
        return model.memory_slots, model.shape.width

    # --- examples ---

    def targets(self, dialogue: Dialogue, speaker: int) -> list[int]:
        """Every turn of the speaker that answers something."""
        return [index for index, turn in enumerate(dialogue.turns) if index and turn.speaker == speaker]

    def example(self, dialogue: Dialogue, turn: int) -> Example:
        return self.layout.example(dialogue, turn)

    # --- the loss ---

    def count(self, batch: TurnBatch, per_row: bool = False) -> Tensor:
        """Target tokens of the reply and, where the encoder has losses, of persona and history."""
        found = [(batch.labels != IGNORED).sum(dim=1)]
        if self.aux_loss != "none":
            for ids, mask in (
                (batch.persona_ids, batch.persona_mask),
                (batch.input_ids, batch.attention_mask),
            ):
                found.append(self._guessed(ids, mask))
        rows = torch.stack(found) if len(found) > 1 else found[0]
        return rows if per_row else rows.sum(dim=-1)

    def _guessed(self, ids: Tensor, mask: Tensor) -> Tensor:
        if self.aux_loss == "mlm":
            return targets.number_hidden(ids, mask, self.layout.special, self.settings.mlm_share)
        return (targets.next_tokens(ids, mask, self.layout.special) != IGNORED).sum(dim=1)

    def part_weights(self, update: int) -> Tensor:
        """Eq. 1; past the last update, for validation, the reply alone: the best model is chosen by it."""
        if len(self.parts) == 1:
            return torch.ones(())
        if update >= self.steps:
            return torch.tensor([1.0, 0.0, 0.0])
        weights = self.settings.loss_weights
        return torch.tensor([weights.reply, weights.persona, weights.history])

    def rates(self, update: int) -> Mapping[str, float]:
        """The paper's schedule as a factor on a constant rate, if it is asked for."""
        share = self.settings.warmup_share
        if share is None:
            return {}
        done = (update + 1) / self.steps
        return dict.fromkeys(GROUPS, done / share if done < share else max(1 - done, 0.0))

    # --- replies and figures ---

    @torch.no_grad()
    def generate(
        self,
        model: FusionModel,
        batch: TurnBatch,
        memory: Tensor,
        how: GenerationSection,
        key: tuple[int | str, ...],
    ) -> Replies:
        """Beam search with `how.length_penalty` as α, or `how.replies` draws, the likeliest first.

        Draws depend on `how.seed` and the turn that is answered: a reply is the same in any batch.
        """
        read = model.read(batch, memory)
        made = self.search(model, read, batch, how)
        texts = [
            [] if example is None else [self.layout.clean(one.ids) for one in found[: how.replies]]
            for example, found in zip(batch.examples, made, strict=True)
        ]
        return Replies(texts, read.memory_states)

    def search(
        self, model: FusionModel, read: Read, batch: TurnBatch, how: GenerationSection
    ) -> list[list[search.Hypothesis]]:
        """Replies of each row, best first.

        Raises:
            UserError: a penalty of repetitions in beam search, which has none.
        """
        scorer = Writer(model, model.contexts(read, batch), batch)
        most = min(how.max_new_tokens, self._room(model))
        alpha, end = how.length_penalty, self.text.eos
        if how.sample:
            keys = row_keys(batch, how.seed, how.replies)
            steps = LogitsProcessorList(drawing(how, keys))
            if how.repetition_penalty != 1:
                steps.insert(0, RepetitionPenaltyLogitsProcessor(how.repetition_penalty))
            return search.draws(
                scorer, how.replies, most, end, alpha, lambda ids, scores: steps(ids, scores).argmax(dim=-1)
            )
        if how.repetition_penalty != 1:
            raise UserError(
                "this family's beam search has no penalty of repetitions",
                where="generation",
                mend="generation.repetition_penalty=1, or generation.sample=true",
            )
        size = max(how.beams, how.replies)
        if self.settings.beam == "authors":
            return search.authors_beams(scorer, size, most, end, alpha)
        return search.beams(scorer, size, most, end, alpha, how.replies)

    def _room(self, model: FusionModel) -> int:
        """Tokens that fit after the prefix."""
        held = len(model.config.reply_prefix)
        if not model.config.contexts:
            held += self.data.context_tokens
        return model.shape.positions - held

    @torch.no_grad()
    def figures(self, model: FusionModel, batch: TurnBatch, memory: Tensor) -> Mapping[str, Tensor]:
        return watch.gather(model, batch, memory)

    def summary(self, gathered: Mapping[str, Tensor]) -> Mapping[str, float]:
        return watch.summarize(gathered)


__all__ = ["Family", "FusionSettings", "LossWeights"]
