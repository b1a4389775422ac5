"""A rank that trains nothing: it passes phases, with one collective an update, until something happens."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Literal

import torch
import torch.distributed as dist

from pretrain import attempt, distributed, recipe
from pretrain.errors import EXIT_REQUEUE, ShardError
from pretrain.guard import guarded
from pretrain.pulse import Pulse

RECIPE = {
    "name": "run",
    "model": {},
    "data": {"shards": [], "lanes": 4, "agents_per_lane": 2},
    "optimizer": {"lr": 1e-2},
}
EVENT = 3
"""The update at which something happens."""

What = Literal["loop", "finish", "stall", "stay away", "mistake", "bug"]


def main(folder: Path, what: What, who: int, limits: dict[str, int]) -> int:
    """All ranks `loop` on, or rank `who` does `what` at the third update; `limits` go into the recipe."""
    content = {**RECIPE, "root": str(folder), "train": {"steps": 8, "collective_timeout": 60, **limits}}
    described, world = recipe.parse(content, "test"), distributed.detect()

    def work(pulse: Pulse) -> int:
        pulse.attempt = distributed.on_first(lambda: attempt.claim(described.run_dir))
        # As libraries do: a group with torch's own timeout.
        group = dist.new_group()
        distributed.limit_collectives(described.train.collective_timeout)
        pulse.settle()
        for update in range(1, 100_000):
            pulse.enter("data", update)
            if update == EVENT:
                print("at the event", flush=True)
                if what == "finish":
                    pulse.enter("finish")
                    time.sleep(0.5 if world.rank == who else 0)
                    print(f"done {time.monotonic()}", flush=True)
                    return EXIT_REQUEUE
                if what == "stay away" and world.rank != who:
                    dist.all_reduce(torch.ones(1), group=group)
                if what in ("stall", "stay away") and world.rank == who:
                    time.sleep(3600)
                if what == "mistake" and world.rank == who:
                    raise ShardError("is torn", where="shard 7", mend="mend it")
                if what == "bug" and world.rank == who:
                    raise ZeroDivisionError("of mine")
            time.sleep(0.01)
            pulse.enter("counting")
            distributed.total(torch.ones(1))
        return 0

    code = guarded(described, world, work)
    print(f"left {time.monotonic()}", flush=True)
    return code
