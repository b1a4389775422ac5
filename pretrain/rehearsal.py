"""The dry batch: one update of the largest shape, before any data are read and without a trace.

A job that does not fit into memory ends in its first seconds, not hours later at a batch of long rows.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from pretrain.dispatch.batch import Batch
from pretrain.distributed import World
from pretrain.engine import Engine
from pretrain.job import Job
from pretrain.replay import loss_coefficients


def rehearse(
    job: Job, world: World, engine: Engine, back_propagate: Callable[[Sequence[Any], Tensor], object]
) -> int:
    """Forward, backward, reduction and an optimizer step of rate 0 on the job's worst batch. Collective.

    Gradients are multiplied by zero, so the step moves no weight and no moment; generators are put back.

    Args:
        engine: fresh: moments are zero afterwards, and what is restored from a checkpoint comes later.
        back_propagate: makes the gradients of a rollout under given coefficients, as `Run.back_propagate`.

    Returns:
        Bytes of a GPU that it took; 0 without one, or where the job knows no worst batch.

    Raises:
        Exception: whatever the allocator raises; see `pretrain.out_of_memory`.
    """
    batch = job.worst_batch(world)
    if batch is None:
        return 0
    replay, device = job.recipe.replay, world.device
    # Replay keeps one timestep alive, whatever the horizon; the others keep them all.
    rollout = [batch] * (2 if replay.mode == "replay" else replay.horizon)
    counts = torch.stack([job.count(batch).to(device) for batch in rollout])
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        back_propagate(rollout, torch.zeros_like(loss_coefficients(counts, replay.loss_weights)))
        engine.step(0.0)
    engine.prepare_moments(0)
    if device.type != "cuda":
        return 0
    taken = torch.cuda.max_memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    return taken


def full_batch(agents: int, width: int) -> Batch:
    """A made-up batch of `agents` rows without padding; its tokens mean nothing."""
    ids = torch.zeros(agents, width, dtype=torch.int64)
    number, none = torch.arange(agents), torch.full((agents,), -1)
    return Batch(
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        decoder_input_ids=ids,
        labels=ids,
        memory_resets=torch.ones(agents, dtype=torch.int64),
        lane=number,
        agent=number,
        document=none,
        segment=none,
        epoch=none,
        timestep=0,
        target_tokens=ids.numel(),
    )
