"""The chain as people see it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tools.slurm import progress
from tools.slurm.chain import Task
from tools.slurm.queue import Entry
from tools.slurm.record import Submitted, active, add, latest
from tools.slurm.status import duration, rows, table


def entry(job: str, state: str, task: int = 0, reason: str = "None", nodes: str = "") -> Entry:
    return Entry(job, task, state, reason, nodes, "1:00")


def sent(stage: str, name: str, job: str, number: int = 0) -> Submitted:
    return Submitted(stage, name, job, number, "2026-01-01T00:00:00", "sbatch")


def started_run(run: Path, steps: int = 100) -> None:
    """Three updates 2 s apart, a wait of an hour, two more; a line is being written."""
    run.mkdir(parents=True)
    (run / "recipe.yaml").write_text(f"train: {{steps: {steps}}}\n")
    times = [0.0, 2.0, 4.0, 3604.0, 3606.0]
    lines = [
        json.dumps({"step": step, "time": time, "kind": "train", "loss": 5.0 - step})
        for step, time in enumerate(times, start=1)
    ]
    (run / "metrics.jsonl").write_text("\n".join(lines) + '\n{"step": 6, "ti')


def test_steps_loss_and_eta_come_from_the_run_folder(tmp_path: Path) -> None:
    run = tmp_path / "pretrain"
    started_run(run)
    task = Task("pretrain", "pretrain", run, ())
    [row] = rows(
        [task], {task.key: sent(*task.key, "12")}, {("12", 0): entry("12", "RUNNING", nodes="n[1-2]")}
    )
    assert row.cells() == ("pretrain", "pretrain", "12", "running", "5/100", "0.000", "3m", "n[1-2]")


def test_a_wait_for_a_restart_is_no_part_of_the_pace(tmp_path: Path) -> None:
    started_run(tmp_path / "run")
    at = progress.look(tmp_path / "run")
    assert at is not None
    assert at.seconds_left == 95 * 2.0


@pytest.mark.parametrize(
    ("found", "journal", "state", "note"),
    [
        (entry("12", "PENDING", 3, reason="Dependency"), "", "pending", "Dependency"),
        (
            entry("12", "CANCELLED", 3, reason="DependencyNeverSatisfied"),
            "",
            "cancelled",
            "DependencyNeverSatisfied",
        ),
        (
            entry("12", "FAILED", 3),
            "t 12.0 error: no disk\nt 12.0 ends, exit 1\n",
            "failed",
            "error: no disk",
        ),
        (None, "t 12.0 starts on n1\nt 12.0 ends, exit 3\n", "failed", "ends, exit 3"),
        (None, "", "gone", ""),
    ],
)
def test_states_come_from_the_queue_and_then_from_the_journal(
    tmp_path: Path, found: Entry | None, journal: str, state: str, note: str
) -> None:
    task = Task("finetune", "ki", tmp_path / "ki", (), 3)
    task.jobs.mkdir(parents=True)
    if journal:
        (task.jobs / "journal").write_text(journal)
    entries = {} if found is None else {("12", 3): found}
    [row] = rows([task], {task.key: sent(*task.key, "12", 3)}, entries)
    assert (row.job, row.state, row.note) == ("12_3", state, note)


def test_what_was_never_submitted_or_is_done_says_so(tmp_path: Path) -> None:
    new, old = Task("export", "a", tmp_path / "a", ()), Task("export", "b", tmp_path / "b", ())
    old.jobs.mkdir(parents=True)
    (old.jobs / "done").touch()
    assert [row.state for row in rows([new, old], {}, {})] == ["not submitted", "done"]
    assert table(rows([new, old], {}, {})).splitlines()[1].split() == ["export", "a", "not", "submitted"]


def test_the_last_submission_of_a_task_counts_while_it_is_in_the_queue(tmp_path: Path) -> None:
    add(tmp_path, [sent("finetune", "ki", "12", 1), sent("finetune", "fusion", "12", 2)])
    add(tmp_path, [sent("finetune", "ki", "20", 1)])
    assert latest(tmp_path)["finetune", "ki"].job == "20"
    entries = {("20", 1): entry("20", "RUNNING", 1), ("12", 2): entry("12", "FAILED", 2)}
    assert list(active(tmp_path, entries)) == [("finetune", "ki")]


@pytest.mark.parametrize(
    ("seconds", "text"), [(44.6, "45s"), (720, "12m"), (11100, "3h05m"), (187200, "2d04h")]
)
def test_durations_are_short(seconds: float, text: str) -> None:
    assert duration(seconds) == text
