"""From the items of words to the items of a model's tokens: fact sheet, section 3.5.

Words are known by characters of the original text, so any tokenizer will do: a token takes the item of the
word that it shares most characters with.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np

from finetune.knowledge.annotations import Spans
from finetune.knowledge.words import words

NONE = -1
"""Item of a token without knowledge."""

Policy = Literal["all", "first"]
"""Which tokens of a word carry its item: all, or only the first one."""


def token_items(
    text: str, tokens: Sequence[tuple[int, int]], known: Spans, policy: Policy = "all"
) -> np.ndarray:
    """The item of each token, `[n]` int64, `NONE` without.

    A word without an item of its own (a stop word) competes for its characters like any other: a token that
    is mostly a stop word has no item. Tokens without characters have none either.

    Args:
        tokens: character offsets into `text`, in order; white space in them counts for nothing.
    """
    pieces = np.array(tokens, np.int64).reshape(-1, 2)
    found = np.full(len(pieces), NONE, np.int64)
    starts, ends, items = _with_unknown(text, known)
    if not len(pieces) or not len(starts):
        return found
    overlap = np.minimum(pieces[:, 1, None], ends) - np.maximum(pieces[:, 0, None], starts)
    owner = overlap.argmax(axis=1)
    touches = overlap.max(axis=1) > 0
    if policy == "first":
        later = np.zeros(len(pieces), bool)
        places = np.flatnonzero(touches)
        later[places[1:]] = owner[places[1:]] == owner[places[:-1]]
        touches &= ~later
    found[touches] = items[owner[touches]]
    return found


def _with_unknown(text: str, known: Spans) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Starts, ends and items of the words with knowledge and of all that do not overlap one of them."""
    starts, ends = known.starts.astype(np.int64), known.ends.astype(np.int64)
    rest = [
        (word.start, word.end)
        for word in words(text)
        if not bool(((starts < word.end) & (ends > word.start)).any())
    ]
    others = np.array(rest, np.int64).reshape(-1, 2)
    items = np.concatenate([known.items.astype(np.int64), np.full(len(others), NONE)])
    return np.concatenate([starts, others[:, 0]]), np.concatenate([ends, others[:, 1]]), items
