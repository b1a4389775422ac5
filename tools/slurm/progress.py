"""How far a run is: read from the end of its `metrics.jsonl`, which may be long and is being written."""

from __future__ import annotations

import itertools
import statistics
from dataclasses import dataclass
from pathlib import Path

import yaml

from pretrain.tracking.metrics_file import METRICS_FILE, Record, read_records

TAIL_BYTES = 1 << 18
PACE_RECORDS = 50


@dataclass(frozen=True)
class Progress:
    """One look at a run."""

    step: int
    steps: int | None
    """Of the whole run; None when the recipe cannot be read."""
    loss: float | None
    seconds_left: float | None
    """At the pace of the last records; None while there is none."""


def look(run: Path) -> Progress | None:
    """The progress of a run; None before its first record."""
    records = [record for record in tail(run) if record.kind == "train"]
    if not records:
        return None
    last, steps = records[-1], _steps(run)
    pace = seconds_per_step(records[-PACE_RECORDS:])
    left = None if steps is None or pace is None else max(0, steps - last.step) * pace
    return Progress(last.step, steps, last.metrics.get("loss"), left)


def seconds_per_step(records: list[Record]) -> float | None:
    """Median over neighbouring records, so that a wait for a restart does not count."""
    paces = [
        (later.time - earlier.time) / (later.step - earlier.step)
        for earlier, later in itertools.pairwise(records)
        if later.step > earlier.step
    ]
    return statistics.median(paces) if paces else None


def tail(run: Path) -> list[Record]:
    """The last whole records of a run's metrics, oldest first; none when there is no such file."""
    path = run / METRICS_FILE
    try:
        start = max(0, path.stat().st_size - TAIL_BYTES)
        return [record for record, _ in read_records(path, start=start) if record is not None]
    except OSError:
        return []


def _steps(run: Path) -> int | None:
    try:
        return int(yaml.safe_load((run / "recipe.yaml").read_text(encoding="utf-8"))["train"]["steps"])
    except (OSError, ValueError, KeyError, TypeError, yaml.YAMLError):
        return None
