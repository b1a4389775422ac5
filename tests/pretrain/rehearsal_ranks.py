"""Run on every rank by `test_rehearsal.py`: trainings with and without the dry batch, in one process."""

from __future__ import annotations

from pathlib import Path

from pretrain import distributed, preflight, recipe
from pretrain.pretraining import Pretraining
from pretrain.train import train
from tests.support import tiny


def main(folder: Path, shards: Path, configurations: tuple[str, ...]) -> None:
    """Leaves the runs `folder/CONFIGURATION-with` and `-without`."""
    world = distributed.detect()
    distributed.start(world, timeout_seconds=60)
    for configuration in configurations:
        for rehearse in (False, True):
            content = tiny.recipe(
                shards,
                folder,
                name=f"{configuration}-{'with' if rehearse else 'without'}",
                model__config={**tiny.MODEL, "dropout": 0.1},
                train__steps=2,
                train__deepspeed=configuration,
                train__rehearse=rehearse,
                validation={"every": 0, "max_timesteps": 1},
                replay={"horizon": 2, "mode": "bptt" if configuration == "zero1" else "replay"},
                tracking__mlflow=False,
            )
            plan = preflight.check(recipe.parse(content, "test"), world.size)
            train(Pretraining(plan), world)
    distributed.stop()
