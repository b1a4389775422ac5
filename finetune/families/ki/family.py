"""Family 4, lexical knowledge internalization: word knowledge moves into the weights while a model learns.

Paper: "Lexical Knowledge Internalization for Neural Dialog Generation" (2022), its section 3. Knowledge is a
folder of annotations (`finetune.knowledge`), read in training and in validation during it, and never again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from pydantic import Field, ValidationError
from torch import Tensor, nn
from transformers import AutoModel, PreTrainedModel, PreTrainedTokenizerBase

from finetune import bodies
from finetune.backbone import Backbone
from finetune.batch import MULTIPLE, Example, TurnBatch
from finetune.cell import TurnCell
from finetune.configuration import own_fields
from finetune.dialogue.dialogue import Dialogue
from finetune.families.baseline.models import AnyLanguageModel
from finetune.families.ki import negatives
from finetune.families.ki.alignment import NONE, Policy
from finetune.families.ki.configuration import (
    SHAPES,
    BertShape,
    DiffksShape,
    Head,
    KiConfig,
    KiMemBartConfig,
    TransformerShape,
    head_of,
)
from finetune.families.ki.initial import as_fairseq
from finetune.families.ki.layout import ITEMS, KiLayout, hashes_of
from finetune.families.ki.modeling import KiMemBart, KiSeq2Seq, loss_parts
from finetune.families.ki.negatives import Negatives
from finetune.families.ki.objective import ALONE, ANCHOR, NEGATIVE, NO_ANCHOR, PAIRED, POSITIVE, counts
from finetune.family import Replies
from finetune.generation import write_replies
from finetune.knowledge.annotations import Annotations
from finetune.knowledge.controls import Control, controlled
from finetune.layout import content_figures, content_labels, content_summary, count_targets
from finetune.recipe import DialogueSection, GenerationSection
from finetune.weights import WeightMap, all_fresh, from_backbone, load_mapped, traced
from pretrain.errors import UserError
from pretrain.export import named_tensors
from pretrain.recipe import Section

BodyName = Literal["membart", "bart", "transformer", "lstm", "bert", "diffks"]
HEAD = "ki_head"


class KiSettings(Section):
    """The `model` section."""

    body: BodyName = "membart"
    """`membart`; `bart`, the same without memory; `transformer`, `lstm`, `diffks`: the paper's own, from
    scratch; `bert`: a pretrained BERT or ERNIE encoder before a fresh decoder."""
    config: dict[str, Any] = Field(default_factory=dict)
    """Changes to the backbone's configuration, or the shape for `scratch`: that of a MemBART, else the
    fields of the body in `finetune.families.ki.configuration.SHAPES`."""

    knowledge: str | None = None
    """Folder of `membart ki annotate`; None is the body without knowledge internalization."""
    knowledge_control: Control = "none"
    """Table 5: `random`, `sentence`; Figure 3: `factual`, `linguistic`."""
    knowledge_seed: int = 1
    """Of the random control."""
    ki_weight: float = Field(default=1.0, ge=0)
    """λ of Eq. 4; 0 is the body without knowledge internalization."""
    margin: float = Field(default=0.1, ge=0)
    """m of Eq. 3."""
    normalize_f1: bool = True
    """Unit vectors, as the paper has it; the released code does without."""
    head_dropout: float = Field(default=0.3, ge=0, lt=1)
    subword_policy: Policy = "all"
    negatives: Negatives = "random"
    negative_scope: Literal["lane", "rank"] = "lane"
    """Where negatives come from: rows of the same lane, so that they are the same on any number of ranks, or
    all rows of the rank."""
    label_smoothing: float = Field(default=0.1, ge=0, lt=1)
    inverse_sqrt_after: int = Field(default=0, ge=0)
    """Updates after which the learning rate falls with the square root of their number, given
    `optimizer.schedule: constant` and as many warm-up steps; 0: never."""

    @property
    def internalizes(self) -> bool:
        return self.knowledge is not None and self.ki_weight > 0

    @property
    def memory(self) -> bool:
        return self.body == "membart"


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
        if data.memory == "carry" and not settings.memory:
            raise UserError(
                f"data.memory is 'carry', but the body '{settings.body}' has no memory",
                where="family ki",
                mend="data.memory=reset or off; both mean the same here",
            )
        if settings.knowledge_control != "none" and not settings.internalizes:
            raise UserError(
                f"model.knowledge_control is '{settings.knowledge_control}', but nothing is internalized",
                where="family ki",
                mend="set model.knowledge, and model.ki_weight above 0",
            )
        if settings.internalizes:
            _check_rows(settings, data)
            if not tokenizer.is_fast:
                raise UserError(
                    "this tokenizer does not tell which characters its tokens stand for",
                    where="family ki",
                    mend="a tokenizer with a tokenizer.json",
                )
        self.settings, self.data = settings, data
        self.steps = None if data.epochs else steps  # then the updates are only known once the data are read
        sentences = _shape("diffks", settings.config) if settings.body == "diffks" else None
        assert sentences is None or isinstance(sentences, DiffksShape)
        self.layout = KiLayout(data, tokenizer, settings.subword_policy, sentences)
        self.text, self.numbers = self.layout.text, self.layout.numbers
        self.parts = loss_parts(settings.body, settings.internalizes)

    @property
    def pads(self) -> Mapping[str, int]:
        return self.layout.pads

    # --- the model ---

    def build(self, backbone: Backbone) -> tuple[PreTrainedModel, WeightMap]:
        head = self._head()
        if self.settings.body in ("membart", "bart"):
            model, report = self._membart(backbone, head)
        else:
            model, report = self._own(backbone, head)
        positions = _positions(model)
        source, target = (
            -(-n // MULTIPLE) * MULTIPLE for n in (self.data.context_tokens, self.data.target_tokens)
        )
        if positions and max(source, target) > positions:
            raise UserError(
                f"data.context_tokens={source} or data.target_tokens={target} exceeds the model's "
                f"{positions} positions",
                where="family ki",
                mend="lower them",
            )
        assert model.generation_config is not None
        model.generation_config.decoder_start_token_id = self.text.bos
        return model, report

    def _head(self) -> dict[str, Any] | None:
        """Of the configuration."""
        if not self.settings.internalizes:
            return None
        found, settings = self._open(), self.settings
        head = Head(
            size=found.manifest.joint_size,
            dropout=settings.head_dropout,
            margin=settings.margin,
            normalize=settings.normalize_f1,
            knowledge=found.manifest.hash,
        )
        return asdict(head)

    def _open(self) -> Annotations:
        assert self.settings.knowledge is not None
        found = Annotations.open(Path(self.settings.knowledge))
        return controlled(found, self.settings.knowledge_control, self.settings.knowledge_seed)

    def _membart(self, backbone: Backbone, head: dict[str, Any] | None) -> tuple[KiMemBart, WeightMap]:
        changes = dict(self.settings.config)
        if self.data.memory == "off" or not self.settings.memory:
            changes["memory_len"] = 0
        source = bodies.membart(backbone, changes, vocab_size=len(self.text.tokenizer))
        model = KiMemBart(KiMemBartConfig(**own_fields(source.config.to_dict()), ki=head))
        model.generation_config = source.generation_config
        found = load_mapped(
            model,
            named_tensors(source),
            lambda name: None if name.startswith(HEAD) else name,
            backbone=backbone.place,
            unused=lambda name: None,
        )
        return model, traced(found, from_backbone(source, backbone))

    def _own(self, backbone: Backbone, head: dict[str, Any] | None) -> tuple[KiSeq2Seq, WeightMap]:
        body, changes = self.settings.body, dict(self.settings.config)
        source: PreTrainedModel | None = None
        if not backbone.is_scratch:
            if (
                body != "bert"
                or backbone.saved is not None
                or backbone.config.model_type not in ("bert", "ernie")
            ):
                wanted = "hf: and a BERT or ERNIE" if body == "bert" else "scratch"
                raise _wrong_backbone(backbone, body, wanted)
            source = backbone.hub_model(AutoModel)
            changes["encoder"] = {**source.config.to_dict(), **changes.get("encoder", {})}
        shape = _shape(body, changes)
        text = self.text
        config = KiConfig(
            kind=body,
            shape=shape.model_dump(mode="json"),
            ki=head,
            vocab_size=len(text.tokenizer) if source is None else source.config.vocab_size,
            num_hidden_layers=shape.layers if isinstance(shape, TransformerShape | BertShape) else 1,
            bos_token_id=text.bos,
            eos_token_id=text.eos,
            pad_token_id=text.pad,
            decoder_start_token_id=text.bos,
        )
        try:
            with torch.random.fork_rng(
                devices=[]
            ):  # the body is drawn anew, the same with and without a head
                model = KiSeq2Seq(config)
        except (TypeError, ValueError, KeyError) as error:
            raise UserError(f"model.config: {error}", where=f"family ki, body {body}") from None
        as_fairseq(model, body)
        if source is None:
            return model, all_fresh(model, backbone)
        prefix = "body.encoder."
        report = load_mapped(
            model,
            named_tensors(source),
            lambda name: name.removeprefix(prefix) if name.startswith(prefix) else None,
            backbone=backbone.place,
            unused=lambda name: "every token is read, no pooled one" if name.startswith("pooler.") else None,
        )
        return model, report

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
        found = self._open()
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
        past = self.steps is not None and update >= self.steps
        smoothing = 0.0 if past else self.settings.label_smoothing
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
        texts = write_replies(model, batch, read, self.text, how, key, _positions(model))
        return Replies(texts, carried, selected)

    @torch.no_grad()
    def figures(self, model: Any, batch: TurnBatch, memory: Tensor) -> Mapping[str, Tensor]:
        """Cross-entropy and number of the tokens between role mark and end, `[A]` each."""
        labels = content_labels(batch)
        nll = model.token_losses(model.read(batch, memory), batch, labels, per_row=True)[0]
        return content_figures(nll, labels)

    def summary(self, gathered: Mapping[str, Tensor]) -> Mapping[str, float]:
        return content_summary(gathered)


def _shape(body: str, content: Mapping[str, Any]) -> Section:
    try:
        return SHAPES[body].model_validate(dict(content))
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(["model.config", *map(str, first["loc"])])
        raise UserError(
            f"recipe key '{key}': {first['msg']}",
            where=f"family ki, body {body}",
            mend=f"its fields: {', '.join(SHAPES[body].model_fields)}",
        ) from None


def _check_rows(settings: KiSettings, data: DialogueSection) -> None:
    """Refuse a batch in which no token could ever have a negative."""
    rows = data.agents_per_lane * (1 if settings.negative_scope == "lane" else data.lanes)
    if rows < 2:
        raise UserError(
            f"{rows} row for each {settings.negative_scope}: no other row to take negatives from",
            where="family ki",
            mend="data.agents_per_lane of 2 or more, or model.negative_scope=rank",
        )


def _wrong_backbone(backbone: Backbone, body: str, wanted: str) -> UserError:
    kind = "checkpoint of ours" if backbone.saved is not None else backbone.config.model_type
    return UserError(
        f"the body '{body}' cannot start from a {kind}", where=backbone.place, mend=f"--from {wanted}"
    )


def _positions(model: KiMemBart | KiSeq2Seq) -> int:
    """Longest source or target; 0 where there is no limit."""
    if isinstance(model, KiMemBart):
        return model.config.max_position_embeddings
    return int(model.body.positions)


def _gathered(keys: np.ndarray, items: np.ndarray, wanted: np.ndarray) -> Tensor:
    """`[A, T, j]` float32 of items `[A, T]`, zero where they are not wanted."""
    found = np.zeros((*items.shape, keys.shape[1]), np.float32)
    found[wanted] = keys[items[wanted]]
    return torch.from_numpy(found)


__all__ = ["Family", "KiSettings"]
