"""What can go wrong at an exact moment, put into a process by way of the audit events that Python raises.

Nothing in the program under test knows of it.
"""

from __future__ import annotations

import os
import re
import resource
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

CHANGES = frozenset({"open", "os.chmod", "os.mkdir", "os.remove", "os.rename", "os.rmdir", "shutil.rmtree"})
"""Events that come before a file or folder changes (an `open` counts when it is for writing)."""


@dataclass(frozen=True)
class At:
    """Do something in one rank just before the `count`-th event of a kind that touches a path."""

    event: str
    """An audit event, or `change` for any of `CHANGES`."""
    path: str
    """Regular expression, searched in the event's first path."""
    then: Callable[[], object]
    count: int = 1
    rank: int = 0

    def __call__(self, rank: int) -> None:
        if rank == self.rank:
            when(self.event, self.path, self.then, self.count)


def when(event: str, path: str, then: Callable[[], object], count: int = 1) -> Callable[[], int]:
    """The same for this process; returns how many such events there were. It lasts as long as the process."""
    pattern, seen = re.compile(path), [0]

    def hook(name: str, arguments: tuple[Any, ...]) -> None:
        if not (name == event or (event == "change" and name in CHANGES and _writes(name, arguments))):
            return
        if arguments and isinstance(arguments[0], str | os.PathLike) and pattern.search(str(arguments[0])):
            seen[0] += 1
            if seen[0] == count:
                then()

    sys.addaudithook(hook)
    return lambda: seen[0]


def _writes(name: str, arguments: tuple[Any, ...]) -> bool:
    return name != "open" or bool(int(arguments[2] or 0) & (os.O_WRONLY | os.O_RDWR))


def die() -> None:
    """As `kill -9`: no handler, no cleanup, no flush."""
    os.kill(os.getpid(), signal.SIGKILL)


def ask_to_stop() -> None:
    """As a scheduler does."""
    os.kill(os.getpid(), signal.SIGUSR1)


@dataclass(frozen=True)
class Until:
    """Wait until a file exists; `arrived` is made first, for others to wait for."""

    path: Path
    arrived: Path | None = None

    def __call__(self) -> None:
        if self.arrived is not None:
            self.arrived.touch()
        while not self.path.exists():
            time.sleep(0.01)


@dataclass(frozen=True)
class FileLimit:
    """No file can grow past so many bytes: what a full disk or a quota does, without filling one."""

    size: int

    def __call__(self, rank: int = 0) -> None:
        _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (self.size, hard))
