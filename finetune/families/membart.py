"""Family 1, MemBART: each reply from the last tokens of the history and the memory of all before.

Paper: MemBART (sections 4.3 to 4.5); data layout as in the authors' agent: the source is the end of the whole
history, so neighbouring inputs overlap and the memory adds to a sliding window.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from finetune import bodies
from finetune.backbone import Backbone
from finetune.batch import Example, TurnBatch
from finetune.dialogue.dialogue import Dialogue
from finetune.family import Replies
from finetune.generation import write_replies
from finetune.layout import ReplyLayout, content_figures, content_labels, content_summary, count_targets
from finetune.recipe import DialogueSection, GenerationSection
from finetune.weights import WeightMap, from_backbone
from pretrain import replay
from pretrain.model import MemBartForConditionalGeneration
from pretrain.recipe import Section


class MemBartSettings(Section):
    """The `model` section."""

    config: dict[str, Any] = Field(default_factory=dict)
    """Changes to the backbone's `MemBartConfig`, e.g. `memory_len`; the whole shape for `scratch`."""
    freeze_positions: bool = False
    """Leave both position tables as they are."""


class Family:
    """See `finetune.family.Family`."""

    Settings = MemBartSettings
    model_class = MemBartForConditionalGeneration
    metrics: ClassVar[tuple[str, ...]] = ("f1", "bleu_4", "rouge_l", "distinct_1", "distinct_2", "length")

    parts = ("loss",)
    numbers: Mapping[str, int | float] = {}

    def __init__(
        self, settings: MemBartSettings, data: DialogueSection, tokenizer: PreTrainedTokenizerBase, steps: int
    ) -> None:
        self.settings, self.data = settings, data
        self.layout = ReplyLayout(data, tokenizer)
        self.text, self.pads = self.layout.text, self.layout.pads

    def build(self, backbone: Backbone) -> tuple[MemBartForConditionalGeneration, WeightMap]:
        changes = dict(self.settings.config)
        if self.data.memory == "off":
            changes["memory_len"] = 0
        model = bodies.membart(backbone, changes, vocab_size=len(self.text.tokenizer))
        bodies.check_positions(model.config, self.data.context_tokens)
        model.generation_config.decoder_start_token_id = self.text.bos
        return model, from_backbone(model, backbone)

    def prepare(self, model: MemBartForConditionalGeneration) -> None:
        if self.settings.freeze_positions:
            for side in (model.model.encoder, model.model.decoder):
                side.embed_positions.requires_grad_(False)
        if model.config.memory_len == 0:
            bodies.rest_memory(model)

    def cell(self, model: MemBartForConditionalGeneration) -> nn.Module:
        return replay.Cell(model)

    def memory_shape(self, model: MemBartForConditionalGeneration) -> tuple[int, int]:
        return model.config.memory_len, model.config.d_model

    def targets(self, dialogue: Dialogue, speaker: int) -> list[int]:
        return self.layout.targets(dialogue, speaker)

    def example(self, dialogue: Dialogue, turn: int) -> Example:
        return self.layout.example(dialogue, turn)

    def count(self, batch: TurnBatch, per_row: bool = False) -> Tensor:
        return count_targets(batch, per_row)

    def part_weights(self, update: int) -> Tensor:
        return torch.ones(())

    def rates(self, update: int) -> Mapping[str, float]:
        return {}

    @torch.no_grad()
    def generate(
        self,
        model: MemBartForConditionalGeneration,
        batch: TurnBatch,
        memory: Tensor,
        how: GenerationSection,
        key: tuple[int | str, ...],
    ) -> Replies:
        encoded = model.encode(batch.input_ids, batch.attention_mask, memory, batch.memory_resets)
        assert encoded.memory_states is not None
        texts = write_replies(
            model, batch, encoded, self.text, how, key, model.config.max_position_embeddings
        )
        return Replies(texts, encoded.memory_states)

    @torch.no_grad()
    def figures(
        self, model: MemBartForConditionalGeneration, batch: TurnBatch, memory: Tensor
    ) -> Mapping[str, Tensor]:
        """Cross-entropy and number of the tokens between role mark and end, `[A]` each."""
        encoded = model.encode(batch.input_ids, batch.attention_mask, memory, batch.memory_resets)
        labels = content_labels(batch)
        nll = model.token_loss(encoded, batch.decoder_input_ids, labels, per_row=True)
        return content_figures(nll, labels)

    def summary(self, gathered: Mapping[str, Tensor]) -> Mapping[str, float]:
        return content_summary(gathered)


__all__ = ["Family", "MemBartSettings"]
