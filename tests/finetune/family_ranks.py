"""A target of `tests.support.forked`: fine-tune a family at ZeRO stages 1, 2 and 3 in turn.

Runs go to ROOT/FAMILY-zeroN. The one at stage 2 is cut back to its first checkpoint in a copy,
ROOT/FAMILY-again, and continued.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import torch.distributed as dist
import yaml

from finetune.job import FineTuning
from finetune.recipe import FineTuneRecipe
from pretrain import checkpoint, distributed, recipe
from pretrain.train import train


def fine_tune(content: dict[str, Any], name: str, stage: str, world: distributed.World) -> None:
    wanted = {**content, "name": name, "train": {**content["train"], "deepspeed": stage}}
    train(FineTuning(recipe.parse(wanted, "test", FineTuneRecipe), world.size), world)


def cut_back(folder: Path, copy: Path) -> None:
    """Copy a run as it was after its first checkpoint."""
    shutil.copytree(folder, copy)
    for saved in checkpoint.committed(copy)[1:]:
        shutil.rmtree(saved.path)


def main(root: Path, file: Path) -> None:
    """Train by the recipe in `file`."""
    world = distributed.detect()
    distributed.start(world, 120)
    content = yaml.safe_load(file.read_text(encoding="utf-8"))
    content["root"], family = str(root), content["family"]
    for stage in ("zero1", "zero2"):
        fine_tune(content, f"{family}-{stage}", stage, world)
    if world.is_first:
        cut_back(root / f"{family}-zero2", root / f"{family}-again")
    dist.barrier()
    fine_tune(content, f"{family}-again", "zero2", world)
    # Last: DeepSpeed puts another linear layer into this process for stage 3, which rounds differently.
    fine_tune(content, f"{family}-zero3", "zero3", world)
    distributed.stop()
