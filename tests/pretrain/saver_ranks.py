"""Run on every rank by `test_saver.py`: saves beside a training that only adds 1 to a tensor."""

from __future__ import annotations

import json
import resource
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from pretrain import attempt, checkpoint, distributed
from pretrain.errors import SupersededError
from pretrain.recipe import CheckpointSection
from pretrain.saver import Contents, Saver
from tests.support import faults
from tests.support.faults import FileLimit

SIZE = 1000


class Training:
    """Update u has the value u everywhere."""

    def __init__(self, run_dir: Path, **policy: Any) -> None:
        self.world = distributed.detect()
        self.run_dir = run_dir
        mine = distributed.on_first(lambda: attempt.claim(run_dir))
        self.saver = Saver(mine, self.world, CheckpointSection(**policy))
        self.saver.reserve(4 * SIZE)
        self.weight = torch.zeros(SIZE)
        self.update = 0

    def advance(self) -> None:
        self.update += 1
        self.weight += 1

    def contents(self, size: int = SIZE) -> Contents:
        rank = self.world.rank
        name = f"master/weight@{SIZE * rank}"
        tensors = {f"optimizer-{rank:05d}.safetensors": {name: self.weight[:1].expand(size)}}
        if size == SIZE:
            tensors = {f"optimizer-{rank:05d}.safetensors": {name: self.weight}}
        return Contents(tensors, {"state.json": "{}"} if self.world.is_first else {})

    def save(self, size: int = SIZE) -> None:
        self.saver.save(self.update, lambda: self.contents(size))

    def until_ended(self) -> dict[str, Any]:
        """Go on training until a save has ended."""
        while not (ended := self.saver.poll()):
            self.advance()
        [save] = ended
        return {
            "update": save.update,
            "path": save.path.name if save.path else None,
            "error": save.error,
            "failures": save.failures,
            "metrics": sorted(save.metrics()),
        }

    def committed(self) -> list[int]:
        return [saved.update for saved in checkpoint.committed(self.run_dir)]


def wait_for(event: threading.Event) -> Callable[[], None]:
    def wait() -> None:
        event.wait()

    return wait


def beside(run_dir: Path) -> dict[str, Any]:
    """A save while rank 1's disk takes its time; then another one at once."""
    training = Training(run_dir)
    go_on = threading.Event()
    if training.world.rank == 1:
        faults.when("os.chmod", r"step-00000001/optimizer", wait_for(go_on))
    training.advance()
    training.save()
    told = []
    for _ in range(5):
        training.advance()
        told += training.saver.poll()
    before = training.committed()
    go_on.set()
    training.save()  # waits for the first
    between = training.committed()
    first = training.until_ended()
    second = training.until_ended()
    values = [
        saved.slice("master", "weight", 0, 2 * SIZE).unique().tolist()
        for saved in checkpoint.committed(run_dir)
    ]
    training.saver.close()
    return {
        "told": len(told),
        "before": before,
        "between": between,
        "ended": [first, second],
        "values": values,
    }


def full(run_dir: Path) -> dict[str, Any]:
    """One rank's disk is full for two saves, then there is too little room for a third, then all is well."""
    training = Training(run_dir)
    training.advance()
    training.save()
    ended = [training.until_ended()]
    if training.world.rank == 1:
        FileLimit(SIZE)()
    for _ in range(2):
        training.advance()
        training.save()
        ended.append(training.until_ended())
    FileLimit(resource.RLIM_INFINITY)()
    training.save(size=1 << 50)
    ended.append(training.until_ended())
    left = [path.name for path in training.saver.attempt.staging.iterdir()]
    training.advance()
    training.save()
    ended.append(training.until_ended())
    training.saver.close()
    return {"ended": ended, "left": left, "committed": training.committed()}


def superseded(run_dir: Path) -> dict[str, Any]:
    """A newer start claims the run between two saves, and while one is in flight."""
    told = []
    for in_flight in (False, True):
        training = Training(run_dir)
        go_on = threading.Event()
        if training.world.rank == 1:
            faults.when("os.chmod", r"optimizer", wait_for(go_on))
        training.advance()
        if in_flight:
            training.save()
            training.saver.poll()
        distributed.on_first(lambda: attempt.claim(run_dir).number)
        go_on.set()
        try:
            training.save()
        except SupersededError as error:
            told.append(str(error))
        training.saver.close()
    return {"told": told, "committed": checkpoint.committed(run_dir)}


def main(scenario: str, run_dir: Path) -> int:
    world = distributed.detect()
    distributed.start(world, 60)
    found = {"beside": beside, "full": full, "superseded": superseded}[scenario](run_dir)
    print(json.dumps(found))
    distributed.stop()
    return 0
