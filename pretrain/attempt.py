"""Which start of a run owns its folder: the newest one.

A requeued job may come up while the ranks of the job before it still run behind a network partition. So every
start claims the next number, and what an older number writes is fenced off:

    RUN/attempts/000002.json          claims number 2, and says to people which process that is
    RUN/checkpoints/writing-000002/   where attempt 2 writes what is not committed yet

A checkpoint is committed by renaming it out of the attempt's own folder. A claim removes the folders of all
older attempts, so that even an attempt that does not see the newer number yet, as with the caches of NFS,
finds nothing left to rename.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import socket
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pretrain.errors import SupersededError, UserError

FOLDER = "attempts"
_RECORD = re.compile(r"(\d{6,})\.json")
_STAGING = re.compile(r"writing-(\d{6,})(\.fenced)?")
_SLURM = {"slurm_job": "SLURM_JOB_ID", "slurm_restarts": "SLURM_RESTART_COUNT"}


@dataclass(frozen=True)
class Attempt:
    """One start of a run."""

    run_dir: Path
    number: int

    @property
    def staging(self) -> Path:
        """Where this attempt alone writes, on the file system of the checkpoints."""
        return self.run_dir / "checkpoints" / f"writing-{self.number:06d}"

    @property
    def superseded(self) -> bool:
        """Whether a newer attempt has claimed the run."""
        return newest(self.run_dir) > self.number

    def require_newest(self) -> None:
        """Raises `SupersededError`, which names both attempts, unless this is the newest."""
        newer = newest(self.run_dir)
        if newer > self.number:
            raise SupersededError(
                f"{describe(self.run_dir, self.number)} was superseded by {describe(self.run_dir, newer)}, "
                "and writes nothing more",
                where=str(self.run_dir),
                mend="leave the run to the newer one",
            )

    @contextlib.contextmanager
    def owning(self) -> Iterator[None]:
        """What fails in here because a newer attempt took the folder away is told as that.

        Raises:
            SupersededError: in place of the OSError.
        """
        try:
            yield
        except OSError:
            self.require_newest()
            raise


def claim(run_dir: Path) -> Attempt:
    """Become the newest attempt, and take from older ones what they have not committed.

    Creating a file exclusively is atomic on NFS too. Where its reply is lost, a number stays unused.

    Raises:
        SupersededError: another start claimed a higher number meanwhile.
        UserError: the folder cannot be written.
    """
    try:
        number = _take_number(run_dir)
        mine = Attempt(run_dir, number)
        mine.staging.mkdir(parents=True, exist_ok=True)
        if mine.superseded:  # by who may have looked for older folders before this one was made
            _remove(mine.staging)
            mine.require_newest()
        for folder in mine.staging.parent.iterdir():
            match = _STAGING.fullmatch(folder.name)
            if match and int(match[1]) < number:
                _remove(folder)
    except OSError as error:
        raise UserError(
            f"the run folder cannot be written: {error.strerror}", where=str(run_dir), mend="make room"
        ) from None
    return mine


def newest(run_dir: Path) -> int:
    """The highest number claimed; 0 before the first start."""
    try:
        names = os.listdir(run_dir / FOLDER)
    except FileNotFoundError:
        return 0
    return max((int(match[1]) for name in names if (match := _RECORD.fullmatch(name))), default=0)


def describe(run_dir: Path, number: int) -> str:
    """An attempt for people: its number, machine, process, job and time, as far as they are known."""
    try:
        record = json.loads((run_dir / FOLDER / f"{number:06d}.json").read_text(encoding="utf-8"))
        job = f", Slurm job {record['slurm_job']}" if "slurm_job" in record else ""
        return f"attempt {number} ({record['host']}, pid {record['pid']}{job}, since {record['started']})"
    except (OSError, ValueError, KeyError, TypeError):
        return f"attempt {number}"


def _take_number(run_dir: Path) -> int:
    folder = run_dir / FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    record = {
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        **{key: os.environ[name] for key, name in _SLURM.items() if name in os.environ},
    }
    number = newest(run_dir)
    while True:
        number += 1
        with contextlib.suppress(FileExistsError), (folder / f"{number:06d}.json").open("x") as file:
            file.write(json.dumps(record) + "\n")
            file.flush()
            os.fsync(file.fileno())
            return number


def _remove(folder: Path) -> None:
    """Take an older attempt's folder away for good, though that attempt may still be writing to it.

    The new name stops whoever goes by path; what stops another NFS client, which goes by handle, is that the
    folder is gone.
    """
    gone = folder.with_name(f"{folder.name.removesuffix('.fenced')}.fenced")
    with contextlib.suppress(OSError):
        os.rename(folder, gone)
    for _ in range(20):
        shutil.rmtree(gone, ignore_errors=True)
        if not gone.exists():
            return
        time.sleep(0.05)
