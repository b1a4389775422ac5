"""What jobs of tests leave behind, where their ranks are, and the recipe that they train."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import yaml

from tests.support import tiny


def recipe_file(file: Path, shards: Path, steps: int, **changes: Any) -> Path:
    """The smallest recipe on two ranks. Ranks may stand still for minutes: here that is no fault."""
    settings: dict[str, Any] = {
        "name": "unnamed",
        "model__config": {**tiny.MODEL, "encoder_layers": 1, "decoder_layers": 1},
        "data__lanes": 2,
        "data__agents_per_lane": 1,
        "replay__horizon": 2,
        "optimizer__schedule": "constant",
        "train__steps": steps,
        "train__rehearse": False,
        "train__peer_timeout": 0,
        "train__collective_timeout": 900,
        "validation__every": 0,
        "validation__max_timesteps": 2,
        "checkpoint__every": 10,
    }
    file.write_text(yaml.safe_dump(tiny.recipe(shards, Path("nowhere"), **{**settings, **changes})))
    return file


def told(place: Path) -> str:
    """The ends of all logs of jobs under a folder."""
    files = [*place.glob("*.out"), *place.rglob("logs/*.out"), *place.rglob("*.jobs/*/*/n*.log")]
    return "\n".join(
        f"== {file}\n" + "\n".join(text.splitlines()[-25:])
        for file in sorted(files)
        if (text := file.read_text(errors="replace").strip())
    )


def journal(run: Path, stage: str = "pretrain") -> str:
    file = run.with_name(f"{run.name}.jobs") / stage / "journal"
    return file.read_text() if file.exists() else ""


def last_step(run: Path) -> int:
    metrics = run / "metrics.jsonl"
    lines = metrics.read_text().splitlines() if metrics.exists() else []
    return max((json.loads(line)["step"] for line in lines if line.endswith("}")), default=0)


def ranks(job: str, restart: int) -> list[int]:
    """Process ids of a job's training ranks."""
    found = []
    for process in Path("/proc").iterdir():
        try:
            if not process.name.isdigit() or b"\0pretrain\0" not in (process / "cmdline").read_bytes():
                continue
            words = (process / "environ").read_bytes().split(b"\0")
        except OSError:
            continue
        variables = dict(word.decode(errors="replace").partition("=")[::2] for word in words)
        mine = variables.get("SLURM_JOB_ID") == job and "SLURM_PROCID" in variables
        if mine and int(variables.get("SLURM_RESTART_COUNT", 0)) == restart:
            found.append(int(process.name))
    return found


def tell(processes: list[int], number: signal.Signals) -> None:
    assert processes
    for process in processes:
        os.kill(process, number)
