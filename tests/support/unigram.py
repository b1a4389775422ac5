"""The smallest family: how often each token is said, whatever was said before.

What `docs/adding_a_family.md` shows; it lies outside of `finetune`, as a user's own would.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from transformers import AutoConfig, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from finetune.backbone import Backbone
from finetune.batch import Example, TurnBatch
from finetune.dialogue.dialogue import Dialogue
from finetune.family import Replies
from finetune.layout import ReplyLayout, count_targets
from finetune.recipe import DialogueSection, GenerationSection
from finetune.weights import WeightMap, from_backbone
from pretrain.model.loss import IGNORED
from pretrain.recipe import Section


class UnigramConfig(PreTrainedConfig):
    model_type = "unigram"

    def __init__(self, vocab_size: int = 0, **options: Any) -> None:
        self.vocab_size = vocab_size
        super().__init__(**options)


class Unigram(PreTrainedModel):
    """One logit a token."""

    config_class = UnigramConfig

    def __init__(self, config: UnigramConfig) -> None:
        super().__init__(config)
        self.logits = nn.Parameter(torch.zeros(config.vocab_size))
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        """Zeros: all tokens alike."""


AutoConfig.register("unigram", UnigramConfig)


class UnigramCell(nn.Module):
    def __init__(self, model: Unigram) -> None:
        super().__init__()
        self.model = model

    def forward(
        self, batch: TurnBatch, memory: Tensor, key: Any, *, loss: bool = True, per_row: bool = False
    ) -> tuple[Tensor | None, Tensor, Tensor]:
        """See `finetune.cell.TurnCell`; no memory, so it passes through."""
        gate = torch.zeros((), device=memory.device)
        if not loss:
            return None, memory, gate
        said = batch.labels != IGNORED
        nll = -self.model.logits.log_softmax(-1)[batch.labels.clamp(min=0)] * said
        return nll.sum(1) if per_row else nll.sum(), memory, gate


class UnigramSettings(Section):
    """Nothing to choose."""


class Family:
    """See `finetune.family.Family`."""

    Settings = UnigramSettings
    model_class = Unigram
    metrics: ClassVar[tuple[str, ...]] = ("distinct_1",)

    parts = ("loss",)
    numbers: Mapping[str, int | float] = {}

    def __init__(
        self, settings: UnigramSettings, data: DialogueSection, tokenizer: PreTrainedTokenizerBase, steps: int
    ) -> None:
        self.layout = ReplyLayout(data, tokenizer)
        self.text, self.pads = self.layout.text, self.layout.pads

    def build(self, backbone: Backbone) -> tuple[Unigram, WeightMap]:
        model = Unigram(UnigramConfig(vocab_size=len(self.text.tokenizer)))
        return model, from_backbone(model, backbone)

    def prepare(self, model: Unigram) -> None:
        """Everything trains."""

    def cell(self, model: Unigram) -> nn.Module:
        return UnigramCell(model)

    def memory_shape(self, model: Unigram) -> tuple[int, int]:
        return 0, 1

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

    def generate(
        self, model: Any, batch: TurnBatch, memory: Tensor, how: GenerationSection, key: tuple[int | str, ...]
    ) -> Replies:
        likeliest = model.logits.topk(3).indices.tolist()
        live = batch.attention_mask.any(dim=1).tolist()
        return Replies([[self.text.clean(likeliest)] if row else [] for row in live], memory)

    def figures(self, model: Any, batch: TurnBatch, memory: Tensor) -> Mapping[str, Tensor]:
        return {}

    def summary(self, gathered: Mapping[str, Tensor]) -> Mapping[str, float]:
        return {}
