"""Run on every rank by `test_train.py`: a job with learning rates of its own."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from pretrain import distributed, preflight, recipe
from pretrain.pretraining import Pretraining
from pretrain.train import train


class Falling(Pretraining):
    def rates(self, update: int) -> Mapping[str, float]:
        return {"": 1.0 - 0.25 * update, "decoder": 0.5}


def main(file: Path) -> None:
    world = distributed.detect()
    distributed.start(world, timeout_seconds=60)
    train(Falling(preflight.check(recipe.load(str(file)), world.size)), world)
    distributed.stop()
