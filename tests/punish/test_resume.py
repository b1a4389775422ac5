"""What takes minutes: many kills at random moments, and every world size and stage after every other."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import random
import shutil
import signal
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

from pretrain import checkpoint
from pretrain.errors import EXIT_OK
from tests.pretrain import elastic_ranks
from tests.support import faults, forked, runs
from tests.support.runs import beginning, records, same_to_the_bit

pytestmark = [pytest.mark.punish, pytest.mark.timeout(3600)]

STEPS, EVERY, KILLS = 60, 3, 24


@pytest.fixture(scope="module")
def golden(tmp_path_factory: pytest.TempPathFactory, shards: Path) -> Path:
    """A run on two ranks that nobody disturbed."""
    folder = tmp_path_factory.mktemp("golden")
    settings = {"train__steps": STEPS, "checkpoint__every": EVERY, "checkpoint__keep_every": 15}
    file = runs.recipe_file(folder, shards, **settings)
    forked.run(forked.pretrain, (str(file),), 2)
    return folder / "run"


@pytest.mark.parametrize("asynchronous", [True, False])
def test_kills_at_random_moments_leave_no_trace(
    golden: Path, tmp_path: Path, shards: Path, asynchronous: bool
) -> None:
    """Each start is killed, one rank or both, some time after it has made its first update."""
    settings = {
        "train__steps": STEPS,
        "checkpoint__every": EVERY,
        "checkpoint__keep_every": 15,
        "checkpoint__asynchronous": asynchronous,
    }
    file = runs.recipe_file(tmp_path, shards, **settings)
    run_dir, dice = tmp_path / "run", random.Random(5)
    for _ in range(KILLS):
        ranks = forked.start(forked.pretrain, (str(file),), 2)
        grown = _lines(run_dir)
        while _lines(run_dir) <= grown and all(process.is_alive() for process in ranks.processes):
            time.sleep(0.005)
        time.sleep(dice.uniform(0, 0.6))
        victims = dice.choice(([0], [1], [0, 1]))
        for victim in victims:
            os.kill(ranks.processes[victim].pid or 0, signal.SIGKILL)
        ended = ranks.wait()
        assert {code for code, _ in ended} <= {-signal.SIGKILL, EXIT_OK}, ended
        whole = checkpoint.committed(run_dir)
        for saved in whole:
            saved.verify()
        assert not whole or len(whole) >= min(2, whole[-1].update // EVERY)
    forked.run(forked.pretrain, (str(file),), 2)
    assert same_to_the_bit(run_dir, golden)


def test_every_world_and_stage_after_every_other(golden: Path, tmp_path: Path) -> None:
    """{1, 2, 4} ranks x ZeRO {1, 2, 3} to {1, 2, 4} x {1, 2, 3}: 81 ways to go on."""
    worlds = (1, 2, 4)
    stages = ("zero1", "zero2", str(elastic_ranks.whole_zero3(tmp_path)))
    expected = records(golden)
    sources: dict[tuple[int, str], Path] = {}
    for world in worlds:
        for stage in stages:
            folder = tmp_path / f"from-{world}-{Path(stage).stem}"
            sources[world, stage] = beginning(golden, folder, 15)
        _updates(world, [(sources[world, stage], stage) for stage in stages], 16, expected)
    for (world, stage), target in itertools.product(sources, worlds):
        hops = []
        for number, config in enumerate(stages):
            folder = tmp_path / f"to-{world}-{Path(stage).stem}-{target}-{number}"
            hops.append((shutil.copytree(sources[world, stage], folder / "run"), config))
        _updates(target, hops, 17, expected)
        for copy, _ in hops:
            shutil.rmtree(copy.parent)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount a small file system")
def test_a_disk_that_is_really_full_for_a_while_leaves_no_trace(golden: Path, tmp_path: Path) -> None:
    """It fills up between two files of a checkpoint, and has room again some updates later."""
    place = tmp_path / "small"
    place.mkdir()
    size = sum(file.stat().st_size for file in beginning(golden, tmp_path, 15).rglob("*"))
    mount = ["mount", "-t", "tmpfs", "-o", f"size={12 * size}", "tmpfs", str(place)]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("mounting is not permitted here")
    try:
        run_dir = beginning(golden, place, 15)
        [said, _] = forked.run(forked.pretrain, (str(run_dir),), 2, FullForAWhile(place / "ballast"))
        assert "update 18 could not be saved" in said
        assert "No space left on device" in said
        assert "checkpoints work again" in said
        failures = [
            r["checkpoint_failures"] for (kind, _), r in records(run_dir).items() if kind == "checkpoint"
        ]
        assert failures[-1] >= 1
        assert same_to_the_bit(run_dir, golden)
    finally:
        subprocess.run(["umount", "-l", str(place)], check=True)


@dataclass(frozen=True)
class FullForAWhile:
    """Rank 0 fills the disk when the first optimizer file is written, and clears it some looks later."""

    ballast: Path

    def __call__(self, rank: int) -> None:
        if rank == 0:
            faults.when("os.chmod", "optimizer-00000", self._fill)
            faults.when("os.listdir", "attempts", self._clear, count=60)

    def _fill(self) -> None:
        with contextlib.suppress(OSError), self.ballast.open("wb", buffering=0) as file:
            while True:
                file.write(bytes(4096))

    def _clear(self) -> None:
        self.ballast.unlink()


def _updates(
    world: int, hops: list[tuple[Path, str]], update: int, expected: dict[tuple[str, int], dict[str, float]]
) -> None:
    """Take each run one update further on so many ranks, and compare with the run that nobody disturbed."""
    [said, *_] = forked.run(elastic_ranks.main, (hops,), world)
    reports = [json.loads(line) for line in said.splitlines()]
    assert len(reports) == len(hops)
    for report in reports:
        assert report["update"] == update
        assert report["wrong"] == [], report
        assert report["same_rows"], report
        assert report["loss"] == pytest.approx(expected["train", update]["loss"], rel=1e-5), report


def _lines(run_dir: Path) -> int:
    metrics = run_dir / "metrics.jsonl"
    return metrics.read_bytes().count(b"\n") if metrics.exists() else 0
