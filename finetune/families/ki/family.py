"""Family 4, lexical knowledge internalization: word knowledge moves into the weights while a model learns.

Paper: "Lexical Knowledge Internalization for Neural Dialog Generation" (2022), its section 3. Knowledge is a
folder of annotations (`finetune.knowledge`), read in training and in validation during it, and never again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from finetune import bodies
from finetune.backbone import Backbone
from finetune.batch import Example, TurnBatch
from finetune.cell import TurnCell
from finetune.dialogue.dialogue import Dialogue
from finetune.families.baseline.models import AnyLanguageModel
from finetune.families.ki import negatives
from finetune.families.ki.alignment import NONE
from finetune.families.ki.building import build, positions, shape_of
from finetune.families.ki.configuration import HEAD, DiffksShape, head_of
from finetune.families.ki.layout import ITEMS, KiLayout, hashes_of
from finetune.families.ki.modeling import KiMemBart, loss_parts
from finetune.families.ki.objective import ALONE, ANCHOR, NEGATIVE, NO_ANCHOR, PAIRED, POSITIVE, counts
from finetune.families.ki.settings import KiSettings, check
from finetune.family import Replies
from finetune.generation import write_replies
from finetune.layout import content_figures, content_labels, content_summary, count_targets
from finetune.recipe import DialogueSection, GenerationSection
from finetune.weights import WeightMap
from pretrain.errors import UserError


class Family:
    """See `finetune.family.Family`, and `Completing`."""

    Settings = KiSettings
    model_class = AnyLanguageModel
    metrics: ClassVar[tuple[str, ...]] = (
        *("wiki_f1", "wiki_f1_selected", "knowledge_accuracy", "entities", "f1", "bleu_4", "rouge_l_recall"),
        *("rouge_l", "distinct_1_normalized", "distinct_2_normalized", "safe", "safe_official", "length"),
    )

    def __init__(
        self, settings: KiSettings, data: DialogueSection, tokenizer: PreTrainedTokenizerBase, steps: int
    ) -> None:
        check(settings, data, tokenizer)
        self.settings, self.data, self.steps = settings, data, steps
        sentences = shape_of("diffks", settings.config) if settings.body == "diffks" else None
        assert sentences is None or isinstance(sentences, DiffksShape)
        self.layout = KiLayout(data, tokenizer, settings.subword_policy, sentences)
        self.text, self.numbers = self.layout.text, self.layout.numbers
        self.parts = loss_parts(settings.body, settings.internalizes)

    @property
    def pads(self) -> Mapping[str, int]:
        return self.layout.pads

    # --- the model ---

    def build(self, backbone: Backbone) -> tuple[PreTrainedModel, WeightMap]:
        return build(self.settings, self.data, self.text, backbone)

    def prepare(self, model: Any) -> None:
        """Open the knowledge, and leave be memory that nothing uses.

        Raises:
            UserError: the knowledge is gone, or is not what this model began to learn.
        """
        if isinstance(model, KiMemBart) and model.config.memory_len == 0:
            bodies.rest_memory(model)
        head = head_of(model.config)
        if head is None:
            return
        found = self.settings.annotations()
        if found.manifest.hash != head.knowledge:
            raise UserError(
                "these annotations are not those that the run began with",
                where=str(found.folder),
                mend="give the old ones, or start a new run",
            )
        self.layout.annotations = found

    def cell(self, model: Any) -> nn.Module:
        return TurnCell(model)

    def memory_shape(self, model: Any) -> tuple[int, int]:
        if isinstance(model, KiMemBart):
            return model.config.memory_len, model.config.d_model
        return 0, model.body.width

    # --- examples ---

    def targets(self, dialogue: Dialogue, speaker: int) -> list[int]:
        """Every turn of the speaker that answers something."""
        return [turn for turn in self.layout.plain.targets(dialogue, speaker) if turn]

    def example(self, dialogue: Dialogue, turn: int) -> Example:
        return self.layout.example(dialogue, turn)

    def complete(self, batch: TurnBatch, lanes: Tensor, keys: Sequence[negatives.Key]) -> TurnBatch:
        """Keys and negatives of a training batch, from the file; other batches stay as they are."""
        annotations = self.layout.annotations
        if annotations is None:
            return batch
        items = batch.tensors[ITEMS].numpy()
        valid = items != NONE
        groups = lanes.numpy() if self.settings.negative_scope == "lane" else np.zeros(len(items), np.int64)
        donors = negatives.draw(hashes_of(annotations, items), valid, groups, keys, self.settings.negatives)
        kind = np.where(valid, np.where(donors >= 0, PAIRED, ALONE), NO_ANCHOR)
        wrong = np.where(donors >= 0, items.ravel()[np.maximum(donors, 0)], NONE)
        tensors = {name: tensor for name, tensor in batch.tensors.items() if name != ITEMS}
        tensors[ANCHOR] = torch.from_numpy(kind)
        tensors[POSITIVE] = _gathered(annotations.keys, items, kind == PAIRED)
        tensors[NEGATIVE] = _gathered(annotations.keys, wrong, kind == PAIRED)
        return replace(batch, tensors=tensors)

    # --- the loss ---

    def count(self, batch: TurnBatch, per_row: bool = False) -> Tensor:
        """Target tokens for the cross-entropies and the hinge; replies for DiffKS's selection."""
        tokens = count_targets(batch, per_row=True)
        kind = batch.tensors.get(ANCHOR, torch.zeros_like(batch.attention_mask))
        by_part = counts(kind, tokens, batch.attention_mask) | {"selection": (tokens > 0).to(tokens.dtype)}
        found = torch.stack([by_part.get(name, tokens) for name in self.parts])
        return found if per_row else found.sum(dim=-1)

    def part_weights(self, update: int) -> Tensor:
        """Eq. 4 with label smoothing; past the last update, for validation, without smoothing."""
        smoothing = 0.0 if update >= self.steps else self.settings.label_smoothing
        weights = {
            "nll": 1 - smoothing,
            "smoothing": smoothing,
            "selection": 1.0,
            "ki": self.settings.ki_weight,
        }
        return torch.tensor([weights.get(name, 0.0) for name in self.parts])

    def rates(self, update: int) -> Mapping[str, float]:
        start = self.settings.inverse_sqrt_after
        if not start or update < start:
            return {}
        return dict.fromkeys(("", HEAD), (start / (update + 1)) ** 0.5)

    # --- replies and figures ---

    @torch.no_grad()
    def generate(
        self,
        model: Any,
        batch: TurnBatch,
        memory: Tensor,
        how: GenerationSection,
        key: tuple[int | str, ...],
    ) -> Replies:
        """Answer from the weights alone: neither head nor keys are touched."""
        read = model.read(batch, memory)
        carried = read.memory_states
        selected = None
        if self.settings.body == "diffks":
            selected = (read.scores.argmax(dim=1) - 1).tolist()
            read = model.selected(read)
        texts = write_replies(model, batch, read, self.text, how, key, positions(model))
        return Replies(texts, carried, selected)

    @torch.no_grad()
    def figures(self, model: Any, batch: TurnBatch, memory: Tensor) -> Mapping[str, Tensor]:
        """Cross-entropy and number of the tokens between role mark and end, `[A]` each."""
        labels = content_labels(batch)
        nll = model.token_losses(model.read(batch, memory), batch, labels, per_row=True)[0]
        return content_figures(nll, labels)

    def summary(self, gathered: Mapping[str, Tensor]) -> Mapping[str, float]:
        return content_summary(gathered)


def _gathered(keys: np.ndarray, items: np.ndarray, wanted: np.ndarray) -> Tensor:
    """`[A, T, j]` float32 of items `[A, T]`, zero where they are not wanted."""
    found = np.zeros((*items.shape, keys.shape[1]), np.float32)
    found[wanted] = keys[items[wanted]]
    return torch.from_numpy(found)
