"""Counts and lengths of dialogues, as the papers' tables have them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass

from finetune.dialogue.dialogue import Dialogue

TURN_EXTRA = 2
"""What the MemBART paper's lengths add to the tokens of a turn (its Table 2): speaker mark and end."""


@dataclass(frozen=True)
class Stats:
    """Of all dialogues together. Words are what stands between white space."""

    dialogues: int
    utterances: int
    sessions: int
    """A dialogue has at least one."""
    persona_sentences: int
    personas: int
    """Different personas: sets of sentences about one speaker."""
    references: int
    """Accepted replies of turns that have several."""
    negatives: int
    candidates: int
    knowledge: int
    """Sentences or facts that lay before speakers."""
    vokens: int
    """Pieces that are annotated with an item of knowledge."""
    mean_turns: float
    max_turns: int
    mean_words: float
    """Of a dialogue."""
    max_words: int
    mean_utterance_words: float
    max_utterance_words: int
    mean_tokens: float | None = None
    """Of a dialogue, with two more for each turn; None without a tokenizer."""
    max_tokens: int | None = None
    mean_persona_tokens: float | None = None
    """Of one speaker's persona, where there is one."""

    def as_json(self) -> dict[str, int | float]:
        """What is known, by name; means with three decimals."""
        told = {key: value for key, value in asdict(self).items() if value is not None}
        return {key: round(value, 3) if isinstance(value, float) else value for key, value in told.items()}


def stats(
    dialogues: Sequence[Dialogue], tokens: Callable[[Sequence[str]], Sequence[int]] | None = None
) -> Stats:
    """Count `dialogues`; `tokens` gives the lengths of texts in tokens."""
    turns = [turn for dialogue in dialogues for turn in dialogue.turns]
    words = [[len(turn.text.split()) for turn in dialogue.turns] for dialogue in dialogues]
    told = [persona for dialogue in dialogues for persona in dialogue.personas if persona]
    lengths: list[int] = []
    personas: list[int] = []
    if tokens:
        texts = [[turn.text for turn in dialogue.turns] for dialogue in dialogues]
        lengths = [sum(tokens(said)) + TURN_EXTRA * len(said) for said in texts]
        personas = [sum(tokens(persona)) for persona in told]
    utterance_words = [count for counts in words for count in counts]
    return Stats(
        dialogues=len(dialogues),
        utterances=len(turns),
        sessions=sum(len(dialogue.sessions) or 1 for dialogue in dialogues),
        persona_sentences=sum(map(len, told)),
        personas=len({frozenset(persona) for persona in told}),
        references=sum(len(turn.references) for turn in turns),
        negatives=sum(len(turn.negatives) + len(turn.adversarial) for turn in turns),
        candidates=sum(len(turn.candidates) for turn in turns),
        knowledge=sum(len(turn.knowledge) for turn in turns),
        vokens=sum(voken != 0 for turn in turns for voken in turn.vokens),
        mean_turns=_mean(map(len, words)),
        max_turns=max(map(len, words), default=0),
        mean_words=_mean(map(sum, words)),
        max_words=max(map(sum, words), default=0),
        mean_utterance_words=_mean(utterance_words),
        max_utterance_words=max(utterance_words, default=0),
        mean_tokens=_mean(lengths) if tokens else None,
        max_tokens=max(lengths, default=0) if tokens else None,
        mean_persona_tokens=_mean(personas) if personas else None,
    )


def _mean(numbers: Iterable[int]) -> float:
    found = list(numbers)
    return sum(found) / len(found) if found else 0.0
