"""Each lane's endless, seekable queue of documents. Pure NumPy: no payload is read, no torch imported.

For every source and epoch the source's shards stand in a seeded order, and the documents inside each shard in
another. Laid end to end they are a line of N tokens, cut into `lanes` pieces of N / lanes; a piece owns the
documents whose first token falls into it. So lanes are balanced to about one document however shards and
lanes compare, and a lane reads the index of the shard it stands in and of no other. Pieces go round the lanes
from epoch to epoch: a lane whose piece one giant document has swallowed gets its turn in a later epoch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from pretrain.counter import permutation
from pretrain.dispatch.faults import Fault, Tolerance
from pretrain.errors import ShardError, UserError

I64 = NDArray[np.int64]
MixtureUnit = Literal["tokens", "documents"]

_SHARD_ORDER, _DOCUMENT_ORDER = 1, 2
ORDERS_KEPT = 1 << 16
"""Places in epochs' orders of shards that are remembered; lanes of a small set spread over many epochs."""


class ShardFacts(Protocol):
    """What the manifest says of one shard."""

    @property
    def name(self) -> str: ...
    @property
    def source(self) -> str: ...
    @property
    def documents(self) -> int: ...
    @property
    def tokens(self) -> int: ...


class Plannable(Protocol):
    """What planning needs of a shard set: `pretrain.corpus.shardset.ShardSet`, or anything of that shape."""

    @property
    def shards(self) -> Sequence[ShardFacts]: ...
    def select(self, split: str) -> Sequence[int]:
        """Numbers of the shards of a split."""

    def lengths(self, shard: int) -> NDArray[np.integer]:
        """`[documents]`: body tokens of each document of a shard."""


@dataclass(frozen=True, slots=True)
class Drawn:
    """One document taken from a queue: where it is, in which epoch of its source, its body tokens."""

    source: int
    shard: int
    document: int
    epoch: int
    length: int


class Shuffled(NamedTuple):
    """The documents of one shard in an epoch's order; all int64 `[documents]`."""

    documents: I64
    lengths: I64
    begins: I64
    """The line's token at which each document begins."""


