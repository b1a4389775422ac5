"""A run can end at any moment and goes on as if nothing had happened, on as many ranks as there are."""

from __future__ import annotations

import json
import os
import shutil
import signal
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest

from pretrain import attempt, checkpoint
from pretrain.errors import EXIT_REQUEUE, EXIT_SUPERSEDED, EXIT_USER_ERROR
from tests.pretrain import elastic_ranks
from tests.support import faults, forked, runs
from tests.support.faults import At
from tests.support.runs import beginning, numbers, records, same_to_the_bit

STEPS = 30
COMMIT = r"writing-\d+/step-\d+$"


@pytest.fixture(scope="module")
def golden(tmp_path_factory: pytest.TempPathFactory, shards: Path) -> Path:
    """A run on two ranks that nobody disturbed, with all its checkpoints: 10, 20 and 30."""
    folder = tmp_path_factory.mktemp("golden")
    file = runs.recipe_file(folder, shards, train__steps=STEPS, checkpoint__keep_every=10)
    forked.run(forked.pretrain, (str(file),), 2)
    return folder / "run"


def test_any_number_of_interruptions_leave_no_trace(golden: Path, tmp_path: Path, shards: Path) -> None:
    """Stopped by a signal to one rank, and killed: in training, while writing, before and after a commit."""
    file = runs.recipe_file(tmp_path, shards, train__steps=STEPS)
    run_dir = tmp_path / "run"
    interruptions = [
        # Rank 0 looks whether it is superseded before each record: somewhere after update 10.
        (At("os.listdir", "attempts", faults.die, count=20), -signal.SIGKILL),
        # All is written, nothing committed.
        (At("os.rename", COMMIT, faults.die), -signal.SIGKILL),
        # Committed, but `latest` still names the one before.
        (At("open", r"checkpoints/latest\.tmp", faults.die), -signal.SIGKILL),
        # A signal to one rank while it writes beside training; and once more while the last save goes on.
        (At("os.chmod", "optimizer-00001", faults.ask_to_stop, rank=1), EXIT_REQUEUE),
        # Before the first update of a start.
        (At("os.mkdir", r"writing-\d+$", faults.die), -signal.SIGKILL),
        # In the midst of writing, one rank alone.
        (At("os.chmod", "optimizer-00001", faults.die, rank=1), -signal.SIGKILL),
    ]
    for fault, expected in interruptions:
        ended = forked.start(forked.pretrain, (str(file),), 2, fault).wait()
        assert expected in {code for code, _ in ended}, ended
    forked.run(forked.pretrain, (str(run_dir),), 2)
    assert same_to_the_bit(run_dir, golden)
    assert not list((run_dir / "checkpoints").glob("writing-*")), "nothing half-written stays"


def test_any_world_and_stage_go_on_from_any_other(golden: Path, tmp_path: Path) -> None:
    """Handed from 2 ranks to 4, to 1 and back, at all stages: an update each, as in the undisturbed run."""
    run_dir = beginning(golden, tmp_path, 10)
    zero3 = str(elastic_ranks.whole_zero3(tmp_path))
    hops = [(4, ["zero1", zero3, "zero2"]), (1, ["zero3", "zero1", "zero2"]), (2, [zero3, "zero1"])]
    reports = []
    for world, configs in hops:
        said = forked.run(elastic_ranks.main, ([(run_dir, config) for config in configs],), world)[0]
        reports += [json.loads(line) for line in said.splitlines()]
    expected = records(golden)
    for update, report in enumerate(reports, start=11):
        assert report["update"] == update
        assert report["wrong"] == [], report
        assert report["same_rows"], report
        assert report["target_tokens"] == expected["train", update]["target_tokens"]
        assert report["loss"] == pytest.approx(expected["train", update]["loss"], rel=1e-5)
        assert report["gradient_norm"] == pytest.approx(expected["train", update]["gradient_norm"], rel=1e-3)
    assert {tuple(report["from"]) for report in reports} >= {(2, 2), (4, 1), (4, 3), (4, 2), (1, 3), (1, 2)}

    # Were memory lost, it would be seen.
    lost = beginning(golden, tmp_path / "lost", 10)
    [said] = forked.run(elastic_ranks.main, ([(lost, "zero2")], True), 1)
    assert abs(json.loads(said)["loss"] - expected["train", 11]["loss"]) > 1e-3


def test_damaged_checkpoints_are_named_and_the_newest_whole_one_is_taken(
    golden: Path, tmp_path: Path
) -> None:
    run_dir = beginning(golden, tmp_path, 10, 20, 30)
    _, middle, last = checkpoint.committed(run_dir)
    part = last.path / "optimizer-00001.safetensors"
    content = part.read_bytes()
    part.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    (middle.path / "state.json").unlink()
    said = forked.run(forked.pretrain, (str(run_dir),), 2)[0]
    assert (
        f"{last.path} is refused: optimizer-00001.safetensors is damaged (sha256 differs); going back" in said
    )
    assert f"{middle.path} is refused: state.json is missing; going back to step-00000010" in said
    assert same_to_the_bit(run_dir, golden)
    assert not list((run_dir / "checkpoints" / "damaged").iterdir()), "their updates were saved again"

    for saved in checkpoint.committed(run_dir):
        (saved.path / "frozen.safetensors").unlink()
    [(code, output)] = forked.start(forked.pretrain, (str(run_dir),), 1).wait()
    assert code == EXIT_USER_ERROR
    [line] = output.splitlines()
    assert "no checkpoint is whole: step-00000030: frozen.safetensors is missing; step-00000020" in line


