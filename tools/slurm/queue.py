"""Slurm's commands as functions: only what is the same from release to release, no JSON."""

from __future__ import annotations

import getpass
import subprocess
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from pretrain.errors import UserError

ENDED = {
    "BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "NODE_FAIL", "OUT_OF_MEMORY", "PREEMPTED",
    "REVOKED", "TIMEOUT",
}  # fmt: skip


class RefusedError(UserError):
    """Slurm answers, and says no."""


@dataclass(frozen=True)
class Entry:
    """A job, or one task of an array, as Slurm has it now."""

    job: str
    task: int
    """0: no array."""
    state: str
    reason: str
    nodes: str
    time_left: str

    @property
    def id(self) -> str:
        """As Slurm's commands take it."""
        return f"{self.job}_{self.task}" if self.task else self.job

    @property
    def active(self) -> bool:
        """Whether it waits or runs."""
        return self.state not in ENDED


def entries() -> dict[tuple[str, int], Entry]:
    """All jobs of this user that Slurm still knows, ended ones too for some minutes."""
    fields, user = "%F|%K|%T|%r|%N|%L", getpass.getuser()
    text = call(["squeue", "--noheader", "--array", "--states=all", f"--user={user}", f"--format={fields}"])
    found = {}
    for line in text.splitlines():
        job, task, state, reason, nodes, left = line.split("|")
        entry = Entry(job, int(task) if task.isdigit() else 0, state, reason, nodes, left)
        found[entry.job, entry.task] = entry
    return found


def submit(words: Sequence[str]) -> str:
    """Run an `sbatch --parsable` line; the job's id."""
    return call(words).strip().split(";")[0]


def cancel(ids: Iterable[str]) -> None:
    """End jobs, or tasks `JOB_N` of arrays; none is no mistake.

    Raises:
        UserError: as `call`.
    """
    wanted = list(ids)
    if wanted:
        call(["scancel", *wanted])


def call(words: Sequence[str]) -> str:
    """Output of a Slurm command.

    Raises:
        UserError: there is no Slurm here.
        RefusedError: it refuses; with its own words.
    """
    try:
        done = subprocess.run(words, capture_output=True, text=True)
    except FileNotFoundError:
        raise UserError(
            f"{words[0]} is not on this machine", mend="go to a node where jobs are submitted"
        ) from None
    if done.returncode:
        said = " ".join((done.stderr.strip() or done.stdout.strip()).split())
        raise RefusedError(said or f"exit {done.returncode}", where=words[0], mend="see docs/cluster.md")
    return done.stdout
