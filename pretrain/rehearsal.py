"""The dry batch: one update of the largest shape, before any data are read and without a trace.

A job that does not fit into memory ends in its first seconds, not hours later at a batch of long rows.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from pretrain.dispatch.batch import Batch
from pretrain.replay import loss_coefficients

if TYPE_CHECKING:
    from pretrain.train import Run


def rehearse(run: Run) -> None:
    """Forward, backward, reduction and an optimizer step of rate 0 on the job's worst batch. Collective.

    The run must be fresh: moments are zero afterwards, and what is restored from a checkpoint comes later.
    Gradients are multiplied by zero, so the step moves no weight and no moment; generators are put back.

    Raises:
        Exception: whatever the allocator raises; see `pretrain.memory`.
    """
    batch = run.job.worst_batch(run.world)
    if batch is None:
        return
    run.pulse.enter("rehearsal")
    replay, device = run.recipe.replay, run.world.device
    # Replay keeps one timestep alive, whatever the horizon; the others keep them all.
    rollout = [batch] * (2 if replay.mode == "replay" else replay.horizon)
    counts = torch.stack([run.job.count(batch).to(device) for batch in rollout])
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        run.back_propagate(rollout, torch.zeros_like(loss_coefficients(counts, replay.loss_weights)))
        run.engine.step(0.0)
    run.engine.prepare_moments(0)
    if device.type == "cuda":
        run.largest_memory = torch.cuda.max_memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)


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
