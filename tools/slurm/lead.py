"""How long before its end a job must be warned, so that its last save is complete."""

from __future__ import annotations

from pathlib import Path

from tools.slurm.progress import tail

SIGNAL_SECONDS = 60
"""Slurm looks at time limits about once a minute."""
SAFETY = 2.0
"""The last save meets a busier file system than those before it."""


def seconds(run: Path, default: int, limit: int | None = None) -> int:
    """A step, twice the slowest save of late and Slurm's own delay; `default` while none has been measured.

    Args:
        limit: of the job's time, in seconds; at least half of it is left for training.
    """
    records = tail(run)
    saves = [r.metrics["checkpoint_seconds"] for r in records if "checkpoint_seconds" in r.metrics]
    steps = [r.metrics["step_seconds"] for r in records if "step_seconds" in r.metrics]
    found = default
    if saves:
        found = round(SIGNAL_SECONDS + SAFETY * max(saves) + max(steps, default=0.0))
    return found if limit is None else min(found, limit // 2)
