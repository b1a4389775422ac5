"""Random numbers as a function of what they are for: no state, no order, equal on every machine.

A number is `mix(key + place * GOLDEN)`: place number `place` of SplitMix64 (Steele, Lea and Flood, 2014)
seeded with a 64-bit key. Only wrapping integer arithmetic is used, so that neither NumPy's version nor its
generators, nor the batch in which a number is asked for, can change it.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

U64 = NDArray[np.uint64]
Part = int | NDArray[np.integer]

_GOLDEN = 0x9E3779B97F4A7C15
_FIRST, _SECOND = 0xBF58476D1CE4E5B9, 0x94D049BB133111EB
_WORD = (1 << 64) - 1
_A, _B, _SHIFTS = np.uint64(_FIRST), np.uint64(_SECOND), (np.uint64(30), np.uint64(27), np.uint64(31))


def fold(*parts: Part) -> U64:
    """Keys `[n]` from integers and integer arrays `[n]`; every part and its place matter."""
    head = 0
    for number, part in enumerate(parts):
        if not isinstance(part, int):
            return _fold_arrays(np.array([head], np.uint64), parts[number:])
        head = _mix_int(head * _SECOND + part + _GOLDEN & _WORD)
    return np.array([head], np.uint64)


def draw(keys: U64, stream: int, count: int) -> U64:
    """`[n, count]` uniform 64-bit numbers for each of `keys [n]`, below 2^32 of them in each stream.

    Streams are stretches of the key's sequence that do not meet; the first columns do not depend on `count`.
    """
    return _mix(keys[:, None] + _places(stream, count))


def draw_short(keys: U64, stream: int, count: int, bits: Literal[16, 32]) -> NDArray[Any]:
    """`draw`, with each number cut into shorter ones, low bits first: for where 16 or 32 random bits do."""
    whole = draw(keys, stream, -(-count * bits // 64))
    return whole.astype("<u8", copy=False).view(f"<u{bits // 8}")[:, :count]


def permutation(count: int, *parts: int) -> NDArray[np.int64]:
    """A permutation of `range(count)`, a function of `parts` alone."""
    return np.argsort(draw(fold(*parts), 0, count)[0], kind="stable")


@lru_cache(maxsize=64)
def _places(stream: int, count: int) -> U64:
    first = (stream << 32) + 1
    return np.arange(first, first + count, dtype=np.uint64) * np.uint64(_GOLDEN)


def _fold_arrays(key: U64, parts: tuple[Part, ...]) -> U64:
    for part in parts:
        value = np.uint64(part & _WORD) if isinstance(part, int) else part.astype(np.uint64)
        key = _mix(key * _B + value + np.uint64(_GOLDEN))
    return key


def _mix(value: U64) -> U64:
    """SplitMix64's finaliser, in place."""
    value ^= value >> _SHIFTS[0]
    value *= _A
    value ^= value >> _SHIFTS[1]
    value *= _B
    value ^= value >> _SHIFTS[2]
    return value


def _mix_int(value: int) -> int:
    value = (value ^ value >> 30) * _FIRST & _WORD
    value = (value ^ value >> 27) * _SECOND & _WORD
    return value ^ value >> 31
