"""What an evaluation adds up over its timesteps: losses, answers that need memory, predictions."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from finetune.batch import TurnBatch
from finetune.dialogue.dialogue import Dialogue
from finetune.metrics import by_history
from finetune.metrics.perplexity import perplexity
from finetune.metrics.prediction import Prediction


@dataclass
class Sums:
    """Cross-entropy of the target tokens, with memory as in training and with memory reset."""

    nll: float = 0.0
    nll_reset: float = 0.0
    tokens: int = 0
    replies: int = 0

    def add(self, nll: float, nll_reset: float, tokens: int) -> None:
        """One reply."""
        self.nll, self.nll_reset = self.nll + nll, self.nll_reset + nll_reset
        self.tokens, self.replies = self.tokens + tokens, self.replies + 1

    def figures(self, carried: bool) -> dict[str, float]:
        """The perplexity; where memory is carried also that without, and what memory is worth."""
        found = {"perplexity": perplexity(self.nll, self.tokens)}
        if carried:
            found["perplexity_reset"] = perplexity(self.nll_reset, self.tokens)
            found["history_gain"] = found["perplexity_reset"] / found["perplexity"] - 1
        return found


@dataclass
class Recall:
    """How often an answer has the word that only an earlier turn tells (tag `recall`, see `synthetic`)."""

    words: dict[tuple[str, int], str]
    """What must be said, by dialogue and turn."""
    asked: int = 0
    right: int = 0
    right_reset: int = 0

    @classmethod
    def of(cls, dialogues: Sequence[Dialogue]) -> Recall:
        """Nothing asked yet of these dialogues."""
        tagged = (
            (dialogue.id, number, turn)
            for dialogue in dialogues
            for number, turn in enumerate(dialogue.turns)
        )
        return cls(
            {(name, number): turn.tags["recall"] for name, number, turn in tagged if "recall" in turn.tags}
        )

    def asks(self, about: Prediction) -> bool:
        """Whether this reply has a word that it must say."""
        return (about.dialogue, about.turn) in self.words

    def add(self, about: Prediction, reply: str, reply_reset: str) -> None:
        """One reply that `asks`, and the one that was made with memory reset."""
        word = self.words[about.dialogue, about.turn]
        self.asked += 1
        self.right += word in reply.split()
        self.right_reset += word in reply_reset.split()

    def figures(self, carried: bool) -> dict[str, float]:
        """Share of right answers and how many were asked for; nothing where none was."""
        if not self.asked:
            return {}
        found = {"recall": self.right / self.asked, "recall_asked": float(self.asked)}
        return found | ({"recall_reset": self.right_reset / self.asked} if carried else {})


@dataclass(frozen=True)
class Scored:
    """One timestep of A agents; the values of dry rows have no meaning."""

    nll: list[float]
    """`[A]` summed cross-entropy of the target tokens."""
    nll_reset: list[float]
    """`[A]` the same with memory reset; `nll` where none is carried."""
    tokens: list[int]
    """`[A]` target tokens."""
    figures: Mapping[str, Tensor]
    """What the family gathers, `[A, ...]` by name."""
    replies: list[list[str]] | None
    """Per row the replies, best first; None where none were asked for."""
    replies_reset: list[list[str]] | None
    """The same with memory reset; `replies` unless an answer in this timestep needs memory."""
    selected: list[int] | None
    """Per row the knowledge sentence that the replies were written from, in families that select one."""


@dataclass
class Tally:
    """All timesteps so far."""

    recall: Recall
    total: Sums = field(default_factory=Sums)
    sessions: dict[int, Sums] = field(default_factory=dict)
    histories: dict[str, Sums] = field(default_factory=dict)
    """By length of the history, see `metrics.by_history`."""
    predictions: list[Prediction] = field(default_factory=list)
    _figures: dict[str, list[Tensor]] = field(default_factory=dict)

    def add(self, batch: TurnBatch, scored: Scored) -> None:
        """Count the rows of a timestep that hold a reply."""
        live = [row for row, example in enumerate(batch.examples) if example is not None]
        for name, values in scored.figures.items():
            self._figures.setdefault(name, []).append(values[live].cpu())
        for row in live:
            example = batch.examples[row]
            assert example is not None
            about = example.about
            session = self.sessions.setdefault(about.session, Sums())
            history = self.histories.setdefault(by_history(about), Sums())
            for sums in (self.total, session, history):
                sums.add(scored.nll[row], scored.nll_reset[row], scored.tokens[row])
            if scored.replies is not None and scored.replies_reset is not None:
                self._answered(about, row, scored.replies, scored.replies_reset, scored.selected)

    def _answered(
        self,
        about: Prediction,
        row: int,
        replies: list[list[str]],
        replies_reset: list[list[str]],
        selected: list[int] | None,
    ) -> None:
        if self.recall.asks(about):
            self.recall.add(about, *(said[row][0] if said[row] else "" for said in (replies, replies_reset)))
        number = selected[row] if selected else None
        self.predictions.append(dataclasses.replace(about, replies=tuple(replies[row]), selected=number))

    def gathered(self) -> dict[str, Tensor]:
        """What the family gathered, `[N, ...]` by name, over the N replies."""
        return {name: torch.cat(values) for name, values in self._figures.items()}
