"""Family 2, multi-source attention fusion: persona, history and reply are attended to apart, then fused.

Paper: "Pretrained Language Models for Dialogue Generation with Multiple Input Sources" (Findings of EMNLP
2020). On GPT-2 it is the paper's model. On a MemBART the encoder reads both contexts, the history with
memory; the paper's block takes the place of BART's two attentions in series.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from finetune import bodies
from finetune.backbone import Backbone
from finetune.batch import MULTIPLE, Example, TurnBatch
from finetune.cell import TurnCell
from finetune.dialogue.dialogue import Dialogue
from finetune.drawing import processors, row_keys
from finetune.families.fusion import mapping, search, targets, watch
from finetune.families.fusion.configuration import ANSWER, TALKER1, FusionConfig
from finetune.families.fusion.layout import FusionLayout
from finetune.families.fusion.modeling import FusionModel, Read
from finetune.families.fusion.settings import FusionSettings
from finetune.families.fusion.writing import Writer
from finetune.family import Replies
from finetune.recipe import DialogueSection, GenerationSection
from finetune.weights import WeightMap, all_fresh, from_backbone
from pretrain.errors import UserError
from pretrain.model.loss import IGNORED

GROUPS = ("", "fusion")
"""Parameter groups that the paper's schedule moves: the backbone's, and the key of our recipes."""


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
            **settings.config_fields(),
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
        source: Any = bodies.membart_or_gpt2(backbone, self.settings.config, self.text, self.data.memory)
        self.layout.check(source.config, backbone.place)
        bodies.check_positions(source.config, self._positions(source.config.model_type))
        body = source.config.to_dict()
        body["vocab_size"] = max(int(body["vocab_size"]), len(self.text.tokenizer))
        model = FusionModel(self._config(body))
        report = mapping.load(model, source, from_backbone(source, backbone), self.settings.new_token_init)
        return model, all_fresh(model, backbone) if backbone.is_scratch else report

    def _positions(self, kind: str) -> int:
        """Most positions that the longest input takes."""
        data = self.data
        if kind == "gpt2" and self.settings.inputs == "single":
            return data.context_tokens + data.target_tokens
        reads, writes = (
            -(-length // MULTIPLE) * MULTIPLE for length in (data.context_tokens, data.target_tokens)
        )
        return max(reads, writes + 1)

    def prepare(self, model: FusionModel) -> None:
        """Memory that nothing uses rests: weight decay would wear it away."""
        if not model.memory_slots:
            bodies.rest_memory(model)

    def cell(self, model: FusionModel) -> nn.Module:
        return TurnCell(model)

    def memory_shape(self, model: FusionModel) -> tuple[int, int]:
        return model.memory_slots, model.shape.width

    # --- examples ---

    def targets(self, dialogue: Dialogue, speaker: int) -> list[int]:
        return dialogue.answers(speaker)

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
            [] if example is None else [self.text.decoded(one.ids) for one in found[: how.replies]]
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
            steps = processors(how, row_keys(batch, how.seed, how.replies))
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
