"""What became of a pipeline: the chain, read from Slurm's queue and from the run folders."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from tools.slurm import progress
from tools.slurm.chain import Key, Task
from tools.slurm.pipeline import FINETUNE, PRETRAIN
from tools.slurm.queue import Entry
from tools.slurm.record import Submitted

HEADINGS = ("stage", "of", "job", "state", "step", "loss", "ETA", "note")


@dataclass(frozen=True)
class Row:
    """One task."""

    stage: str
    name: str
    job: str
    state: str
    step: str = ""
    loss: str = ""
    eta: str = ""
    note: str = ""

    def cells(self) -> tuple[str, ...]:
        """Its columns, as in `HEADINGS`."""
        return (self.stage, self.name, self.job, self.state, self.step, self.loss, self.eta, self.note)


def rows(
    tasks: Iterable[Task], submitted: Mapping[Key, Submitted], entries: Mapping[tuple[str, int], Entry]
) -> list[Row]:
    """One row a task, in the pipeline's order."""
    return [_row(task, submitted.get(task.key), entries) for task in tasks]


def table(found: Iterable[Row]) -> str:
    """Rows in columns, as wide as they need to be."""
    lines = [HEADINGS, *(row.cells() for row in found)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(HEADINGS))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    )


def _row(task: Task, sent: Submitted | None, entries: Mapping[tuple[str, int], Entry]) -> Row:
    entry = entries.get((sent.job, sent.number)) if sent else None
    job = "" if sent is None else (f"{sent.job}_{sent.number}" if sent.number else sent.job)
    said = last_words(task)
    if entry is not None and entry.active:
        state, note = entry.state.lower(), entry.nodes or _reason(entry)
    elif task.done:
        state, note = "done", ""
    elif sent is None:
        state, note = "not submitted", ""
    elif entry is not None and not said:
        state, note = entry.state.lower(), _reason(entry)
    elif entry is not None:
        state, note = ("failed" if entry.state == "COMPLETED" else entry.state.lower()), said
    else:
        state, note = ("failed" if said else "gone"), said
    row = Row(task.stage, task.name, job, state, note=note)
    if task.stage not in (PRETRAIN, FINETUNE) or (at := progress.look(task.run)) is None:
        return row
    step = f"{at.step:,}" + (f"/{at.steps:,}" if at.steps else "")
    running = entry is not None and entry.state == "RUNNING"
    eta = duration(at.seconds_left) if running and at.seconds_left is not None else ""
    loss = "" if at.loss is None else f"{at.loss:.3f}"
    return Row(task.stage, task.name, job, state, step, loss, eta, note)


def last_words(task: Task) -> str:
    """The last event but the end that a task's jobs noted, without time and job."""
    file = task.jobs / "journal"
    if not file.is_file():
        return ""
    lines = file.read_text(encoding="utf-8", errors="replace").splitlines()
    events = [line.split(" ", 2)[-1] for line in lines]
    telling = [event for event in events[-5:] if not event.startswith(("starts on", "preflight passed"))]
    why = [event for event in telling if not event.startswith("ends")]
    return why[-1] if why else (telling[-1] if telling else "")


def duration(seconds: float) -> str:
    """For people: `45s`, `12m`, `3h05m`, `2d04h`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m"
    if whole < 86400:
        return f"{whole // 3600}h{whole % 3600 // 60:02d}m"
    return f"{whole // 86400}d{whole % 86400 // 3600:02d}h"


def _reason(entry: Entry) -> str:
    return "" if entry.reason in ("None", "") else entry.reason