def test_a_newer_start_takes_the_run_over_from_one_that_still_trains(golden: Path, tmp_path: Path) -> None:
    run_dir = beginning(golden, tmp_path, 10)
    held = faults.Until(run_dir / "attempts" / "000003.json", arrived=tmp_path / "about to commit update 20")
    older = forked.start(forked.pretrain, (str(run_dir),), 2, At("os.rename", COMMIT, held))
    while not (tmp_path / "about to commit update 20").exists():
        assert all(process.is_alive() for process in older.processes), older.wait()
        time.sleep(0.01)
    newer = forked.start(forked.pretrain, (str(run_dir),), 2)
    ended = older.wait()
    assert [code for code, _ in ended] == [EXIT_SUPERSEDED] * 2, ended
    [line] = [line for _, said in ended for line in said.splitlines() if line.startswith("error: ")]
    assert "attempt 2 (" in line
    assert "was superseded by attempt 3 (" in line
    assert [code for code, _ in newer.wait()] == [0, 0]
    assert same_to_the_bit(run_dir, golden)
    assert json.loads((run_dir / "status.json").read_text())["status"] == "finished"


def test_a_start_that_is_superseded_before_its_first_update_says_so(tmp_path: Path, shards: Path) -> None:
    file = runs.recipe_file(tmp_path, shards)
    overtaken = At("open", r"recipe\.yaml\.tmp", partial(attempt.claim, tmp_path / "run"))
    [(code, said)] = forked.start(forked.pretrain, (str(file),), 1, overtaken).wait()
    assert code == EXIT_SUPERSEDED, said
    assert "was superseded by attempt 2" in said
    assert not checkpoint.committed(tmp_path / "run")


def test_a_full_disk_costs_checkpoints_not_the_run_and_what_is_left_is_named(
    golden: Path, tmp_path: Path
) -> None:
    run_dir = beginning(golden, tmp_path, 10)
    largest = max(file.stat().st_size for file in (run_dir / "checkpoints").glob("step-*/*"))
    full = faults.FileLimit(largest // 2)
    [(code, said)] = forked.start(forked.pretrain, (str(run_dir), "checkpoint.every=2"), 1, full).wait()
    assert code == EXIT_USER_ERROR
    assert said.count("training goes on") == 1
    [line] = [line for line in said.splitlines() if line.startswith("error: ")]
    assert "update 30 could not be saved" in line
    assert "File too large" in line
    assert "the last checkpoint is step-00000010" in line
    assert records(run_dir)["checkpoint", 30]["checkpoint_failures"] == 10
    assert numbers(run_dir)["train", 29]
    assert [saved.update for saved in checkpoint.committed(run_dir)] == [10]

    [(code, said)] = forked.start(forked.pretrain, (str(run_dir),), 1, FullAndStopped(full.size)).wait()
    assert code == EXIT_REQUEUE, "the run can go on from the checkpoint that is left"
    [line] = [line for line in said.splitlines() if "run the same command to go on" in line]
    assert "SIGUSR1: update " in line
    assert "could not be saved" in line
    assert "the last checkpoint is step-00000010" in line


@dataclass(frozen=True)
class FullAndStopped:
    """A stop signal at a step boundary on a full disk."""

    size: int

    def __call__(self, rank: int) -> None:
        faults.FileLimit(self.size)()
        faults.when("os.listdir", "attempts", faults.ask_to_stop, count=8)


def test_a_folder_that_not_every_node_sees_is_refused(tmp_path: Path, shards: Path) -> None:
    for node in ("first", "second"):
        (tmp_path / node).mkdir()
    file = runs.recipe_file(tmp_path, shards)
    ended = forked.start(forked.pretrain, (str(file), "root=runs"), 2, Elsewhere(tmp_path)).wait()
    assert {code for code, _ in ended} == {EXIT_USER_ERROR}
    [line] = [line for _, said in ended for line in said.splitlines()]
    assert "rank 1 does not see the run folder of rank 0" in line


@dataclass(frozen=True)
class Elsewhere:
    """Nodes with disks of their own."""

    place: Path

    def __call__(self, rank: int) -> None:
        os.chdir(self.place / ("first", "second")[rank])


def test_overlapping_rollouts_resume_bit_identically(tmp_path: Path, shards: Path) -> None:
    """An overlap of more than half the horizon repeats batches of more than one rollout before."""
    settings = {"train__steps": 6, "checkpoint__every": 3, "replay__time_overlap": 2, "validation__every": 0}
    file = runs.recipe_file(tmp_path, shards, **settings)
    forked.run(forked.pretrain, (str(file),), 1)
    straight = shutil.copytree(tmp_path / "run", tmp_path / "straight")
    shutil.rmtree(checkpoint.resolve(tmp_path / "run").path)
    forked.run(forked.pretrain, (str(file),), 1)
    assert same_to_the_bit(tmp_path / "run", straight)


def test_what_a_save_cost_is_logged(golden: Path) -> None:
    found = [figures for (kind, _), figures in records(golden).items() if kind == "checkpoint"]
    assert len(found) == 3
    for figures in found:
        assert figures["checkpoint_stall_seconds"] > 0
        assert figures["checkpoint_seconds"] > 0
        assert figures["checkpoint_bytes"] > 10000
        assert figures["checkpoint_failures"] == 0
