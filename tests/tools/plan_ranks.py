"""Run on every rank by `test_plan.py`: real steps under one DeepSpeed configuration after another.

Rank 0 prints one JSON line per configuration: bytes of the tensors alive at each moment of the second step,
and bytes that its collectives carried. Stage 3 comes last: DeepSpeed then changes `linear` for good.
"""

from __future__ import annotations

import gc
import json
import sys
from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from pretrain import distributed, recipe
from pretrain.engine import Engine
from pretrain.replay import Cell, back_propagate
from tests.support import tiny
from tests.support.alive import Alive, padded


class Collectives(TorchDispatchMode):
    """Bytes of the first argument of collectives: what is reduced or gathered, or the scattered share."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace == "c10d":
            tensors = [leaf for leaf in tree_leaves(args[0]) if isinstance(leaf, Tensor)]
            self.bytes[func.overloadpacket.__name__] += sum(tensor.nbytes for tensor in tensors)
        return func(*args, **(kwargs or {}))


def step(engine: Engine, case: dict[str, Any], reached: Callable[[str], None]) -> None:
    """One optimizer step; tells the moments that it has left behind."""
    agents, window, horizon = case["agents"], case["window"], case["horizon"]
    config = engine.cell.model.config
    with engine.accumulation():
        back_propagate(
            engine,
            [padded(agents, window) for _ in range(horizon)],
            torch.zeros(agents, config.memory_len, config.d_model),
            torch.ones(horizon),
            [("key", t) for t in range(horizon)],
            engine.backward,
        )
        reached("timestep")
    reached("reduction")
    assert engine.step(1e-3) is not None
    reached("update")


def measure(engine: Engine, case: dict[str, Any], before: int) -> dict[str, Any]:
    """Peaks of a step's moments in bytes above `before`, and what its collectives carried."""
    alive, collectives, found = Alive(), Collectives(), {}

    def reached(moment: str) -> None:
        found[moment] = alive.peak - before
        alive.restart()

    with alive, collectives:
        step(engine, case, reached)
    return {**found, "collectives": collectives.bytes}


def main() -> None:
    world = distributed.detect()
    distributed.start(world, 60)
    import deepspeed  # noqa: F401 -- so that what it makes is frozen too

    gc.freeze()  # the many objects of libraries are not looked through again
    for case in json.loads(sys.argv[1]):
        wanted = recipe.parse(
            {
                "name": "plan",
                "model": {},
                "data": {"shards": [], "lanes": world.size, "agents_per_lane": case["agents"]},
                "replay": {"horizon": case["horizon"]},
                "optimizer": {"lr": 1e-3},
                "train": {"steps": 2, "deepspeed": case["deepspeed"], "precision": case["precision"]},
            },
            "test",
        )
        gc.collect()
        before = Alive().bytes
        engine = Engine(Cell(tiny.model(**case["shape"])), wanted, world)
        step(engine, case, lambda moment: None)  # the first one makes the moments of Adam
        if world.is_first:
            print(json.dumps(measure(engine, case, before)), flush=True)
        else:
            step(engine, case, lambda moment: None)
        engine.deepspeed.destroy()
        del engine
    distributed.stop()


if __name__ == "__main__":
    main()
