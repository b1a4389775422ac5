"""Where a shard set grows: a folder beside the target that becomes the target when it is complete."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import shutil
import sqlite3
from collections.abc import Iterator
from pathlib import Path

from pretrain.corpus.shardset import MANIFEST, read_manifest
from pretrain.errors import UserError
from pretrain.files import sync

LOCK, STATE, REJECTS = "lock", "state.sqlite", "rejects.jsonl"
AGAIN = "run the same command again to go on from the last saved point"


def already_built(target: Path, plan_hash: str) -> bool:
    """Whether `target` is the finished set of this plan. Raises UserError when it is anything else but
    empty.
    """
    if not target.exists() or (target.is_dir() and not any(target.iterdir())):
        return False
    mend = "choose another --out, or delete this folder first"
    if not (target / MANIFEST).is_file():
        raise UserError("this is not empty and no shard set", where=str(target), mend=mend)
    if read_manifest(target)["plan"] != plan_hash:
        raise UserError("another shard set is here (other inputs or options)", where=str(target), mend=mend)
    return True


@contextlib.contextmanager
def workshop(target: Path, *, restart: bool) -> Iterator[Path]:
    """The folder `TARGET.building`, locked against a second build; emptied first when `restart` is set.

    Errors of the disk become UserErrors that say how to go on.
    """
    whole = Path(os.path.abspath(target))
    folder = whole.with_name(whole.name + ".building")
    with disk_errors(target):
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / LOCK).open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                raise UserError(
                    "another build is writing here", where=str(folder), mend="wait for it or stop it"
                ) from None
            if restart:
                clear(folder)
            yield folder


def clear(folder: Path, keep: tuple[str, ...] = ()) -> None:
    """Empty a workshop, all but its lock and the files whose names start with one of `keep`."""
    for entry in folder.iterdir():
        if entry.is_dir():
            shutil.rmtree(entry)
        elif not entry.name.startswith((LOCK, *keep)):
            entry.unlink()


def discard(folder: Path) -> None:
    """Remove a workshop in which there is nothing to go on with."""
    clear(folder)
    (folder / LOCK).unlink()
    folder.rmdir()


def publish(folder: Path, target: Path) -> None:
    """Give a complete set its name."""
    for file in folder.glob(f"{STATE}*"):
        file.unlink()
    (folder / LOCK).unlink(missing_ok=True)
    sync(folder)
    os.rename(folder, target)
    sync(target.absolute().parent)


@contextlib.contextmanager
def disk_errors(target: Path) -> Iterator[None]:
    """Say what an error of the disk means for the user."""
    try:
        yield
    except sqlite3.Error as error:
        raise UserError(
            f"the state of the build cannot be kept ({error})",
            where=str(target),
            mend=f"make room or mend permissions, then {AGAIN}; with --restart if that fails too",
        ) from None
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            mend = f"make room, then {AGAIN}"
            raise UserError(f"no space left ({error.strerror})", where=str(target), mend=mend) from None
        raise UserError(
            f"cannot be written ({error.strerror or error})",
            where=str(error.filename or target),
            mend="mend its permissions or choose another --out",
        ) from None
