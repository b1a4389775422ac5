"""Worker processes of a build, and their results in the order of the tasks.

The workers are plain subprocesses, not children of `multiprocessing`: those would import the caller's
main module again (with torch, if it uses that), and outlive a parent that is killed.
"""

from __future__ import annotations

import contextlib
import os
import queue
import subprocess
import sys
from collections import deque
from collections.abc import Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path

import pretrain
from pretrain.corpus.encode import Encoded, Encoder, Task
from pretrain.corpus.tokenizer import Tokenizer
from pretrain.corpus.workshop import AGAIN
from pretrain.errors import UserError

AHEAD = 3
"""Tasks per worker that are under way or wait for their turn: the bound on memory."""
PARALLELISM = "TOKENIZERS_PARALLELISM"
"""As many workers as cores run already; threads of the tokenizer library inside each would only fight for
them.
"""


def encode_here(
    tasks: Iterator[Task], tokenizer: Tokenizer, min_tokens: int
) -> Generator[tuple[Task, Encoded], None, None]:
    """Results of `tasks` without any other process or thread."""
    encoder = Encoder(tokenizer, min_tokens)
    before = os.environ.get(PARALLELISM)
    os.environ[PARALLELISM] = "false"
    try:
        for task in tasks:
            yield task, encoder.run(task)
    finally:
        if before is None:
            del os.environ[PARALLELISM]
        else:
            os.environ[PARALLELISM] = before


def encode_in_workers(
    tasks: Iterator[Task], tokenizer: Path, min_tokens: int, workers: int
) -> Generator[tuple[Task, Encoded], None, None]:
    """Results of `tasks`, in their order, from `workers` processes; some tasks are under way at any time.

    Raises UserError when a worker dies.
    """
    with _Pool(tokenizer, min_tokens, workers) as pool:
        waiting: deque[tuple[Task, Future[Encoded]]] = deque()
        for task in tasks:
            waiting.append((task, pool.submit(task)))
            if len(waiting) > AHEAD * workers:
                first, future = waiting.popleft()
                yield first, future.result()
        while waiting:
            first, future = waiting.popleft()
            yield first, future.result()


class _Worker:
    def __init__(self, tokenizer: Path, min_tokens: int):
        self.connection: Connection
        self.connection, other = Pipe()
        command = [sys.executable, "-m", "pretrain.corpus.worker", str(other.fileno()), str(tokenizer)]
        home = str(Path(pretrain.__file__).parents[1])
        path = os.pathsep.join(filter(None, [home, os.environ.get("PYTHONPATH")]))
        self.process = subprocess.Popen(
            [*command, str(min_tokens)],
            pass_fds=[other.fileno()],
            env={**os.environ, "PYTHONPATH": path, PARALLELISM: "false"},
            stdin=subprocess.DEVNULL,
        )
        other.close()

    def run(self, task: Task) -> Encoded:
        try:
            self.connection.send(task)
            result: Encoded = self.connection.recv()
        except (EOFError, ConnectionError):
            raise UserError(
                f"a worker process died (exit code {self.process.wait()}; out of memory?)",
                mend=f"{AGAIN}, perhaps with fewer --workers",
            ) from None
        return result

    def stop(self) -> None:
        self.process.kill()  # it holds nothing that is not done again
        self.process.wait()
        self.connection.close()


class _Pool:
    """One thread waits for each worker, so that none of them waits for this process."""

    def __init__(self, tokenizer: Path, min_tokens: int, workers: int):
        self._workers = [_Worker(tokenizer, min_tokens) for _ in range(workers)]
        self._idle: queue.SimpleQueue[_Worker] = queue.SimpleQueue()
        for worker in self._workers:
            self._idle.put(worker)
        self._threads = ThreadPoolExecutor(workers, "corpus-worker")

    def submit(self, task: Task) -> Future[Encoded]:
        return self._threads.submit(self._run, task)

    def _run(self, task: Task) -> Encoded:
        worker = self._idle.get()
        try:
            return worker.run(task)
        finally:
            self._idle.put(worker)

    def __enter__(self) -> _Pool:
        return self

    def __exit__(self, *unused: object) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)
        for worker in self._workers:
            with contextlib.suppress(OSError):
                worker.stop()
        self._threads.shutdown()
