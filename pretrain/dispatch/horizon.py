"""When a finite pass ends: the timestep after which the agents of all ranks are dry, found by each rank
alone.

Only documents' lengths decide it, so every rank computes the same number without a word to the others. Faults
do not: a document left out can only make a lane end earlier, and its agents then wait as dry rows.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable

import numpy as np

from pretrain.corpus.shardset import Window
from pretrain.dispatch.faults import Fault
from pretrain.dispatch.lanes import I64, LaneQueue, Library


def pass_timesteps(
    library: Library, queue: Callable[[int], LaneQueue], agents_per_lane: int, epochs: int, window: Window
) -> int:
    """Timesteps until the last lane has given its last segment.

    A lane's agents take documents in turn as they become free, so its end is that of greedy list scheduling.
    No lane ends later than (segments - longest) / agents + longest (Graham, 1966): lanes whose bound lies
    below an end already found need not be followed, which leaves few of them.
    """
    segments, longest = lane_loads(library, epochs, window)
    bounds = (segments - longest) // agents_per_lane + longest
    last = 0
    for lane in np.argsort(-bounds, kind="stable").tolist():
        if bounds[lane] <= last:
            break
        last = max(last, _lane_end(queue(lane), agents_per_lane, window))
    return last


def lane_loads(library: Library, epochs: int, window: Window) -> tuple[I64, I64]:
    """Per lane: its segments over `epochs`, and those of its longest document (both int64 `[lanes]`)."""
    lanes = library.lanes
    segments, longest = np.zeros(lanes, np.int64), np.zeros(lanes, np.int64)
    for source, total in enumerate(library.tokens):
        for epoch in range(epochs):
            shards, begins = library.order(source, epoch)
            first, last = begins[:-1] * lanes // total, (begins[1:] - 1) * lanes // total
            for slot, shard in enumerate(shards.tolist()):
                lengths, piece = library.lengths(shard), first[slot : slot + 1]
                if isinstance(lengths, Fault):
                    continue
                if first[slot] != last[slot]:  # only here does it matter where each document lies
                    shuffled = library.shuffled(source, epoch, slot)
                    if isinstance(shuffled, Fault):
                        continue
                    lengths, piece = shuffled.lengths, shuffled.begins * lanes // total
                counts, lane = window.segments(lengths), (piece - epoch) % lanes
                np.add.at(segments, lane, counts if len(lane) > 1 else counts.sum())
                np.maximum.at(longest, lane, counts if len(lane) > 1 else counts.max())
    return segments, longest


def _lane_end(queue: LaneQueue, agents: int, window: Window) -> int:
    free = [0] * agents
    while (drawn := queue.pop()) is not None:
        queue.serve(drawn)
        heapq.heapreplace(free, free[0] + window.segments(drawn.length))
    return max(free)
