"""Run on every rank by `conftest.py`: train at ZeRO stage 1, then save the same state from stages 2 and 3.

The run of the recipe is copied to `FOLDER/zero2/run` and `FOLDER/zero3/run`. Each is resumed at its stage and
saved as it stands, at stage 3 with other generation settings. At stage 2, rank 0 also lets the model that
DeepSpeed holds speak, and leaves what it said in `FOLDER/live.safetensors`.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import torch.distributed as dist
from safetensors.torch import save_file

from pretrain import attempt, distributed, preflight, recipe
from pretrain.pretraining import Pretraining
from pretrain.pulse import Pulse
from pretrain.train import Run, train
from tests.pretrain.export.turns import three_turns


def main(file: str, folder: Path) -> None:
    world = distributed.detect()
    distributed.start(world, 150)
    wanted = recipe.load(file)
    train(Pretraining(preflight.check(wanted, world.size)), world)
    for stage in (2, 3):
        root = folder / f"zero{stage}"
        if world.is_first:
            shutil.copytree(wanted.run_dir, root / "run", copy_function=link_weights)
        dist.barrier()
        save_again(recipe.load(file, [f"root={root}", f"train.deepspeed=zero{stage}"]), stage, world, folder)
    dist.barrier()
    distributed.stop()


def save_again(wanted: recipe.Recipe, stage: int, world: distributed.World, folder: Path) -> None:
    mine = distributed.on_first(lambda: attempt.claim(wanted.run_dir))
    run = Run(Pretraining(preflight.check(wanted, world.size)), world, mine, Pulse())
    model: Any = run.engine.cell.model
    assert run.engine.stage == stage
    if stage == 3:
        model.generation_config.num_beams = 3
    saved = run.save_and_wait(None)
    assert saved.path, saved.summary
    if stage == 2:
        run.engine.train(False)
        said = three_turns(model)
        if world.is_first:
            whole = {name: tensor.contiguous() for name, tensor in said.items()}
            save_file(whole, folder / "live.safetensors")
    run.close()


def link_weights(source: str, target: str) -> None:
    """Checkpoints are replaced as a whole, never written into: a second name of the file is enough."""
    (os.link if source.endswith(".safetensors") else shutil.copy2)(source, target)
