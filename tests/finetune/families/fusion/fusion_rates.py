"""A target of `tests.support.forked`: learning rates of a small fusing model in DeepSpeed, as a JSON line.

At each ZeRO stage, for chosen updates of the paper's 2,567: the rate of each group by its name.
"""

from __future__ import annotations

import json
from typing import Any

import torch

from finetune.recipe import FineTuneRecipe
from pretrain import distributed, recipe
from pretrain.engine import Engine, learning_rate
from tests.support import dialogues as made
from tests.support import fusion

UPDATES = (0, 4, 5, 1282, 2566)


def rates(stage: str, world: distributed.World) -> list[dict[str, float]]:
    which, model = fusion.built("gpt2", fusion="sw", warmup_share=0.002)
    which.steps = 2567
    content: dict[str, Any] = made.recipe("fusion", "jsonl:nowhere", fusion.NOWHERE)
    content["optimizer"] = {"lr": 5e-4, "schedule": "constant", "rates": {"fusion": 5.0}}
    content["train"]["deepspeed"] = stage
    wanted = recipe.parse(content, "test", FineTuneRecipe)
    engine = Engine(which.cell(model), wanted, world)
    engine.train()
    batch = fusion.batch(which)
    found = []
    for update in UPDATES:
        with engine.accumulation():
            losses, _, _ = engine(batch, torch.zeros(3, *which.memory_shape(model)), (update,))
            engine.backward(losses.sum(), last=True)
        engine.step(learning_rate(wanted.optimizer, update, 2567), which.rates(update))
        found.append({group["name"]: group["lr"] for group in engine._base_optimizer.param_groups})
    return found


def main() -> None:
    world = distributed.detect()
    distributed.start(world, 60)
    print(json.dumps([rates(stage, world) for stage in ("zero1", "zero2", "zero3")]))
    distributed.stop()
