"""Every launcher starts the same program; a dry run is told once; a signal to a launcher saves the run."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from pretrain import checkpoint
from tests.support import processes, tiny

BIN = Path(sys.executable).parent
LAUNCHERS = {
    "membart": [str(BIN / "membart"), "pretrain"],
    "torchrun": [str(BIN / "torchrun"), "--nproc-per-node", "2", "-m", "pretrain"],
    "deepspeed": [
        str(BIN / "deepspeed"),
        "--num_gpus",
        "2",
        "--master_port",
        "29777",
        "--module",
        "pretrain",
    ],
}


@pytest.mark.parametrize("name", LAUNCHERS)
def test_a_dry_run_under_every_launcher(name: str, shards: Path, tmp_path: Path) -> None:
    file = tmp_path / "recipe.yaml"
    file.write_text(yaml.safe_dump(tiny.recipe(shards, tmp_path / "runs")))
    done = subprocess.run(
        [*LAUNCHERS[name], str(file), "train.steps=5", "--dry-run"],
        capture_output=True,
        text=True,
        env=environment(),
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("steps per epoch") == 1
    ranks = 1 if name == "membart" else 2
    assert f"{ranks} ranks, {8 // ranks} agents each" in done.stdout


def test_a_signal_to_the_launcher_alone_saves_the_run(shards: Path, tmp_path: Path) -> None:
    """It passes the signal on, waits, and swallows the exit code: `status.json` tells what happened."""
    file, run_dir = tmp_path / "recipe.yaml", tmp_path / "run"
    content = tiny.recipe(
        shards,
        tmp_path,
        train__steps=10**6,
        checkpoint__every=10**6,
        validation__every=0,
        data__workers=1,
        tracking__mlflow=False,
    )
    file.write_text(yaml.safe_dump(content))
    launcher = subprocess.Popen([*LAUNCHERS["torchrun"], str(file)], env=environment())
    try:
        metrics, until = run_dir / "metrics.jsonl", time.monotonic() + 150
        while not metrics.is_file() or metrics.read_text().count("\n") < 3:
            assert launcher.poll() is None
            assert time.monotonic() < until
            time.sleep(0.05)
        launcher.send_signal(signal.SIGTERM)
        assert launcher.wait(100) != 0
    finally:
        processes.kill_tree(launcher)
    assert json.loads((run_dir / "status.json").read_text())["status"] == "preempted"
    assert checkpoint.resolve(run_dir).update >= 3


def environment() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", "PATH": f"{BIN}:{os.environ['PATH']}"}
