"""Saving beside training: ranks copy their state, and write it while training goes on.

A thread of each rank writes its files; hashing, writing and syncing all release the interpreter, so that the
training thread does not notice (a process would need the state once more in shared memory, and could not be
forked beside CUDA). What ranks have to agree on - that all files are on the disk, that one rank's disk is
full - travels in one small reduction at each step boundary while a save is in flight: no file is waited for,
no rank is waited for. Then rank 0's thread commits. A save that fails costs that checkpoint, not the run.
"""

from __future__ import annotations

import contextlib
import logging
import shutil
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pretrain import checkpoint, distributed
from pretrain.attempt import Attempt
from pretrain.checkpoint import Draft, Mark
from pretrain.distributed import World
from pretrain.errors import UserError
from pretrain.recipe import CheckpointSection

_DONE, _BUSY, _FAILED = range(3)
_ALIGNMENT = 64
_TEXTS = 1 << 20
"""Bytes allowed for the files that are not tensors."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Contents:
    """One rank's share of a checkpoint, by file name; tensors are those of training, not copies."""

    tensors: Mapping[str, Mapping[str, Tensor]]
    texts: Mapping[str, str] = field(default_factory=dict)
    best: float | None = None
    """Update of a checkpoint that must not be pruned."""

    @property
    def bytes(self) -> int:
        """Of the tensors, each rounded up to where the next one may begin in memory."""
        return sum(_aligned(tensor.nbytes) for file in self.tensors.values() for tensor in file.values())


@dataclass(frozen=True)
class Save:
    """How a save ended."""

    update: int
    path: Path | None
    """The checkpoint; None when it failed."""
    error: str
    """Why it failed."""
    bytes: int
    """Of all ranks' tensors."""
    seconds: float
    """What it takes where it is waited for: copying, writing on the slowest rank, committing."""
    stall: float
    """How long training stood still for it, the next save's waiting for it included."""
    failures: int
    """Saves of this attempt that failed so far."""
    left: Path | None
    """The newest checkpoint there is now."""

    @property
    def summary(self) -> str:
        """For people, in half a line."""
        if self.path is not None:
            return f"saved {self.path}"
        left = f"the last checkpoint is {self.left.name}" if self.left else "there is no checkpoint"
        return f"update {self.update} could not be saved: {self.error}; {left}"

    def metrics(self) -> dict[str, float]:
        """The tracked figures; what only a checkpoint has is left out where there is none."""
        figures = {"checkpoint_stall_seconds": self.stall, "checkpoint_failures": float(self.failures)}
        if self.path is not None:
            figures |= {"checkpoint_seconds": self.seconds, "checkpoint_bytes": float(self.bytes)}
        return figures


@dataclass(frozen=True)
class _Written:
    """What a rank has on the disk, and the seconds that it took."""

    marks: dict[str, Mark]
    seconds: float


@dataclass
class _Flight:
    """A save on its way."""

    draft: Draft
    best: float | None
    bytes: int = 0
    stall: float = 0.0
    seconds: float = 0.0
    files: Future[_Written] = field(default_factory=Future)
    commit: Future[float] | None = None
    """Gives the seconds that it took."""

    @property
    def job(self) -> Future[Any]:
        """What this rank is at."""
        return self.commit or self.files


