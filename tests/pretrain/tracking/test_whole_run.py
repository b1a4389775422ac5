"""A training in MLflow: one run over all its attempts, with what identifies it and what it leaves."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import yaml

from pretrain import checkpoint, files, recipe
from pretrain.tracking.system import node_name
from tests.support import faults, forked, tiny

PARENT = "0123456789abcdef0123456789abcdef"


def in_a_slurm_job(rank: int) -> None:
    os.environ["SLURM_JOB_ID"] = "4711"


def killed_while_it_makes_the_store(rank: int) -> None:
    faults.At("os.rename", r"mlflow\.db\.new", faults.die)(rank)


def train_as_a_child(file: str) -> int:
    """`python -m pretrain FILE`, of a job that came from another run."""
    from pretrain.__main__ import run
    from pretrain.pretraining import Pretraining

    Pretraining.parent_run = PARENT  # type: ignore[assignment]  # what a fine-tune answers
    return run(file, [])


def test_attempts_are_one_run_with_its_tags_its_parent_its_plots_and_its_last_checkpoint(
    shards: Path, tmp_path: Path, local: Any
) -> None:
    run_dir, file = tmp_path / "run", tmp_path / "recipe.yaml"
    content = tiny.recipe(shards, tmp_path, train__steps=12, tracking__artifacts="checkpoints")
    file.write_text(yaml.safe_dump(content))
    ended = forked.start(train_as_a_child, (str(file),), 1, killed_while_it_makes_the_store).wait()
    assert [code for code, _ in ended] == [-signal.SIGKILL], ended
    forked.run(train_as_a_child, (str(file),), 1, in_a_slurm_job)

    store = local(f"sqlite:///{tmp_path / 'mlflow.db'}")
    run = store.only_run("membart")
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    logged = {(name, line["step"]) for line in lines for name in line if name not in ("step", "time", "kind")}
    history = store.history(run.info.run_id)
    assert history.keys() == logged
    assert {len(values) for values in history.values()} == {1}
    assert run.info.status == "FINISHED"
    assert f"system/{node_name()}/cpu_utilization_percentage" in run.data.metrics

    wanted = recipe.load(str(file))
    assert run.data.params["optimizer.lr"] == "0.01"
    tags = run.data.tags
    assert tags["recipe_hash"] == wanted.hash()
    assert tags["shard_set_hash"] == checkpoint.resolve(run_dir).state["shard_set"]
    assert tags["slurm_job_id"] == "4711"
    assert tags["mlflow.parentRunId"] == PARENT
    assert tags["attempts"] == "2"
    assert not [name for name in tags if name.startswith("changed.")]

    assert {entry.path for entry in store.client.list_artifacts(run.info.run_id, "plots")} >= {
        "plots/loss.png"
    }
    saved = checkpoint.resolve(run_dir)
    kept = Path(
        store.client.download_artifacts(run.info.run_id, f"checkpoints/{saved.path.name}", str(tmp_path))
    )
    for path in saved.path.iterdir():
        assert files.digest(kept / path.name) == files.digest(path)
