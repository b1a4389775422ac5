"""The plan: which agent holds which segment of which document at which timestep.

A plan is a function of (documents' lengths, seed, lanes, agents per lane). Each lane advances by itself, so a
rank plans its own lanes and needs to hear from nobody; and a state says for each lane where it stands, so
that any number of ranks can take the lanes up again. Pure NumPy: no payload is read here, no torch imported.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from pretrain.corpus.shardset import Window
from pretrain.dispatch.faults import Fault, Tolerance
from pretrain.dispatch.horizon import pass_timesteps
from pretrain.dispatch.lanes import I64, LaneQueue, Library, MixtureUnit, Plannable
from pretrain.errors import CheckpointError, ShardError, UserError

Inspect = Callable[[int, int], Fault | None]
"""(shard, document) -> what is wrong with it, if anything: a fault sends the agent on to the next one."""


@dataclass(frozen=True, slots=True)
class Timestep:
    """One row for each of the rank's agents, by (lane, agent); all int64 `[A]`, -1 where an agent is dry."""

    shard: I64
    document: I64
    """Number of the document in its shard."""
    length: I64
    """Body tokens of the whole document; 0 where dry."""
    epoch: I64
    segment: I64

    @property
    def resets(self) -> I64:
        """1 where memory starts afresh: at a document's first segment, and in dry rows."""
        return (self.segment <= 0).astype(np.int64)


def lanes_of(rank: int, world_size: int, lanes: int) -> range:
    """The lanes that a rank owns. Raises UserError, naming world sizes that fit, where they do not divide."""
    if not 0 <= rank < world_size:
        raise UserError(f"rank {rank} does not exist in a world of {world_size}")
    if lanes % world_size:
        sizes = [size for size in range(1, lanes + 1) if lanes % size == 0]
        near = [max(size for size in sizes if size < world_size)]
        near += [size for size in sizes if size > world_size][:1]
        fitting = " or ".join(map(str, near))
        raise UserError(
            f"{world_size} ranks cannot share {lanes} lanes evenly",
            where="dispatcher",
            mend=f"run {fitting} ranks, or set data.lanes to a multiple of {world_size}",
        )
    share = lanes // world_size
    return range(rank * share, (rank + 1) * share)


def mixture_weights(
    library: Library, mixture: Mapping[str, float] | None, unit: MixtureUnit, epochs: int | None
) -> list[float]:
    """One weight for each source of the library, summing to 1; by default each source's natural share.

    Raises UserError for unknown, missing or negative weights, and for weights over a finite number of epochs,
    which pass every document exactly once whatever the wish.
    """
    if mixture is None:
        amounts = library.tokens if unit == "tokens" else library.documents
        return [amount / sum(amounts) for amount in amounts]
    known = ", ".join(library.sources)
    if epochs is not None:
        raise UserError(
            "mixture weights and a finite number of epochs contradict each other",
            where="data.mixture",
            mend="an epoch passes every document once: leave the weights out, or epochs",
        )
    if set(mixture) != set(library.sources):
        odd = sorted(set(mixture) ^ set(library.sources))
        raise UserError(
            f"the mixture and the shard set differ in {', '.join(odd)}",
            where="data.mixture",
            mend=f"give one weight (0 leaves a source out) to each of: {known}",
        )
    total = float(sum(mixture.values()))
    if not 0 < total < float("inf") or min(mixture.values()) < 0:
        raise UserError(
            "mixture weights must be zero or more, and not all zero",
            where="data.mixture",
            mend=f"sources: {known}",
        )
    return [mixture[source] / total for source in library.sources]


