"""What a reply tells: knowledge, entities, or that it does not know."""

from __future__ import annotations

import statistics
from collections.abc import Collection, Sequence

from finetune.metrics import text
from finetune.metrics.overlap import word_f1
from finetune.metrics.stopwords import FUNCTION_WORDS

SAFE = ("i'm not sure", "i don't know")
"""The replies that the knowledge internalization paper counts as safe."""
SAFE_OFFICIAL = ("i'm not sure", "i do know")
"""What its released code searches for."""


def knowledge_f1(replies: Sequence[str], sentences: Sequence[str]) -> float:
    """F1 of normalized words with one knowledge sentence per reply, mean, in percent."""
    return 100 * statistics.fmean(
        word_f1(text.normalized(reply), text.normalized(sentence))
        for reply, sentence in zip(replies, sentences, strict=True)
    )


def entities(
    replies: Sequence[str], known: Sequence[Collection[str]], stop_words: frozenset[str] = FUNCTION_WORDS
) -> float:
    """Different words of a reply, stop words aside, that are entities of its example; mean over replies."""
    return statistics.fmean(
        len((set(text.normalized(reply)) - stop_words) & {entity.lower() for entity in found})
        for reply, found in zip(replies, known, strict=True)
    )


def safe(replies: Sequence[str], phrases: Sequence[str] = SAFE) -> float:
    """Percent of the replies that hold one of the phrases, however their apostrophes are written."""
    return 100 * statistics.fmean(
        any(phrase in text.with_closed_apostrophes(reply) for phrase in phrases) for reply in replies
    )


def accuracy(selected: Sequence[int], right: Sequence[int | None]) -> float:
    """Percent of the picked numbers that are the right ones; where none is right, picking none (-1) is."""
    return 100 * statistics.fmean(
        mine == (-1 if theirs is None else theirs) for mine, theirs in zip(selected, right, strict=True)
    )


def coverage(reference: str, sentences: Sequence[str]) -> float:
    """Percent of a reference's normalized words that its knowledge sentences hold; 0 for an empty one."""
    told = {word for sentence in sentences for word in text.normalized(sentence)}
    wanted = text.normalized(reference)
    return 100 * statistics.fmean(word in told for word in wanted) if wanted else 0.0
