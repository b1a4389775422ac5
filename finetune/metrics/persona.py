"""P.Distance: how near a reply's keywords are to a persona's in a space of word vectors. Higher is nearer."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Iterable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from finetune.metrics import text
from pretrain.errors import UserError

FREQUENT = 100
"""So many of the most frequent words of the training data are no keywords."""


def persona_distance(
    replies: Sequence[str], personas: Sequence[Sequence[str]], vectors: Any, dull: frozenset[str]
) -> float | None:
    """Cosine of each persona keyword with its nearest reply keyword, mean over the former, mean over pairs.

    A keyword is a word of letters that has a vector and is not dull; each counts once. A persona without
    keywords leaves its pair out, a reply without them gives 0.

    Args:
        vectors: gensim's `KeyedVectors`.
        dull: words that are no keywords: stop words and frequent ones.

    Returns:
        None if every pair is left out.
    """
    found = []
    for reply, persona in zip(replies, personas, strict=True):
        wanted, said = (_unit_rows(texts, vectors, dull) for texts in (persona, [reply]))
        if len(wanted):
            found.append(float((wanted @ said.T).max(axis=1).mean()) if len(said) else 0.0)
    return statistics.fmean(found) if found else None


def frequent_words(texts: Iterable[str], number: int = FREQUENT) -> list[str]:
    """The most frequent words of letters, most frequent first, ties by spelling."""
    counts = Counter(word for one in texts for word in text.letters(one))
    return [word for word, _ in sorted(counts.items(), key=lambda item: (-item[1], item[0]))[:number]]


@lru_cache(maxsize=1)
def read_vectors(path: Path) -> Any:
    """Word vectors as gensim's `KeyedVectors`.

    Args:
        path: word2vec binary (`.bin`, `.bin.gz`), gensim's own (`.kv`), else text (word2vec or GloVe).

    Raises:
        ImportError: gensim is not installed.
        UserError: no such file, or not of that form.
    """
    from gensim.models import KeyedVectors

    try:
        if path.suffix == ".kv":
            return KeyedVectors.load(str(path), mmap="r")
        if path.name.removesuffix(".gz").endswith(".bin"):
            return KeyedVectors.load_word2vec_format(str(path), binary=True)
        return KeyedVectors.load_word2vec_format(str(path), no_header=not _has_header(path))
    except (OSError, ValueError, EOFError) as error:
        mend = "give word2vec binary (.bin), text, or gensim's .kv"
        raise UserError(f"cannot be read as word vectors: {error}", where=str(path), mend=mend) from None


def _has_header(path: Path) -> bool:
    from gensim.utils import open as open_any

    with open_any(str(path), "rb") as lines:
        return len(lines.readline().split()) == 2


def _unit_rows(texts: Sequence[str], vectors: Any, dull: frozenset[str]) -> np.ndarray[Any, Any]:
    """`[keywords, dimensions]`, each of length 1."""
    keywords = {word for one in texts for word in text.letters(one) if word in vectors and word not in dull}
    rows = [vectors.get_vector(word, norm=True) for word in sorted(keywords)]
    return np.stack(rows) if rows else np.empty((0, 0))
