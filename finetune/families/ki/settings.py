"""The recipe's `model` section of knowledge internalization."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import Field
from transformers import PreTrainedTokenizerBase

from finetune.families.ki.alignment import Policy
from finetune.families.ki.negatives import Negatives
from finetune.knowledge.annotations import Annotations
from finetune.knowledge.controls import Control, controlled
from finetune.recipe import DialogueSection
from pretrain.errors import UserError
from pretrain.recipe import Section

BodyName = Literal["membart", "bart", "transformer", "lstm", "bert", "diffks"]


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
    knowledge_hash: str | None = None
    """What that folder must hold; unless given, what it holds when the recipe is read. A run's own recipe has
    it: the run goes on with nothing else, wherever it lies."""
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
    """Dropout inside the head."""
    subword_policy: Policy = "all"
    """Which pieces of a word learn its knowledge: `all`, or the `first`."""
    negatives: Negatives = "random"
    """Whose knowledge is the wrong one: `random`: any token of another row; `halves`: the same place half a
    batch away, as released."""
    negative_scope: Literal["lane", "rank"] = "lane"
    """Where negatives come from: rows of the same lane, so that they are the same on any number of ranks, or
    all rows of the rank."""
    label_smoothing: float = Field(default=0.1, ge=0, lt=1)
    """Share of a token's probability that is spread over all words."""
    inverse_sqrt_after: int = Field(default=0, ge=0)
    """Updates after which the learning rate falls with the square root of their number, given
    `optimizer.schedule: constant` and as many warm-up steps; 0: never."""

    @property
    def internalizes(self) -> bool:
        """Whether anything is learnt from knowledge."""
        return self.knowledge is not None and self.ki_weight > 0

    @property
    def memory(self) -> bool:
        """Whether the body has any."""
        return self.body == "membart"

    def annotations(self) -> Annotations:
        """The knowledge, as the control has it.

        Raises:
            UserError: there is none, it is damaged, or it is not what `knowledge_hash` says.
        """
        assert self.knowledge is not None
        found = Annotations.open(Path(self.knowledge))
        if self.knowledge_hash not in (None, found.manifest.hash):
            raise UserError(
                "these are other annotations than model.knowledge_hash says",
                where=str(found.folder),
                mend="give those; or model.knowledge_hash=null, for a new run",
            )
        return controlled(found, self.knowledge_control, self.knowledge_seed)


def check(settings: KiSettings, data: DialogueSection, tokenizer: PreTrainedTokenizerBase) -> None:
    """Refuse settings that contradict each other, the data section or the tokenizer.

    Raises:
        UserError: the first thing that does not fit.
    """
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


def _check_rows(settings: KiSettings, data: DialogueSection) -> None:
    """Refuse a batch in which no token could ever have a negative."""
    rows = data.agents_per_lane * (1 if settings.negative_scope == "lane" else data.lanes)
    if rows < 2:
        raise UserError(
            f"{rows} row for each {settings.negative_scope}: no other row to take negatives from",
            where="family ki",
            mend="data.agents_per_lane of 2 or more, or model.negative_scope=rank",
        )
