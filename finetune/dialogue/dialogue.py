"""What a dialogue is, whatever data set it comes from.

Every reader of `finetune.dialogue` makes these; every family eats them. They are also the schema of our
JSON lines: the fields here are the keys there.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar


@dataclass(frozen=True)
class Turn:
    """One utterance, as its data set has it: white space, case and spaced punctuation are kept."""

    __pydantic_config__: ClassVar[Any] = {"extra": "forbid"}

    speaker: int
    """Number of the one who says it, from 0; indexes `Dialogue.personas` and `Dialogue.roles`."""
    text: str
    session: int = 0
    """Number of the sitting it belongs to, from 0."""
    references: tuple[str, ...] = ()
    """All accepted replies that could stand in place of this turn, its own text among them; empty where the
    text is the only one."""
    negatives: tuple[str, ...] = ()
    """Replies that do not fit, taken at random."""
    adversarial: tuple[str, ...] = ()
    """Replies that do not fit, made to look as if they did."""
    candidates: tuple[str, ...] = ()
    """What a ranking model chooses from, the true reply among them."""
    knowledge: tuple[str, ...] = ()
    """Sentences or facts that lay before the speaker. There is no dummy for "none of them"."""
    chosen: int | None = None
    """Index of the one in `knowledge` that the turn was written from; None where none is, or nobody knows."""
    entities: tuple[str, ...] = ()
    """Entities of the knowledge graphs that were retrieved for this turn."""
    pieces: tuple[str, ...] = ()
    """The text as the tokens that the data set was published in, where `vokens` belong to them."""
    vokens: tuple[int, ...] = ()
    """For each of `pieces` the number of an item of knowledge, 0 for none; empty where none is annotated."""
    tags: Mapping[str, str] = field(default_factory=dict)
    """Whatever else is known: dialogue act, emotion, strategy; see the reader."""

    @property
    def accepted(self) -> tuple[str, ...]:
        """What may be said here: the references, or the text alone."""
        return self.references or (self.text,)


@dataclass(frozen=True)
class Session:
    """One sitting of a dialogue that has several."""

    __pydantic_config__: ClassVar[Any] = {"extra": "forbid"}

    gap: str = ""
    """Time since the sitting before, in words ("6 days"); empty for the first and where nobody knows."""
    personas: tuple[tuple[str, ...], ...] = ()
    """What is known of each speaker when it begins."""


@dataclass(frozen=True)
class Dialogue:
    """A conversation; a text for language modelling is a dialogue of one turn."""

    __pydantic_config__: ClassVar[Any] = {"extra": "forbid"}

    id: str
    """Unique in its data."""
    turns: tuple[Turn, ...]
    personas: tuple[tuple[str, ...], ...] = ()
    """Sentences about each speaker when the dialogue begins; empty where unknown."""
    roles: tuple[str, ...] = ()
    """What each speaker is called, where speakers differ by more than their number."""
    sessions: tuple[Session, ...] = ()
    """One for each sitting; empty where there is but one."""
    topic: str = ""
    tags: Mapping[str, str] = field(default_factory=dict)

    def answers(self, speaker: int) -> list[int]:
        """Indexes of the turns of a speaker that answer something: all but the first of the dialogue."""
        return [index for index, turn in enumerate(self.turns) if index and turn.speaker == speaker]


def flaw(dialogue: Dialogue) -> str:
    """What contradicts itself in a dialogue, in words; empty if nothing does."""
    if not dialogue.turns:
        return "no turn"
    session = 0
    for number, turn in enumerate(dialogue.turns):
        found = _turn_flaw(turn, session)
        if found:
            return f"turn {number}: {found}"
        session = turn.session
    if dialogue.sessions and session >= len(dialogue.sessions):
        return f"a turn of session {session}, but only {len(dialogue.sessions)} sessions"
    return ""


def _turn_flaw(turn: Turn, session: int) -> str:
    if not turn.text.strip():
        return "empty text"
    if turn.speaker < 0:
        return f"speaker {turn.speaker}"
    if turn.session < session:
        return f"session {turn.session} after {session}"
    if turn.chosen is not None and not 0 <= turn.chosen < len(turn.knowledge):
        return f"chosen is {turn.chosen} of {len(turn.knowledge)} knowledge sentences"
    if turn.vokens and len(turn.vokens) != len(turn.pieces):
        return f"{len(turn.vokens)} vokens for {len(turn.pieces)} pieces"
    return ""
