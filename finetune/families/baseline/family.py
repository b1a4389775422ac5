"""The controls as a family: any model of transformers that writes text, on MemBART's examples."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from finetune.backbone import Backbone
from finetune.batch import MULTIPLE, Example, TurnBatch
from finetune.dialogue.dialogue import Dialogue
from finetune.families.baseline.cell import BaselineCell, prompt, token_loss
from finetune.families.baseline.models import AnyLanguageModel, check_room, fresh, loaded, room_to_write
from finetune.family import Replies
from finetune.generation import as_replies, generate_options
from finetune.layout import ReplyLayout, content_figures, content_labels, content_summary, count_targets
from finetune.recipe import DialogueSection, GenerationSection
from finetune.weights import WeightMap, all_fresh
from pretrain import replay
from pretrain.errors import UserError
from pretrain.recipe import Section


class BaselineSettings(Section):
    """The `model` section."""

    config: dict[str, Any] = Field(default_factory=dict)
    """Changes to the backbone's configuration, e.g. `dropout`; for `scratch` the whole shape, with
    `model_type`."""


class Family:
    """See `finetune.family.Family`."""

    Settings = BaselineSettings
    model_class = AnyLanguageModel
    metrics: ClassVar[tuple[str, ...]] = ("f1", "bleu_4", "rouge_l", "distinct_1", "distinct_2", "length")

    parts = ("loss",)
    numbers: Mapping[str, int | float] = {}

    def __init__(
        self,
        settings: BaselineSettings,
        data: DialogueSection,
        tokenizer: PreTrainedTokenizerBase,
        steps: int,
    ) -> None:
        if data.memory == "carry":
            raise UserError(
                "data.memory is 'carry', but a baseline has no memory",
                where="family baseline",
                mend="data.memory=reset or off; both mean the same here",
            )
        self.settings, self.data = settings, data
        self.layout = ReplyLayout(data, tokenizer)
        self.text, self.pads = self.layout.text, self.layout.pads

    def build(self, backbone: Backbone) -> tuple[PreTrainedModel, WeightMap]:
        text = self.text
        if backbone.is_scratch:
            special = {
                "vocab_size": len(text.tokenizer),
                "bos_token_id": text.bos,
                "eos_token_id": text.eos,
                "pad_token_id": text.pad,
            }
            model = fresh(self.settings.config, special)
            report = all_fresh(model, backbone)
        else:
            model, report = loaded(backbone, self.settings.config)
        config: Any = model.config
        if len(text.tokenizer) > config.vocab_size:
            raise UserError(
                f"the tokenizer has {len(text.tokenizer)} tokens, the model {config.vocab_size}",
                where=backbone.place,
                mend="give the model's own tokenizer",
            )
        source, target = self.data.context_tokens, self.data.target_tokens
        if config.is_encoder_decoder:  # whose padding takes positions too
            source, target = (-(-length // MULTIPLE) * MULTIPLE for length in (source, target))
            assert model.generation_config is not None
            model.generation_config.decoder_start_token_id = text.bos
        check_room(config, source, target)
        return model, report

    def prepare(self, model: Any) -> None:
        """Everything trains."""

    def cell(self, model: Any) -> nn.Module:
        return BaselineCell(model)

    def memory_shape(self, model: Any) -> tuple[int, int]:
        return 0, model.config.hidden_size

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
        self, model: Any, batch: TurnBatch, memory: Tensor, how: GenerationSection, key: tuple[int | str, ...]
    ) -> Replies:
        begun = prompt(model, batch)
        options = generate_options(how)
        room = room_to_write(model.config, self.data.context_tokens)
        if room is not None:
            options["max_new_tokens"] = min(how.max_new_tokens, room)
        if model.config.is_encoder_decoder:
            options["decoder_start_token_id"] = self.text.bos
        replay.seed(how.seed, *key)
        made = model.generate(**begun, eos_token_id=self.text.ends, pad_token_id=self.text.pad, **options)
        if not model.config.is_encoder_decoder:  # which repeats what it was given
            made = made[:, begun["input_ids"].shape[1] :]
        return Replies(as_replies(made, self.text, how.replies, batch), memory)

    @torch.no_grad()
    def figures(self, model: Any, batch: TurnBatch, memory: Tensor) -> Mapping[str, Tensor]:
        """Cross-entropy and number of the tokens between role mark and end, `[A]` each."""
        labels = content_labels(batch)
        return content_figures(token_loss(model, batch, labels), labels)

    def summary(self, gathered: Mapping[str, Tensor]) -> Mapping[str, float]:
        return content_summary(gathered)


__all__ = ["BaselineSettings", "Family"]
