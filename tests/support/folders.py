"""Folders that helpers make once a process: gone when it ends, whoever was forked from it meanwhile."""

from __future__ import annotations

import shutil
import tempfile
from multiprocessing.util import Finalize
from pathlib import Path


def temporary(name: str) -> Path:
    """A new folder that the process which made it removes at its end, and no child of it does."""
    folder = Path(tempfile.mkdtemp(prefix=f"membart-{name}-"))
    # Unlike `atexit` it is called in forked children as well, but for what they made themselves alone.
    Finalize(None, shutil.rmtree, (folder,), {"ignore_errors": True}, exitpriority=-1)
    return folder