class Plan:
    """The plan of one rank. `step()` gives the next timestep; `state()` and `load()` are its bookmark."""

    def __init__(
        self,
        corpus: Plannable,
        *,
        lanes: int,
        agents_per_lane: int,
        seed: int,
        window: Window,
        split: str = "train",
        epochs: int | None = None,
        mixture: Mapping[str, float] | None = None,
        mixture_unit: MixtureUnit = "tokens",
        rank: int = 0,
        world_size: int = 1,
        tolerance: Tolerance | None = None,
        inspect: Inspect | None = None,
    ) -> None:
        """Raises UserError for a layout, split or mixture that cannot be.

        With a `tolerance` faults are survived; `inspect` then sees every document before an agent takes it.
        """
        for name, value in (("lanes", lanes), ("agents_per_lane", agents_per_lane), ("epochs", epochs)):
            if value is not None and value < 1:
                raise UserError(f"{name} must be at least 1, got {value}", where="dispatcher")
        self.window, self.epochs, self.agents_per_lane = window, epochs, agents_per_lane
        self.lanes = lanes_of(rank, world_size, lanes)
        self.library = Library(corpus, split, seed, lanes, tolerance)
        self.inspect = inspect
        self.weights = mixture_weights(self.library, mixture, mixture_unit, epochs)
        self.unit = mixture_unit
        self.queues = [self._queue(lane) for lane in self.lanes]
        self.timestep = 0
        rows = len(self.lanes) * agents_per_lane
        self._shard, self._document = np.full(rows, -1), np.full(rows, -1)
        self._epoch, self._segment = np.full(rows, -1), np.full(rows, -1)
        self._length, self._count = np.zeros(rows, np.int64), np.zeros(rows, np.int64)
        self._dry, self._unseen = np.zeros(rows, bool), False

    def _queue(self, lane: int) -> LaneQueue:
        return LaneQueue(self.library, lane, self.weights, self.unit, self.epochs)

    @property
    def rows(self) -> int:
        """Agents of this rank."""
        return len(self._shard)

    @cached_property
    def timesteps(self) -> int | None:
        """Timesteps of the whole pass, equal on all ranks; None if it never ends. Reads every index."""
        if self.epochs is None:
            return None
        return pass_timesteps(self.library, self._queue, self.agents_per_lane, self.epochs, self.window)

    def step(self) -> Timestep | None:
        """Advance all agents by one segment; those that end their document pop the next one, by agent number.

        None once a finite pass is over on all ranks. Raises ShardError for faults beyond the tolerance.
        """
        if self._unseen:
            self._look_again()
        self._segment += ~self._dry
        for row in np.flatnonzero((self._segment >= self._count) & ~self._dry).tolist():
            self._pop(row)
        if self._dry.all() and self.timesteps is not None and self.timestep >= self.timesteps:
            return None
        self.timestep += 1
        return Timestep(
            self._shard.copy(),
            self._document.copy(),
            self._length.copy(),
            self._epoch.copy(),
            self._segment.copy(),
        )

    def _pop(self, row: int) -> None:
        queue = self.queues[row // self.agents_per_lane]
        while (drawn := queue.pop()) is not None:
            fault = self.inspect(drawn.shard, drawn.document) if self.inspect else None
            if fault is None:
                queue.serve(drawn)
                self._place(row, drawn.shard, drawn.document, drawn.epoch, 0, drawn.length)
                return
            queue.refuse(drawn, fault)
        self._place(row, -1, -1, -1, -1, 0)
        self._dry[row] = True

    def _place(self, row: int, shard: int, document: int, epoch: int, segment: int, length: int) -> None:
        self._shard[row], self._document[row], self._epoch[row] = shard, document, epoch
        self._segment[row], self._length[row] = segment, length
        self._count[row] = self.window.segments(length)

    def _look_again(self) -> None:
        """After a resume: an agent whose half-read document has become unreadable goes on to the next one."""
        self._unseen = False
        for row, (shard, document) in enumerate(
            zip(self._shard.tolist(), self._document.tolist(), strict=True)
        ):
            fault = self.inspect(shard, document) if self.inspect and shard >= 0 else None
            if fault is not None:
                self.queues[row // self.agents_per_lane].faults.append(fault)
                self._count[row] = 0

    def faults(self) -> list[Fault]:
        """What was left out since the last call, in the order of lanes."""
        found = [fault for queue in self.queues for fault in queue.faults]
        for queue in self.queues:
            queue.faults.clear()
        return found

    def state(self) -> dict[str, Any]:
        """Where each lane of this rank stands: plain JSON of O(lanes * agents) integers.

        A lane has what `LaneQueue.state` gives, and in `agents` for each agent the shard, document, epoch and
        segment that it gave last.
        """
        agents = np.stack([self._shard, self._document, self._epoch, self._segment], axis=1)
        by_lane = agents.reshape(len(self.lanes), self.agents_per_lane, 4).tolist()
        return {
            "timestep": self.timestep,
            "lanes": {
                str(lane): {**queue.state(), "agents": rows}
                for lane, queue, rows in zip(self.lanes, self.queues, by_lane, strict=True)
            },
        }

    def load(self, state: Mapping[str, Any]) -> None:
        """Stand where `state` was taken; it may hold more lanes than this rank's. Seeks, never replays.

        Raises CheckpointError where a lane is missing.
        """
        missing = [lane for lane in self.lanes if str(lane) not in state["lanes"]]
        if missing:
            raise CheckpointError(
                f"{len(missing)} of {len(self.lanes)} lanes have no data position, first lane {missing[0]}",
                where="dispatcher state",
                mend="merge the states of all ranks before loading",
            )
        self._dry[:] = False
        for number, lane in enumerate(self.lanes):
            part = state["lanes"][str(lane)]
            self.queues[number].load(part)
            for agent, (shard, document, epoch, segment) in enumerate(part["agents"]):
                row = number * self.agents_per_lane + agent
                self._place(row, shard, document, epoch, segment, self._length_of(shard, document))
        self.timestep, self._unseen = state["timestep"], True

    def _length_of(self, shard: int, document: int) -> int:
        """Body tokens of a document; 0, so that its agent goes on, where the index has become unreadable."""
        if shard < 0:
            return 0
        try:
            return int(self.library.corpus.lengths(shard)[document])
        except ShardError:
            if self.library.tolerance is None:
                raise
            return 0


def merge_states(states: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """One state of all lanes from the states of the ranks.

    Raises CheckpointError where they are of different moments or runs.
    """
    merged: dict[str, Any] = {}
    for state in states:
        if not merged:
            merged = {**state, "lanes": dict(state["lanes"])}
            continue
        for key in merged:
            if key != "lanes" and merged[key] != state.get(key):
                raise CheckpointError(
                    f"the ranks' data positions differ in {key}: {merged[key]} and {state.get(key)}",
                    where="dispatcher state",
                    mend="save all ranks at one step",
                )
        merged["lanes"].update(state["lanes"])
    return merged


def lost_documents(state: Mapping[str, Any]) -> int:
    """Documents that the lanes of `state` have left out since the beginning of the data, for faults."""
    return sum(lane["faults"][0] for lane in state["lanes"].values())


def realised_mixture(state: Mapping[str, Any], sources: Sequence[str]) -> dict[str, dict[str, float]]:
    """Per source: documents and tokens begun by the lanes of `state`, and its share of the tokens.

    A source that has no document in the split counts nothing.
    """
    lanes = [lane["sources"] for lane in state["lanes"].values()]
    served = {
        source: [sum(lane[source][column] for lane in lanes if source in lane) for column in (3, 4)]
        for source in sources
    }
    total = max(sum(tokens for _, tokens in served.values()), 1)
    return {
        source: {"documents": documents, "tokens": tokens, "share": tokens / total}
        for source, (documents, tokens) in served.items()
    }