class Saver:
    """Writes the checkpoints of one attempt; at most one is in flight. Every rank has one."""

    def __init__(self, attempt: Attempt, world: World, policy: CheckpointSection) -> None:
        self.attempt = attempt
        self._world, self._policy = world, policy
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._copy = HostCopy(world.device)
        self._reserving: Future[None] | None = None
        self._flight: _Flight | None = None
        self._ended: list[Save] = []
        self._failures = 0
        self._failing = False

    def reserve(self, size: int) -> None:
        """Get memory for copies of `size` bytes, beside training: that can take longer than the copying."""
        if self._policy.asynchronous:
            self._reserving = self._pool.submit(self._copy.reserve, size)

    def save(self, update: int, contents: Callable[[], Contents]) -> None:
        """Begin a checkpoint of this moment; an earlier one is finished first. Collective.

        Args:
            contents: makes this rank's share; may be collective.

        Raises:
            SupersededError: a newer attempt owns the run.
            UserError: there is no host memory for the copy.
        """
        self._advance(finish=True)
        began = time.perf_counter()
        share = contents()
        flight = _Flight(Draft(self.attempt, update), share.best)
        total = torch.tensor([share.bytes], dtype=torch.int64, device=self._world.device)
        flight.bytes = int(distributed.total(total).item())
        refusal = distributed.on_first(lambda: self._prepare(flight))
        if refusal:
            self._end(flight, refusal)
            return
        if self._policy.asynchronous:
            if self._reserving is not None:
                self._reserving.result()
            share = self._copy.of(share)
        flight.files = self._pool.submit(_write, flight.draft, share)
        flight.stall = flight.seconds = time.perf_counter() - began
        self._flight = flight
        if not self._policy.asynchronous:
            self._advance(finish=True)

    def poll(self) -> list[Save]:
        """Move the save in flight on, without waiting; saves that ended since the last call. Collective.

        Raises:
            SupersededError: a newer attempt owns the run.
        """
        self._advance(finish=False)
        ended, self._ended = self._ended, []
        return ended

    def finish(self) -> Save | None:
        """Wait until nothing is in flight; the newest save that `poll` has not told. Collective.

        Raises:
            SupersededError: a newer attempt owns the run.
        """
        self._advance(finish=True)
        return self._ended[-1] if self._ended else None

    def close(self) -> None:
        """End the thread; what is not committed by now never will be."""
        self._pool.shutdown(wait=True, cancel_futures=True)
        if self._world.is_first:
            with contextlib.suppress(OSError):  # what is half-written stays for the next start to clear up
                self.attempt.staging.rmdir()

    def _prepare(self, flight: _Flight) -> str:
        """Rank 0: make the folder if there is room; else why not."""
        folder = self.attempt.staging.parent
        try:
            needed, free = flight.bytes + _TEXTS, shutil.disk_usage(folder).free
            if needed > free:
                return f"{folder} has {_size(free)} left, it needs {_size(needed)}"
            flight.draft.begin()
        except OSError as error:
            return str(error)
        return ""

    def _advance(self, *, finish: bool) -> None:
        """Take the save in flight as far as it goes; to its end when `finish`."""
        while (flight := self._flight) is not None:
            began = time.perf_counter()
            if finish:
                wait([flight.job])
            state = distributed.largest(_state(flight.job), self._world.device)
            if state == _DONE and flight.commit is None:
                written = distributed.gather(flight.files.result())
                flight.seconds += max(part.seconds for part in written)
                flight.commit = self._begin_commit(flight, written)
                flight.stall += time.perf_counter() - began
            else:
                flight.stall += time.perf_counter() - began
                if state == _FAILED:
                    self._give_up(flight)
                elif state == _DONE:
                    self._end(flight)
            if not finish:
                return

    def _begin_commit(self, flight: _Flight, written: list[_Written]) -> Future[float]:
        if self._world.is_first:
            files = {name: mark for part in written for name, mark in part.marks.items()}
            return self._pool.submit(self._commit, flight, files)
        nothing: Future[float] = Future()
        nothing.set_result(0.0)
        return nothing

    def _commit(self, flight: _Flight, files: dict[str, Mark]) -> float:
        """Rank 0's thread: commit, then prune; the seconds until it was committed."""
        began = time.perf_counter()
        flight.draft.commit(files)
        committed = time.perf_counter()
        try:
            checkpoint.prune(self.attempt, self._policy.keep_last, self._policy.keep_every, flight.best)
        except OSError as error:
            logger.warning("old checkpoints stay: %s", error)
        return committed - began

    def _give_up(self, flight: _Flight) -> None:
        wait([flight.job])  # before the folder goes
        errors = distributed.gather(_error(flight.job))
        self._flight = None
        distributed.on_first(self.attempt.require_newest)
        if self._world.is_first:
            flight.draft.discard()  # at once: the next save will ask for room
        self._end(flight, next(error for error in errors if error))

    def _end(self, flight: _Flight, error: str = "") -> None:
        self._flight = None
        committed = flight.commit is not None and not error
        if flight.commit and committed:
            flight.seconds += flight.commit.result()
        self._failures += not committed
        newest = checkpoint.latest(self.attempt.run_dir)
        save = Save(
            update=flight.draft.update,
            path=flight.draft.final if committed else None,
            error=error,
            bytes=flight.bytes,
            seconds=flight.seconds,
            stall=flight.stall,
            failures=self._failures,
            left=newest.path if newest else None,
        )
        self._ended.append(save)
        if self._world.is_first and self._failing == committed:  # told when it begins and when it is over
            logger.warning("%s", f"{save.summary}; training goes on" if error else "checkpoints work again")
        self._failing = not committed


class HostCopy:
    """Host memory that a rank's share is copied into: kept from save to save, pinned where a GPU copies."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._memory = torch.empty(0, dtype=torch.uint8)

    def reserve(self, size: int) -> None:
        """Have room for so many bytes; what is in the memory is lost if it has to grow.

        Raises:
            UserError: the machine has too little.
        """
        if size <= self._memory.nbytes:
            return
        self._memory = torch.empty(0, dtype=torch.uint8)
        try:
            pinned = self._device.type == "cuda"
            self._memory = torch.empty(size, dtype=torch.uint8, pin_memory=pinned).zero_()
        except RuntimeError:
            raise UserError(
                f"no host memory for a copy of a rank's state, {_size(size)}",
                mend="set checkpoint.asynchronous=false",
            ) from None

    def of(self, share: Contents) -> Contents:
        """The same contents in this memory; training may go on changing its own tensors."""
        self.reserve(share.bytes)
        start = 0
        copies: dict[str, dict[str, Tensor]] = {}
        for name, file in share.tensors.items():
            copies[name] = {}
            for key, tensor in file.items():
                place = self._memory[start : start + tensor.nbytes].view(tensor.dtype).view(tensor.shape)
                copies[name][key] = place.copy_(tensor.detach(), non_blocking=True)
                start += _aligned(tensor.nbytes)
        if self._device.type == "cuda":
            torch.cuda.current_stream(self._device).synchronize()
        return Contents(copies, share.texts, share.best)


def _write(draft: Draft, share: Contents) -> _Written:
    """A rank's thread: its files, on the disk when this returns."""
    began = time.perf_counter()
    marks: dict[str, Mark] = {}
    for name, tensors in share.tensors.items():
        marks |= draft.tensors(name, dict(tensors))
    for name, text in share.texts.items():
        marks |= draft.text(name, text)
    return _Written(marks, time.perf_counter() - began)


def _state(job: Future[Any]) -> int:
    if not job.done():
        return _BUSY
    return _FAILED if job.exception() else _DONE


def _error(job: Future[Any]) -> str:
    error = job.exception()
    return "" if error is None else str(error) or type(error).__name__


def _aligned(size: int) -> int:
    return -(-size // _ALIGNMENT) * _ALIGNMENT


def _size(count: int) -> str:
    return f"{count / 2**30:.2f} GiB" if count >= 2**30 else f"{count / 2**20:.1f} MiB"
