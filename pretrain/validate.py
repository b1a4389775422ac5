"""Held-out perplexity with memory and with memory reset at every step: their gap is the history gain."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from pretrain import distributed
from pretrain.dispatch.batch import Batch
from pretrain.dispatch.dispatcher import Dispatcher
from pretrain.distributed import World
from pretrain.model.loss import IGNORED

LAST_BUCKET = 7
"""Segments from this index of their document on are counted together."""


@dataclass(frozen=True)
class Validation:
    """Sums over held-out segments, by their index in the document; the last bucket gathers the rest."""

    nll: Tensor
    """`[2, LAST_BUCKET + 1]` float64: summed cross-entropy with memory, and with memory reset."""
    targets: Tensor
    """`[LAST_BUCKET + 1]` float64: target tokens."""

    @property
    def loss(self) -> float:
        """Nats per target token, with memory."""
        return float(self.nll[0].sum() / self.targets.sum())

    @property
    def perplexity(self) -> float:
        """exp(`loss`), at most exp(700)."""
        return _perplexity(self.nll[0].sum() / self.targets.sum())

    @property
    def perplexity_reset(self) -> float:
        """The same with memory reset at every step."""
        return _perplexity(self.nll[1].sum() / self.targets.sum())

    def metrics(self) -> dict[str, float]:
        """The figures that are tracked; a bucket without segments is left out."""
        report = {
            "validation/loss": self.loss,
            "validation/perplexity": self.perplexity,
            "validation/perplexity_reset": self.perplexity_reset,
            "validation/history_gain": self.perplexity_reset / self.perplexity - 1.0,
            "validation/target_tokens": float(self.targets.sum()),
        }
        for index in range(LAST_BUCKET + 1):
            if self.targets[index] > 0:
                gap = float((self.nll[1, index] - self.nll[0, index]) / self.targets[index])
                report[f"validation/history_gain_by_segment/{index}"] = math.exp(gap) - 1.0
        return report

    def summary(self) -> str:
        """The perplexities in half a line."""
        with_memory, without = self.perplexity, self.perplexity_reset
        return f"held-out perplexity {with_memory:.2f} with memory, {without:.2f} with memory reset"


def _perplexity(loss: Tensor) -> float:
    return math.exp(min(float(loss), 700.0))


@torch.no_grad()
def validate(
    cell: Callable[..., Any],
    dispatcher: Dispatcher,
    initial: Callable[[int], Tensor],
    world: World,
    max_timesteps: int,
) -> Validation:
    """Run the dispatcher's finite pass once with memory and once, on the same batches, without.

    Args:
        cell: a `Cell` in eval mode, or an engine around one. Collective at ZeRO-3.
        dispatcher: a finite pass over held-out documents, fresh.
        initial: makes the initial memory of that many agents.
        max_timesteps: at most so many timesteps of it.
    """
    sums = torch.zeros(3, LAST_BUCKET + 1, dtype=torch.float64, device=world.device)
    carried: Tensor | None = None
    for timestep, cpu_batch in enumerate(dispatcher):
        if timestep == max_timesteps:
            break
        batch: Batch = cpu_batch.to(world.device)
        if carried is None:
            carried = initial(len(batch.agent))
        bucket = batch.segment.clamp(0, LAST_BUCKET)
        nll, carried, _ = cell(batch, carried, ("validation",), per_row=True)
        nll_reset, _, _ = cell(
            replace(batch, memory_resets=torch.ones_like(batch.memory_resets)),
            carried,
            ("validation",),
            per_row=True,
        )
        counts = (batch.labels != IGNORED).sum(dim=1)
        for row, values in enumerate((nll, nll_reset, counts)):
            sums[row].index_add_(0, bucket, values.double())
    distributed.total(sums)
    return Validation(nll=sums[:2].cpu(), targets=sums[2].cpu())
