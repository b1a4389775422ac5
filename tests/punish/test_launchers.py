"""Signals to launchers alone, as schedulers, shells and keyboards send them: the run is saved."""

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

pytestmark = pytest.mark.punish

BIN = Path(sys.executable).parent
TORCHRUN = [str(BIN / "torchrun"), "--nproc-per-node", "2"]
WORDS = {
    "torchrun": [*TORCHRUN, "-m", "pretrain"],
    "torchrun, USR1 handled": [*TORCHRUN, "--signals-to-handle=SIGTERM,SIGINT,SIGUSR1", "-m", "pretrain"],
    "deepspeed": [
        *(str(BIN / "deepspeed"), "--num_gpus", "2", "--master_port", "29778"),
        *("--module", "pretrain"),
    ],
}


@pytest.mark.parametrize(
    ("launcher", "number", "to_group"),
    [
        ("torchrun", signal.SIGTERM, False),
        ("torchrun", signal.SIGTERM, True),
        ("torchrun", signal.SIGINT, True),
        ("torchrun, USR1 handled", signal.SIGUSR1, False),
        ("deepspeed", signal.SIGTERM, True),
    ],
)
def test_a_signal_to_a_launcher_or_its_process_group_saves_the_run(
    shards: Path, tmp_path: Path, launcher: str, number: signal.Signals, to_group: bool
) -> None:
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
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PATH": f"{BIN}:{os.environ['PATH']}"}
    started = subprocess.Popen(
        [*WORDS[launcher], str(file)], env=environment, start_new_session=True, cwd=tmp_path
    )
    try:
        metrics, until = run_dir / "metrics.jsonl", time.monotonic() + 150
        while not metrics.is_file() or metrics.read_text().count("\n") < 3:
            assert started.poll() is None
            assert time.monotonic() < until
            time.sleep(0.05)
        (os.killpg if to_group else os.kill)(started.pid, number)
        assert started.wait(100) != 0
        # The outermost of DeepSpeed's two launchers does not wait for the inner one.
        while (status := json.loads((run_dir / "status.json").read_text())["status"]) == "running":
            assert time.monotonic() < until + 100
            time.sleep(0.1)
    finally:
        processes.kill_tree(started)
    assert status == "preempted"
    assert checkpoint.resolve(run_dir).update >= 3
