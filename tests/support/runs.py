"""Whole training runs of the tiny recipe, and what they computed."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import yaml

from pretrain import checkpoint, files
from tests.support import tiny

FIGURES = ("loss", "gradient_norm", "memory_gradient_norm", "target_tokens", "validation/loss")


def recipe_file(folder: Path, shards: Path, **changes: Any) -> Path:
    """A recipe without MLflow that saves and validates every ten updates; its run is `folder/run`."""
    settings = {"validation__every": 10, "checkpoint__every": 10, "tracking__mlflow": False}
    content = tiny.recipe(shards, folder, **{**settings, **changes})
    file = folder / f"{content['name']}.yaml"
    file.write_text(yaml.safe_dump(content))
    return file


def records(run_dir: Path) -> dict[tuple[str, int], dict[str, float]]:
    """What was logged, by kind and step."""
    lines = (run_dir / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    found = [json.loads(line) for line in lines]
    assert len({(r["kind"], r["step"]) for r in found}) == len(found), "a step was logged twice"
    return {(r["kind"], r["step"]): r for r in found}


def numbers(run_dir: Path) -> dict[tuple[str, int], list[str]]:
    """What training computed, in hex: equal runs are equal to the last bit."""
    return {
        key: [float(record[name]).hex() for name in FIGURES if name in record]
        for key, record in records(run_dir).items()
        if key[0] != "checkpoint"  # when a save ends is a matter of the disk
    }


def beginning(finished: Path, folder: Path, *updates: int) -> Path:
    """A copy of a finished run, `folder/run`, with only these checkpoints."""
    run_dir = shutil.copytree(finished, folder / "run")
    for saved in checkpoint.committed(run_dir):
        if saved.update not in updates:
            shutil.rmtree(saved.path)
    return run_dir


def _position(saved: checkpoint.Checkpoint) -> dict[str, Any]:
    return {key: saved.state[key] for key in ("dispatcher", "tokens_seen", "skipped", "best", "since_best")}


def same_to_the_bit(mine: Path, theirs: Path) -> bool:
    """Whether two finished runs computed the same: every loss and norm, and every tensor at the end."""
    a, b = checkpoint.resolve(mine), checkpoint.resolve(theirs)
    names = sorted(file.name for file in b.path.glob("*.safetensors"))
    assert names == sorted(file.name for file in a.path.glob("*.safetensors"))
    assert numbers(mine) == numbers(theirs)
    assert _position(a) == _position(b)
    return all(files.digest(a.path / name) == files.digest(b.path / name) for name in names)
