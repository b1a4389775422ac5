"""The training process's side of its data workers: start them, take their batches in order, notice deaths.

Workers are fresh interpreters, not forks: a fork would inherit locks held by threads of torch, CUDA or
MLflow. Each has one pipe. When a worker dies, in whatever way, its pipe ends, so that waiting for it
becomes an error and not a hang; when the training process dies, the pipe breaks and the workers end by
themselves. A thread reads the pipes and pads the rows, so that the training finds its next batch ready.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import signal
import subprocess
import sys
import threading
import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from queue import Empty, Queue
from typing import Any, Generic, TypeVar

from pretrain.dispatch.producer import Order, Product
from pretrain.dispatch.worker import DEAF_TO, Failure, Task
from pretrain.errors import EXIT_FAILURE, UserError

READY = 2
"""Batches that wait padded."""

T = TypeVar("T")


class WorkerError(UserError):
    """A data worker ended without being told to."""

    exit_code = EXIT_FAILURE


@dataclass(frozen=True)
class _Worker:
    name: str
    process: subprocess.Popen[bytes]
    pipe: Connection

    def receive(self) -> Product | None:
        """Its next product, None at the end of a finite pass. Raises what it raised, or WorkerError."""
        try:
            message = pickle.loads(self.pipe.recv_bytes())
        except (EOFError, OSError):
            raise self.death() from None
        if not isinstance(message, Failure):
            return message
        if message.error is None:
            raise RuntimeError(f"{self.name} failed:\n{message.what}")
        raise message.error(message.what, where=message.where, mend=message.mend)

    def death(self) -> WorkerError:
        code = self.process.wait()
        cause = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"exited with code {code}"
        cures = {
            -signal.SIGKILL: "mostly for want of memory: raise the job's or lower data.workers, and resume",
            -signal.SIGBUS: "a shard shrank while it was read: run `membart shards verify`, and resume",
        }
        return WorkerError(
            f"{self.name} (pid {self.process.pid}) {cause}",
            where="dispatcher",
            mend=cures.get(
                code, "resume from the last checkpoint; data.workers=0 shows the cause if it lasts"
            ),
        )


class Workers(Generic[T]):
    """`count` workers of one rank, started at `state`; `finish` makes of a product what `take` gives."""

    def __init__(
        self, order: Order, state: dict[str, Any], count: int, prefetch: int, finish: Callable[[Product], T]
    ) -> None:
        names = [f"data worker {number} of {count} of rank {order.rank}" for number in range(count)]
        self._workers: list[_Worker] = []
        self._ready: Queue[T | BaseException | None] = Queue(READY)
        stopping = threading.Event()
        tasks = [Task(order, state, number, count, prefetch) for number in range(count)]
        self._thread = threading.Thread(
            target=_serve,
            args=(self._workers, tasks, finish, self._ready, stopping),
            name="dispatcher",
            daemon=True,
        )
        self._finalizer = weakref.finalize(self, _stop, self._workers, self._thread, self._ready, stopping)
        self._workers.extend(map(_start, names))
        self._thread.start()

    def take(self) -> T | None:
        """The next timestep, None once at the end of a finite pass.

        Raises, once, what a worker raised, or WorkerError where one died.
        """
        item = self._ready.get()
        if isinstance(item, BaseException):
            raise item
        return item

    def close(self) -> None:
        """End the workers and wait for them. They only read: nothing is lost by ending them at once."""
        self._finalizer()

    @property
    def pids(self) -> list[int]:
        """Process ids, by worker number."""
        return [worker.process.pid for worker in self._workers]


def _serve(
    workers: Sequence[_Worker],
    tasks: Sequence[Task],
    finish: Callable[[Product], T],
    ready: Queue[T | BaseException | None],
    stopping: threading.Event,
) -> None:
    """Hand out the tasks, then bring timestep after timestep from the worker whose turn it is."""
    try:
        for worker, task in zip(workers, tasks, strict=True):
            assert worker.process.stdin is not None
            with contextlib.suppress(BrokenPipeError), worker.process.stdin as stdin:
                pickle.dump(task, stdin)  # a worker that died meanwhile is found out by its silence
        timestep = tasks[0].state["timestep"]
        while not stopping.is_set():
            product = workers[timestep % len(workers)].receive()
            ready.put(None if product is None else finish(product))
            if product is None:
                return
            timestep += 1
    except BaseException as error:
        ready.put(error)


def _start(name: str) -> _Worker:
    reader, writer = os.pipe()
    # A signal before the worker can ignore it must not end it: it inherits this mask and lifts it itself.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, DEAF_TO)
    try:
        process = subprocess.Popen(
            [sys.executable, "-c", "from pretrain.dispatch.worker import main; main()", str(writer)],
            stdin=subprocess.PIPE,
            pass_fds=[writer],
            env=_environment(os.environ),
        )
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        os.close(writer)
    return _Worker(name, process, Connection(reader, writable=False))


def _environment(mine: Mapping[str, str]) -> dict[str, str]:
    """This process's environment and import path; one thread for each numerical library."""
    path = os.pathsep.join(entry for entry in sys.path if os.path.exists(entry))
    return {**mine, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}


def _stop(
    workers: Sequence[_Worker], thread: threading.Thread, ready: Queue[Any], stopping: threading.Event
) -> None:
    stopping.set()
    for worker in workers:
        worker.process.kill()
    while thread.is_alive():  # it may be waiting to hand over a batch that nobody wants any more
        with contextlib.suppress(Empty):
            ready.get_nowait()
        thread.join(0.01)
    for worker in workers:
        worker.process.wait()
        worker.pipe.close()
