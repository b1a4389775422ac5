"""`RUN/status.json`: how the last attempt ended, for launchers that swallow exit codes."""

from __future__ import annotations

import contextlib
import json
from typing import Literal

from pretrain import errors
from pretrain.attempt import Attempt
from pretrain.files import write_atomically

STATUS_FILE = "status.json"

Status = Literal[
    "running",
    "finished",
    "preempted",
    "stopped",
    "restart",
    "diverged",
    "refused",
    "interrupted",
    "failed",
]

_ENDS: dict[int, Status] = {
    errors.EXIT_OK: "finished",
    errors.EXIT_FAILURE: "failed",
    errors.EXIT_USER_ERROR: "refused",
    errors.EXIT_DIVERGED: "diverged",
    errors.EXIT_RESTART: "restart",
    errors.EXIT_REQUEUE: "preempted",
    errors.EXIT_INTERRUPTED: "interrupted",
}


def of(exit_code: int) -> Status:
    """The status that an exit code means; `preempted` where `stopped` is possible too."""
    return _ENDS.get(exit_code, "failed")


def remember(attempt: Attempt | None, status: Status, why: str = "") -> None:
    """Write the status of a start that has claimed its run; a full disk costs it, not the run.

    A superseded start leaves the file to the newer one.
    """
    if attempt is not None and not attempt.superseded:
        content = {"status": status, "why": why, "attempt": attempt.number}
        with contextlib.suppress(OSError):
            write_atomically(attempt.run_dir / STATUS_FILE, json.dumps(content) + "\n")
