"""Run on every rank: runs taken an update further, each under a ZeRO stage that may be another than before.

Rank 0 prints a JSON line per update: what it gave, and whether all ranks together had what was in the
checkpoint before it.
"""

from __future__ import annotations

import hashlib
import json
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pretrain import attempt, checkpoint, distributed, preflight, recipe
from pretrain.checkpoint import Checkpoint
from pretrain.dispatch.batch import Batch
from pretrain.distributed import World
from pretrain.engine import load_config
from pretrain.pretraining import Pretraining
from pretrain.pulse import Pulse
from pretrain.train import Run

Rows = dict[tuple[int, int, int], str]
"""What a timestep gave each agent: (timestep, lane, agent) -> hash."""


class Watched(Pretraining):
    """Pretraining that remembers the rows it was given."""

    rows: Rows

    def count(self, batch: Batch) -> Tensor:
        self.rows |= rows(batch, len({timestep for timestep, _, _ in self.rows}))
        return super().count(batch)


def rows(batch: Batch, timestep: int) -> Rows:
    """The noised segments of one timestep, without the padding that depends on who shares a batch."""
    found = {}
    for i in range(len(batch.lane)):
        source = batch.input_ids[i][batch.attention_mask[i].bool()].tolist()
        target = batch.labels[i][batch.labels[i] >= 0].tolist()
        content = [source, target, int(batch.memory_resets[i]), int(batch.document[i]), int(batch.segment[i])]
        key = (timestep, int(batch.lane[i]), int(batch.agent[i]))
        found[key] = hashlib.sha256(json.dumps(content).encode()).hexdigest()
    return found


def expected_rows(job: Pretraining, saved: Checkpoint) -> Rows:
    """What the stream gives one rank that owns every lane."""
    alone = World(0, 1, 0, "", 0)
    found: Rows = {}
    with job.stream("train", alone) as stream:
        stream.load_state_dict(saved.state["dispatcher"])
        for timestep in range(job.recipe.replay.horizon):
            found |= rows(next(stream), timestep)
    return found


def whole_zero3(folder: Path) -> Path:
    """ZeRO-3 that cuts up even the tiny parameters of a test, which would else stay whole on every rank."""
    config = load_config("zero3")
    config["zero_optimization"]["stage3_param_persistence_threshold"] = 0
    path = folder / "zero3_whole.json"
    path.write_text(json.dumps(config))
    return path


def joined(parts: list[dict[Any, Any]]) -> dict[Any, Any]:
    return {key: value for part in parts for key, value in part.items()}


def restored(run: Run, saved: Checkpoint) -> list[str]:
    """What is not bit for bit as in the checkpoint. Collective."""
    mine = {
        (key, fragment.name, fragment.start): tensor.clone()
        for fragment in run.engine.fragments()
        for key, tensor in fragment.tensors.items()
    }
    pieces = joined(distributed.gather(mine))
    agents = len(run.memory) // len(run.lanes)
    memory = joined(
        distributed.gather(
            {lane: run.memory[i * agents : (i + 1) * agents] for i, lane in enumerate(run.lanes)}
        )
    )
    whole = {name: value.flatten().clone() for name, value in run.engine.full_state(trainable=True)}
    wrong = []
    for name, weight in whole.items():
        if not torch.equal(weight, saved.slice("master", name, 0, weight.numel())):
            wrong.append(f"weight of {name}")
        for key in ("master", "exp_avg", "exp_avg_sq"):
            starts = sorted(start for k, n, start in pieces if (k, n) == (key, name))
            value = torch.cat([pieces[key, name, start] for start in starts])
            if not torch.equal(value, saved.slice(key, name, 0, weight.numel())):
                wrong.append(f"{key} of {name}")
    lanes = sorted(memory)
    if not torch.equal(torch.cat([memory[lane] for lane in lanes]), saved.memory(lanes)):
        wrong.append("memory")
    return wrong


def main(hops: list[tuple[Path, str]], without_memory: bool = False) -> int:
    """Take run folders one update further, each under a DeepSpeed configuration."""
    world = distributed.detect()
    distributed.start(world, 100)
    for run_dir, config in hops:
        place = [f"root={run_dir.parent}", f"name={run_dir.name}", f"train.deepspeed={config}"]
        wanted = recipe.load(str(run_dir / "recipe.yaml"), place)
        job = Watched(preflight.check(wanted, world.size))
        job.rows = {}
        saved = checkpoint.resolve(run_dir)
        run = Run(job, world, distributed.on_first(partial(attempt.claim, run_dir)), Pulse())
        wrong = restored(run, saved)
        if without_memory:
            run.memory.zero_()
        job.rows.clear()
        run.advance()
        report = {
            "world": world.size,
            "stage": run.engine.stage,
            "from": [saved.state["world_size"], saved.state["zero_stage"]],
            "update": run.update,
            "wrong": wrong,
            "same_rows": joined(distributed.gather(job.rows)) == expected_rows(job, saved),
            **run.meter.read(),
        }
        assert run.save_and_wait(None).path
        run.close()
        if world.is_first:
            print(json.dumps(report), flush=True)
    distributed.stop()
    return 0
