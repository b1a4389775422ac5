"""`jobs.json` in the pipeline's folder: which job was submitted for what."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

from pretrain.errors import UserError
from pretrain.files import write_atomically
from tools.slurm.chain import Active, Key
from tools.slurm.queue import Entry

FILE = "jobs.json"


@dataclass(frozen=True)
class Submitted:
    """One task that went to Slurm."""

    stage: str
    name: str
    job: str
    number: int
    time: str
    line: str
    """The sbatch line, as it could be typed."""

    @property
    def key(self) -> Key:
        """The task that was submitted."""
        return self.stage, self.name


def read(folder: Path) -> list[Submitted]:
    """All submissions of a pipeline, oldest first."""
    file = folder / FILE
    if not file.exists():
        return []
    try:
        return [Submitted(**row) for row in json.loads(file.read_text(encoding="utf-8"))["jobs"]]
    except (OSError, ValueError, KeyError, TypeError):
        raise UserError(
            "cannot be read", where=str(file), mend="move it away; squeue shows the jobs"
        ) from None


def add(folder: Path, submitted: Iterable[Submitted]) -> None:
    """Append submissions to a pipeline's; the file is whole or as before."""
    rows = [asdict(entry) for entry in [*read(folder), *submitted]]
    write_atomically(folder / FILE, json.dumps({"jobs": rows}, indent=1) + "\n")


def latest(folder: Path) -> dict[Key, Submitted]:
    """The last submission of each task."""
    return {entry.key: entry for entry in read(folder)}


def active(folder: Path, entries: dict[tuple[str, int], Entry]) -> dict[Key, Active]:
    """The tasks whose last submission is still in the queue or runs."""
    return {
        key: Active(entry.job, entry.number)
        for key, entry in latest(folder).items()
        if (found := entries.get((entry.job, entry.number))) and found.active
    }
