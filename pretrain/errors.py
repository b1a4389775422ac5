"""What can go wrong by a user's hand, and the exit codes that say so."""

from __future__ import annotations

from typing import Literal

EXIT_OK = 0
EXIT_FAILURE = 1
"""A bug or a broken machine: the one case in which a stack trace is shown."""
EXIT_USER_ERROR = 2
"""Something the user can mend: one line on stderr, nothing written."""
EXIT_DIVERGED = 3
"""Too many non-finite steps in a row; the last good checkpoint is named."""
EXIT_SUPERSEDED = 5
"""A newer start owns the run folder: leave the run to it, do not run this command again."""
EXIT_RESTART = 4
"""A rank died or hung, not by the fault of what is computed: start again from the last checkpoint."""
EXIT_REQUEUE = 75
"""Saved and stopped on a signal: run the same command again (EX_TEMPFAIL of sysexits.h)."""

EXIT_INTERRUPTED = 130
"""Ended by the keyboard before it could save."""


class UserError(Exception):
    """A mistake the user can mend, told in one line: what is wrong, where, and how to mend it."""

    exit_code = EXIT_USER_ERROR

    def __init__(self, what: str, *, where: str = "", mend: str = "") -> None:
        self.what, self.where, self.mend = what, where, mend
        super().__init__(what, where, mend)

    def __str__(self) -> str:
        place = f"{self.where}: " if self.where else ""
        cure = f" -- {self.mend}" if self.mend else ""
        return " ".join(f"{place}{self.what}{cure}".split())


class ShardError(UserError):
    """A shard or one of its documents cannot be read, or is not what the manifest says."""


class CheckpointError(UserError):
    """A checkpoint is missing, incomplete or damaged."""


class SupersededError(CheckpointError):
    """A newer start of the same run owns its folder; this one may not write there any more."""

    exit_code = EXIT_SUPERSEDED


class DivergedError(UserError):
    """Loss or gradients were not finite too many steps in a row."""

    exit_code = EXIT_DIVERGED


class OutOfMemoryError(UserError):
    """A rank ran out of memory; the message says which settings take less."""


class RendezvousError(UserError):
    """The ranks did not find one another."""

    exit_code = EXIT_RESTART


class PreemptedError(Exception):
    """Training stopped on a signal after saving; the process exits with `EXIT_REQUEUE`."""

    exit_code = EXIT_REQUEUE
    status: Literal["preempted", "stopped"] = "preempted"


class StoppedError(PreemptedError):
    """Training stopped after saving because a person asked for it: nobody should requeue it."""

    status = "stopped"
