"""Ranks that start in no time: forked from one process that has torch and DeepSpeed imported already.

They are processes of their own, with their own memory, signals and exit codes; only the seconds of importing
are spent once instead of once a rank. The process is Python's own fork server.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import random
import shutil
import signal
import socket
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing import connection
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

from tests.support.folders import temporary

REPOSITORY = Path(__file__).parent.parent.parent
HEAVY = [
    "finetune.job",
    "pretrain.launch",
    "pretrain.pretraining",
    "pretrain.tracking",
    "pretrain.train",
    "deepspeed.runtime.zero.muon.original_muon",  # imported by every initialize(), with torch's compiler
]
Fault = Callable[[int], None]
"""Called with its rank in a fresh rank, before anything else."""


@dataclass
class Ranks:
    """Running ranks of one job; `wait` collects them."""

    processes: list[ForkServerProcess]
    outputs: list[Path]

    def wait(self, timeout: float = 200) -> list[tuple[int | None, str]]:
        """Exit code (negative: the signal that killed it) and output of every rank.

        Where one rank is killed, the others are killed as well, as with the node under them. Past `timeout`
        seconds all are, and who had not ended has no exit code.
        """
        deadline = time.monotonic() + timeout
        pending = list(self.processes)
        while pending and time.monotonic() < deadline:
            connection.wait([process.sentinel for process in pending], deadline - time.monotonic())
            if any(process.exitcode == -signal.SIGKILL for process in pending):
                self.kill()
            pending = [process for process in pending if process.exitcode is None]
        codes = [process.exitcode for process in self.processes]
        self.kill()
        said = [path.read_text() for path in self.outputs]
        shutil.rmtree(self.outputs[0].parent)
        return list(zip(codes, said, strict=True))

    def kill(self) -> None:
        for process in self.processes:
            process.kill()
            process.join()


def start(
    target: Callable[..., int | None], arguments: tuple[Any, ...], world_size: int, fault: Fault | None = None
) -> Ranks:
    """`target(*arguments)` once per rank, with the variables that torchrun would set.

    Both `target` and `fault` are found by name in a module that a rank can import.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(HEAVY)
    port = str(_free_port())
    folder = temporary("ranks")
    ranks = Ranks([], [])
    before = {name: os.environ.get(name) for name in ("OMP_NUM_THREADS", "PYTHONPATH")}
    os.environ.update(OMP_NUM_THREADS="1", PYTHONPATH=str(REPOSITORY))  # for the server, when it starts
    try:
        for rank in range(world_size):
            variables = {
                "RANK": str(rank),
                "WORLD_SIZE": str(world_size),
                "LOCAL_RANK": str(rank),
                "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": port,
            }
            output = folder / f"rank{rank}.txt"
            process = context.Process(target=_run, args=(target, arguments, variables, fault, output))
            process.start()
            ranks.processes.append(process)
            ranks.outputs.append(output)
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name)
            else:
                os.environ[name] = value
    return ranks


def run(
    target: Callable[..., int | None], arguments: tuple[Any, ...], world_size: int, fault: Fault | None = None
) -> list[str]:
    """Run to the end and return each rank's output.

    Raises:
        AssertionError: with the output of all ranks when one failed.
    """
    ended = start(target, arguments, world_size, fault).wait()
    said = "\n".join(f"rank {rank} exit {code}:\n{output}" for rank, (code, output) in enumerate(ended))
    assert all(code == 0 for code, _ in ended), said
    return [output for _, output in ended]


def pretrain(*words: str) -> int:
    """A target: `python -m pretrain WORDS`."""
    from pretrain.__main__ import run as command

    return command(words[0], list(words[1:]))


def _free_port() -> int:
    """One that the kernel does not give away by itself, since ranks may take a while until they use it."""
    while True:
        port = random.SystemRandom().randrange(15000, 32000)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


def _run(
    target: Callable[..., int | None],
    arguments: tuple[Any, ...],
    variables: dict[str, str],
    fault: Fault | None,
    output: Path,
) -> None:
    descriptor = os.open(output, os.O_WRONLY | os.O_CREAT, 0o644)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    os.environ.update(variables)
    if fault is not None:
        fault(int(variables["RANK"]))
    sys.exit(target(*arguments))
