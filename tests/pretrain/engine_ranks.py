"""A target of `tests.support.forked`: train a tiny MemBART at one ZeRO configuration after another.

Rank 0 prints one JSON line per configuration: how far Adam's first moment, which is linear in the gradients
of all updates, is from that of plain back-propagation through time of the whole global batch by torch alone.
"""

from __future__ import annotations

import json
from typing import Any

import torch
import torch.distributed as dist

from pretrain import distributed, recipe
from pretrain.dispatch.batch import Batch
from pretrain.engine import Engine, learning_rate, parameter_groups
from pretrain.replay import Cell, Mode, back_propagate, loss_coefficients
from tests.support import tiny

UPDATES, HORIZON, AGENTS = 3, 4, 4


def settings(stage: str, mode: Mode, chunks: int, precision: str) -> recipe.Recipe:
    return recipe.parse(
        {
            "name": "engine",
            "model": {},
            "data": {"shards": [], "lanes": AGENTS, "agents_per_lane": 1},
            "replay": {"mode": mode, "horizon": HORIZON, "agent_chunks": chunks},
            # A large epsilon keeps Adam from blowing rounding noise of tiny gradients up to whole steps.
            "optimizer": {"lr": 1e-2, "eps": 1e-2, "warmup_steps": 2, "gradient_clipping": 0.05},
            "train": {"steps": UPDATES, "deepspeed": stage, "precision": precision},
        },
        "test",
    )


def coefficients(rollout: list[Batch]) -> torch.Tensor:
    return loss_coefficients(torch.tensor([b.target_tokens for b in rollout]), "geometric")


def keys(update: int) -> list[tuple[int, ...]]:
    return [(update, t) for t in range(HORIZON)]


def reference(wanted: recipe.Recipe, dropout: float) -> tuple[dict[str, torch.Tensor], list[float]]:
    """First moments after plain BPTT and torch's AdamW on one rank, and the gradient norms."""
    cell = Cell(tiny.model(dropout=dropout)).train()
    optimizer = torch.optim.AdamW(parameter_groups(cell, wanted.optimizer), lr=1.0, eps=wanted.optimizer.eps)
    memory, norms = cell.model.construct_memory(AGENTS), []
    for update in range(UPDATES):
        rollout = tiny.rollout(HORIZON, AGENTS, seed=update)
        result = back_propagate(
            cell,
            rollout,
            memory,
            coefficients(rollout),
            keys(update),
            lambda s, last: s.backward(),
            mode="bptt",
        )
        memory = result.memory
        norms.append(
            float(torch.nn.utils.clip_grad_norm_(cell.parameters(), wanted.optimizer.gradient_clipping))
        )
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(wanted.optimizer, update, UPDATES)
        optimizer.step()
        optimizer.zero_grad()
    return {name: optimizer.state[p]["exp_avg"] for name, p in cell.model.named_parameters()}, norms


def trained(
    wanted: recipe.Recipe, world: distributed.World, dropout: float, poisoned: int | None
) -> dict[str, Any]:
    """Train with DeepSpeed; at update `poisoned` the loss of the last rank alone is not finite."""
    engine = Engine(Cell(tiny.model(dropout=dropout)), wanted, world)
    engine.train()
    mine = AGENTS // world.size
    rows = slice(world.rank * mine, (world.rank + 1) * mine)
    memory, norms, update = torch.zeros(mine, 4, 16), [], 0
    chunk = mine // wanted.replay.agent_chunks
    applied = 0
    while applied < UPDATES:
        rollout = tiny.rollout(HORIZON, AGENTS, seed=applied)
        factors = coefficients(rollout) * engine.loss_scale
        bad = poisoned == update
        if bad and world.rank == world.size - 1:
            factors = factors * float("nan")
        results = []
        with engine.accumulation():
            for number in range(wanted.replay.agent_chunks):
                part = slice(number * chunk, (number + 1) * chunk)
                results.append(
                    back_propagate(
                        engine,
                        [batch.rows(rows).rows(part) for batch in rollout],
                        memory[part],
                        factors,
                        keys(applied),
                        engine.backward,
                        mode=wanted.replay.mode,
                        last=number == wanted.replay.agent_chunks - 1,
                    )
                )
        norm = engine.step(learning_rate(wanted.optimizer, applied, UPDATES))
        norms.append(norm)
        update += 1
        if norm is not None:
            memory = torch.cat([result.memory for result in results])
            assert memory.dtype == torch.float32, "memory is float32 between steps, whatever the precision"
            applied += 1
    pieces = [
        (fragment.name, fragment.start, {key: value.clone() for key, value in fragment.tensors.items()})
        for fragment in engine.fragments()
    ]
    everyone = distributed.gather(pieces)
    whole = {name: value.clone() for name, value in engine.full_state(trainable=True)}
    return {"pieces": [piece for part in everyone for piece in part], "norms": norms, "whole": whole}


def assembled(pieces: list[Any], key: str, name: str) -> torch.Tensor:
    parts = sorted((start, tensors[key]) for owner, start, tensors in pieces if owner == name)
    position = 0
    for start, part in parts:
        assert start == position, f"{name}: fragment at {start}, expected {position}"
        position += part.numel()
    return torch.cat([part for _, part in parts])


def main(cases: list[dict[str, Any]]) -> None:
    """One configuration per case, see `test_engine.py`."""
    world = distributed.detect()
    distributed.start(world, 60)
    for case in cases:
        wanted = settings(
            case["stage"], case.get("mode", "replay"), case.get("chunks", 1), case.get("precision", "fp32")
        )
        dropout = case.get("dropout", 0.0)
        expected, expected_norms = reference(wanted, dropout)
        found = trained(wanted, world, dropout, case.get("poisoned"))
        if world.is_first:
            # Gradients far below the largest are rounding noise in float32: they must not be the measure.
            floor = 1e-2 * max(float(value.abs().max()) for value in expected.values())
            drift = 0.0
            for name, value in expected.items():
                assert torch.equal(
                    assembled(found["pieces"], "master", name).view_as(value), found["whole"][name]
                )
                moment = assembled(found["pieces"], "exp_avg", name).view_as(value)
                drift = max(drift, float((moment - value).abs().max() / value.abs().max().clamp(min=floor)))
            report = {**case, "drift": drift, "norms": found["norms"], "expected_norms": expected_norms}
            print(json.dumps(report), flush=True)
    dist.barrier()
    distributed.stop()
