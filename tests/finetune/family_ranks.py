"""Run on every rank by `test_families_ranks.py`: fine-tune families at ZeRO stages 1, 2 and 3 in turn.

    family_ranks.py ROOT FILE...      each FILE a recipe; runs go to ROOT/FAMILY-zeroN

The run at stage 2 is then cut back to its first checkpoint in a copy, ROOT/FAMILY-again, and continued.
"""

from __future__ import annotations

import shutil
import sys
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


def main(root: Path, files: list[str]) -> None:
    world = distributed.detect()
    distributed.start(world, 120)
    for file in files:
        content = yaml.safe_load(Path(file).read_text(encoding="utf-8"))
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


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
