"""Several ranks as plain processes on this machine, with their own exit codes."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil


@dataclass
class Ranks:
    """Running ranks of one job; `wait` collects them."""

    processes: list[subprocess.Popen[str]]

    def wait(self, timeout: float = 200) -> list[tuple[int, str]]:
        """Exit code and output of every rank; kills all of them past `timeout` seconds."""
        try:
            return [(p.wait(timeout), p.communicate()[0]) for p in self.processes]
        finally:
            for process in self.processes:
                if process.poll() is None:
                    process.kill()


def start(words: list[str], world_size: int, **environment: str) -> Ranks:
    """`python WORDS` once per rank, with the variables that torchrun would set."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    processes = []
    for rank in range(world_size):
        ranks = {
            "RANK": rank,
            "WORLD_SIZE": world_size,
            "LOCAL_RANK": rank,
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": port,
        }
        variables = {
            **os.environ,
            **{name: str(value) for name, value in ranks.items()},
            "OMP_NUM_THREADS": "1",
            "DS_ACCELERATOR": "cpu",
            "PYTHONPATH": str(Path(__file__).parent.parent.parent),
            **environment,
        }
        processes.append(
            subprocess.Popen(
                [sys.executable, *words],
                env=variables,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
        )
    return Ranks(processes)


def run(words: list[str], world_size: int, **environment: str) -> list[str]:
    """Run to the end and return each rank's output.

    Raises:
        AssertionError: with the output of the ranks that failed.
    """
    ended = start(words, world_size, **environment).wait()
    failed = [f"rank {rank} exit {code}:\n{output}" for rank, (code, output) in enumerate(ended) if code]
    assert not failed, "\n".join(failed)
    return [output for _, output in ended]


def kill_tree(process: subprocess.Popen[Any]) -> None:
    """Kill a launcher with all that came of it, in whatever session."""
    with contextlib.suppress(psutil.NoSuchProcess):
        parent = psutil.Process(process.pid)
        for member in [*parent.children(recursive=True), parent]:
            with contextlib.suppress(psutil.NoSuchProcess):
                member.kill()
    process.wait()
