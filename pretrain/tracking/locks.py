"""A lock between processes, held through a file and let go by the kernel when its holder dies."""

from __future__ import annotations

import fcntl
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_held: set[Path] = set()
_guard = threading.Lock()


class BusyError(Exception):
    """Another process (or another thread of this one) holds the lock."""


@contextmanager
def file_lock(path: Path, *, timeout: float) -> Iterator[None]:
    """Hold `path` exclusively; wait `timeout` seconds at most, then raise `BusyError`.

    POSIX record locks work on NFS and are not inherited by forked data workers, which may outlive a
    killed trainer. They do not exclude threads of one process, hence the set of paths held here.
    """
    path = path.resolve()
    path.parent.mkdir(parents=True, exist_ok=True)
    deadline = time.monotonic() + timeout
    while not _claim(path):
        _wait(path, deadline)
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            while not _lock(descriptor):
                _wait(path, deadline)
            yield
        finally:
            os.close(descriptor)
    finally:
        with _guard:
            _held.discard(path)


def _claim(path: Path) -> bool:
    with _guard:
        if path in _held:
            return False
        _held.add(path)
        return True


def _lock(descriptor: int) -> bool:
    try:
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        return False
    return True


def _wait(path: Path, deadline: float) -> None:
    if time.monotonic() >= deadline:
        raise BusyError(f"{path} is held by another process")
    time.sleep(0.05)
