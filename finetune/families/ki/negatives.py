"""Whose knowledge is the wrong one: for each token with an item, a token of another row with another item.

Drawn on the CPU when a timestep is put together, for each row from a key of its own, so that replay, chunks
of agents and recomputation all see the same ones, and so does any number of ranks (section 3.2 of the paper;
fact sheet, section 3.6).
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Literal

import numpy as np

Key = tuple[int | str, ...]
Negatives = Literal["random", "halves"]
"""`random`: any token of another row; `halves`: that of the same place in the row half a batch away, as in
the released code."""

_ROUNDS = 8
"""Draws of one anchor before the donors are looked through."""


def draw(
    hashes: np.ndarray,
    valid: np.ndarray,
    groups: np.ndarray,
    keys: Sequence[Key],
    how: Negatives = "random",
) -> np.ndarray:
    """The donor of each anchor.

    Args:
        hashes: `[A, T]` int64, equal where knowledge is equal.
        valid: `[A, T]` bool, the tokens with an item: anchors and donors.
        groups: `[A]`; rows of one group are donors to each other.
        keys: per row.

    Returns:
        `[A, T]` int64, flat index of the donor, -1 where there is none.
    """
    found = np.full(hashes.shape, -1, np.int64)
    for group in np.unique(groups):
        rows = np.flatnonzero(groups == group)
        if how == "halves":
            _pair(found, hashes, valid, rows)
        else:
            _scatter(found, hashes, valid, rows, keys)
    return found


def _scatter(
    found: np.ndarray, hashes: np.ndarray, valid: np.ndarray, rows: np.ndarray, keys: Sequence[Key]
) -> None:
    flat, width = hashes.ravel(), hashes.shape[1]
    places = np.concatenate([row * width + np.flatnonzero(valid[row]) for row in rows])
    for row in rows:
        anchors = row * width + np.flatnonzero(valid[row])
        donors = places[places // width != row]
        if not len(anchors) or not len(donors):
            continue
        random = generator(keys[row])
        chosen = donors[random.integers(len(donors), size=len(anchors))]
        for _ in range(_ROUNDS):
            again = np.flatnonzero(flat[chosen] == flat[anchors])
            if not len(again):
                break
            chosen[again] = donors[random.integers(len(donors), size=len(again))]
        for number in np.flatnonzero(flat[chosen] == flat[anchors]):
            others = donors[flat[donors] != flat[anchors[number]]]
            chosen[number] = others[random.integers(len(others))] if len(others) else -1
        found.ravel()[anchors] = chosen


def _pair(found: np.ndarray, hashes: np.ndarray, valid: np.ndarray, rows: np.ndarray) -> None:
    """Row b with row b + n/2; of an odd number the last row has no partner."""
    half, width = len(rows) // 2, hashes.shape[1]
    for one, other in zip(rows[:half], rows[half : 2 * half], strict=True):
        both = valid[one] & valid[other] & (hashes[one] != hashes[other])
        places = np.flatnonzero(both)
        found[one, places] = other * width + places
        found[other, places] = one * width + places


def generator(key: Key) -> np.random.Generator:
    """Equal keys, equal draws, on any machine."""
    digest = hashlib.blake2b(repr(("negatives", *key)).encode(), digest_size=16).digest()
    return np.random.Generator(np.random.Philox(key=int.from_bytes(digest, "little")))
