"""From planned rows to their tokens: read each agent's segment, noise the source. Pure NumPy, no padding yet.

What is made here is small (two or four bytes a token) and travels from workers as it is; `layout.py` pads it
where the batch is used.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from pretrain.corpus.shardset import ShardSet, Window
from pretrain.dispatch.lanes import I64
from pretrain.dispatch.plan import Timestep
from pretrain.noise import Noise, Tokens

Objective = Literal["denoise", "recall"]


@dataclass(frozen=True, slots=True)
class Rows:
    """One timestep of A agents; tokens lie end to end, row by row, without specials."""

    source: NDArray[np.integer]
    """`[sum of source_lengths]` what the encoder reads, in the shard set's dtype."""
    source_lengths: I64
    """`[A]`"""
    target: NDArray[np.integer]
    """`[sum of target_lengths]` what the decoder must write."""
    target_lengths: I64
    """`[A]` 0 where nothing is asked of a row."""
    resets: I64
    """`[A]`"""
    document: I64
    """`[A]` ids, -1 where dry."""
    segment: I64
    """`[A]` -1 where dry."""
    epoch: I64
    """`[A]` -1 where dry."""


class Gatherer:
    """Gathers a rank's timesteps; remembers each agent's document, so that it is opened once."""

    def __init__(
        self, shard_set: ShardSet, rows: int, window: Window, noise: Noise | None, objective: Objective
    ) -> None:
        self._shard_set, self._window, self._noise, self._objective = shard_set, window, noise, objective
        self._at: list[tuple[int, int]] = [(-1, -1)] * rows
        self._tokens: list[NDArray[np.integer]] = [np.zeros(0, shard_set.dtype)] * rows
        self._ids = np.full(rows, -1)

    def __call__(self, step: Timestep) -> Rows:
        """Raises ShardError where a document cannot be read."""
        self._open(step)
        target, target_lengths = source, source_lengths = self._cut(step.length, step.segment)
        if self._objective == "recall":
            target, target_lengths = self._cut(step.length, step.segment - 1)
        if self._noise is not None:
            source, source_lengths = self._noise(source, source_lengths, step.epoch, self._ids, step.segment)
        dtype = self._shard_set.dtype
        return Rows(
            source.astype(dtype),
            source_lengths,
            target.astype(dtype),
            target_lengths,
            step.resets,
            self._ids.copy(),
            step.segment,
            step.epoch,
        )

    def _open(self, step: Timestep) -> None:
        for row, at in enumerate(zip(step.shard.tolist(), step.document.tolist(), strict=True)):
            if at != self._at[row]:
                shard, document = at
                if shard >= 0:
                    self._tokens[row] = self._shard_set.tokens(shard, document)
                    self._ids[row] = int(self._shard_set.index(shard).documents[document])
                else:
                    self._tokens[row], self._ids[row] = self._tokens[row][:0], -1
                self._at[row] = at

    def _cut(self, length: I64, segment: I64) -> tuple[Tokens, I64]:
        """Tokens of a segment of each row, end to end, and how many of each `[rows]`; none for segment -1."""
        start, stop = self._window.bounds(length, segment)
        start, stop = np.maximum(start, 0), np.where(segment < 0, 0, stop)
        lengths = np.maximum(stop - start, 0)
        pieces = [
            tokens[a:b] for tokens, a, b in zip(self._tokens, start.tolist(), stop.tolist(), strict=True)
        ]
        return np.concatenate(pieces).astype(np.int32), lengths