class Library:
    """The documents of one split in the order of every epoch; shared by the lanes of a rank."""

    def __init__(
        self, corpus: Plannable, split: str, seed: int, lanes: int, tolerance: Tolerance | None = None
    ) -> None:
        """Raises UserError where the split has no tokens. Without a tolerance every fault is an error."""
        self.corpus, self.seed, self.lanes, self.tolerance = corpus, seed, lanes, tolerance
        shards = [number for number in corpus.select(split) if corpus.shards[number].tokens]
        if not shards:
            raise UserError(
                f"the split {split!r} has no documents",
                where="shard set",
                mend="build a larger shard set, or one with a held-out share",
            )
        self.sources = tuple(sorted({corpus.shards[number].source for number in shards}))
        self.members = [
            np.array([number for number in shards if corpus.shards[number].source == source], np.int64)
            for source in self.sources
        ]
        self.tokens = [sum(corpus.shards[n].tokens for n in members.tolist()) for members in self.members]
        self.documents = [
            sum(corpus.shards[n].documents for n in members.tolist()) for members in self.members
        ]
        kept = max(4 * len(self.sources), ORDERS_KEPT // len(shards))
        self.order = lru_cache(maxsize=kept)(self._order)

    def _order(self, source: int, epoch: int) -> tuple[I64, I64]:
        """The shards of an epoch in order, and the token at which each begins (and the last one ends)."""
        members = self.members[source]
        shards = members[permutation(len(members), self.seed, _SHARD_ORDER, source, epoch)]
        sizes = np.array([self.corpus.shards[number].tokens for number in shards.tolist()], np.int64)
        return shards, np.concatenate([np.zeros(1, np.int64), np.cumsum(sizes)])

    def share(self, source: int, epoch: int, lane: int) -> tuple[int, int]:
        """The tokens [start, stop) of the epoch's line that belong to `lane`."""
        piece, total = (lane + epoch) % self.lanes, self.tokens[source]
        return -(-piece * total // self.lanes), -(-(piece + 1) * total // self.lanes)

    def shuffled(self, source: int, epoch: int, slot: int) -> Shuffled | Fault:
        """The documents of the shard at `slot`, or the fault that hides them where faults are tolerated.

        Raises ShardError where they are not: the index is unreadable or contradicts the manifest.
        """
        shards, begins = self.order(source, epoch)
        shard = int(shards[slot])
        lengths = self.lengths(shard)
        if isinstance(lengths, Fault):
            return lengths
        documents = permutation(len(lengths), self.seed, _DOCUMENT_ORDER, shard, epoch)
        lengths = lengths[documents]
        return Shuffled(documents, lengths, begins[slot] + np.cumsum(lengths) - lengths)

    def lengths(self, shard: int) -> I64 | Fault:
        """Body tokens of a shard's documents in file order `[documents]`; faults as in `shuffled`."""
        try:
            lengths = np.asarray(self.corpus.lengths(shard), np.int64)
            counted, listed = int(lengths.sum()), self.corpus.shards[shard].tokens
            if counted != listed:
                raise ShardError(
                    f"the index counts {counted} tokens, the manifest {listed}",
                    where=self.corpus.shards[shard].name,
                    mend="rebuild this shard or restore it from a copy",
                )
        except ShardError as error:
            if self.tolerance is None:
                raise
            return Fault(shard, -1, str(error))
        return lengths


Lose = Callable[[Fault, int], None]
"""Told of each fault and of the number of documents that went with it."""


class SourceQueue:
    """One lane's way through one source: epoch, slot in the epoch's order of shards, place in that shard."""

    def __init__(self, library: Library, source: int, lane: int, epochs: int | None, lose: Lose) -> None:
        self.library, self.source, self.lane, self.epochs, self.lose = library, source, lane, epochs, lose
        self.epoch, self.slot, self.place = 0, -1, 0
        self._open: Shuffled | None = None

    def seek(self, epoch: int, slot: int, place: int) -> None:
        """Stand where another queue stood; costs one shard index, whatever the position."""
        self.epoch, self.slot, self.place, self._open = epoch, slot, place, None

    def pop(self) -> Drawn | None:
        """The next document that has tokens, or None after the last epoch."""
        while (shuffled := self._open or self._enter()) is not None:
            while self.place < self._stop:
                at = self.place
                self.place += 1
                length = int(shuffled.lengths[at])
                if length:
                    document = int(shuffled.documents[at])
                    return Drawn(self.source, self._shard, document, self.epoch, length)
            self._leave()
        return None

    def abandon(self, fault: Fault) -> None:
        """Give up what this lane has left of the shard it stands in, the document just popped included."""
        remaining = 1 + self._stop - self.place
        self._leave()
        self.lose(fault, remaining)

    def _leave(self) -> None:
        self.slot, self.place, self._open = self.slot + 1, 0, None

    def _enter(self) -> Shuffled | None:
        """Open the shard of the current slot, going on to the next epoch where the share ends."""
        while self.epochs is None or self.epoch < self.epochs:
            shards, begins = self.library.order(self.source, self.epoch)
            start, stop = self.library.share(self.source, self.epoch, self.lane)
            if self.slot < 0:
                self.slot, self.place = int(np.searchsorted(begins, start, "right")) - 1, 0
            if self.slot >= len(shards) or begins[self.slot] >= stop:
                self.epoch, self.slot = self.epoch + 1, -1
                continue
            self._shard = int(shards[self.slot])
            found = self.library.shuffled(self.source, self.epoch, self.slot)
            if isinstance(found, Fault):
                begin, end = int(begins[self.slot]), int(begins[self.slot + 1])
                share = (min(stop, end) - max(start, begin)) / (end - begin)
                self._leave()
                self.lose(found, max(round(share * self.library.corpus.shards[found.shard].documents), 1))
                continue
            self.place = max(self.place, int(np.searchsorted(found.begins, start, "left")))
            self._stop = int(np.searchsorted(found.begins, stop, "left"))
            self._open = found
            return found
        return None


class LaneQueue:
    """All sources of one lane, interleaved so that the served shares follow the weights.

    The next document comes from the source that is furthest behind its weight (the lowest number in a tie),
    so the mixture holds at every moment to within one document of each source, and no dice are thrown.
    """

    def __init__(
        self, library: Library, lane: int, weights: Sequence[float], unit: MixtureUnit, epochs: int | None
    ) -> None:
        self.library, self.lane, self.weights, self.unit = library, lane, weights, unit
        self.queues = [
            SourceQueue(library, source, lane, epochs, self._lose) for source in range(len(library.sources))
        ]
        self.documents, self.tokens = [0] * len(self.queues), [0] * len(self.queues)
        self.lost = self.in_a_row = 0
        self.faults: list[Fault] = []
        """Faults since the caller last cleared the list."""
        self._rest()

    def _rest(self) -> None:
        self._running = [source for source, weight in enumerate(self.weights) if weight > 0]

    def pop(self) -> Drawn | None:
        """The lane's next document, not yet counted as served; None when every source has ended."""
        served = self.tokens if self.unit == "tokens" else self.documents
        while self._running:
            total = sum(served)
            source = max(self._running, key=lambda number: self.weights[number] * total - served[number])
            drawn = self.queues[source].pop()
            if drawn is not None:
                return drawn
            self._running.remove(source)
        return None

    def serve(self, drawn: Drawn) -> None:
        """Count a document towards the mixture."""
        self.documents[drawn.source] += 1
        self.tokens[drawn.source] += drawn.length
        self.in_a_row = 0

    def refuse(self, drawn: Drawn, fault: Fault) -> None:
        """Leave out the document just popped, and where the whole shard is at fault all of it that is left.

        Raises ShardError when the lane has lost more than is tolerated.
        """
        if fault.document < 0:
            self.queues[drawn.source].abandon(fault)
        else:
            self._lose(fault, 1)

    def _lose(self, fault: Fault, documents: int) -> None:
        self.lost += documents
        self.in_a_row += 1
        self.faults.append(fault)
        share = sum(self.library.documents) / self.library.lanes
        if self.library.tolerance is not None:
            so_far = max(share, sum(self.documents) + self.lost)
            self.library.tolerance.check(self.lane, self.lost, self.in_a_row, so_far, fault)

    def state(self) -> dict[str, Any]:
        """`sources`: epoch, slot, place, documents and tokens served, by name; `faults`: lost, in a row."""
        return {
            "sources": {
                name: [queue.epoch, queue.slot, queue.place, documents, tokens]
                for name, queue, documents, tokens in zip(
                    self.library.sources, self.queues, self.documents, self.tokens, strict=True
                )
            },
            "faults": [self.lost, self.in_a_row],
        }

    def load(self, state: Mapping[str, Any]) -> None:
        """Stand where `state` was taken."""
        for source, name in enumerate(self.library.sources):
            epoch, slot, place, self.documents[source], self.tokens[source] = state["sources"][name]
            self.queues[source].seek(epoch, slot, place)
        self.lost, self.in_a_row = state["faults"]
        self._rest()
