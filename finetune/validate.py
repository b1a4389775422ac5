"""Held-out loss of a family: every part, and the perplexity with memory and with memory reset."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from finetune.batch import TurnBatch
from finetune.family import Family
from pretrain import distributed
from pretrain.distributed import World


@dataclass(frozen=True)
class Validation:
    """Sums over the held-out replies of all ranks."""

    parts: tuple[str, ...]
    sums: Tensor
    """`[K]` float64 on the CPU: summed parts, with memory as in training."""
    counts: Tensor
    """`[K]` float64: what they are summed over."""
    reset: float | None
    """Summed cross-entropy with memory reset at every turn; None where no memory is carried."""
    weights: Tensor
    """`[K]` final weight of each part."""

    @property
    def loss(self) -> float:
        """Weighted sum of the parts' means: what the best checkpoint is chosen by."""
        return float((self.weights * self.means).sum())

    @property
    def means(self) -> Tensor:
        """`[K]` float64: each part as a mean over what it counts."""
        return self.sums / self.counts.clamp(min=1)

    @property
    def perplexity(self) -> float:
        """Of the target tokens, with memory as in training."""
        return _exp(float(self.means[0]))

    @property
    def perplexity_reset(self) -> float | None:
        """The same with memory reset at every turn; None where no memory is carried."""
        return None if self.reset is None else _exp(self.reset / max(float(self.counts[0]), 1.0))

    def metrics(self) -> dict[str, float]:
        """The tracked figures."""
        found = {
            "validation/loss": self.loss,
            "validation/perplexity": self.perplexity,
            "validation/target_tokens": float(self.counts[0]),
        }
        if self.perplexity_reset is not None:
            found["validation/perplexity_reset"] = self.perplexity_reset
            found["validation/history_gain"] = self.perplexity_reset / self.perplexity - 1.0
        means = zip(self.parts[1:], self.means[1:].tolist(), strict=True)
        return found | {f"validation/loss/{name}": mean for name, mean in means}

    def summary(self) -> str:
        """The figures in half a line."""
        text = f"held-out perplexity {self.perplexity:.2f}"
        if self.perplexity_reset is not None:
            text += f" with memory, {self.perplexity_reset:.2f} with memory reset"
        means = zip(self.parts[1:], self.means[1:].tolist(), strict=True)
        return text + "".join(f", {name} {mean:.3g}" for name, mean in means)


def _exp(loss: float) -> float:
    return math.exp(min(loss, 700.0))


@torch.no_grad()
def validate(
    cell: Callable[..., Any],
    batches: Iterable[TurnBatch],
    family: Family,
    weights: Tensor,
    world: World,
    *,
    memory_shape: tuple[int, int],
    carried: bool,
    max_timesteps: int,
) -> Validation:
    """Run one pass of dialogues with the memory of training and, where it is carried, once without.

    Args:
        cell: in eval mode; collective at ZeRO-3, where every rank must see equally many batches.
        weights: `[K]` or 0-d, the parts' final weights.
    """
    parts = len(family.parts)
    sums, counts = (torch.zeros(parts, dtype=torch.float64, device=world.device) for _ in range(2))
    reset = torch.zeros((), dtype=torch.float64, device=world.device)
    memory: Tensor | None = None
    for number, cpu_batch in enumerate(batches):
        if number == max_timesteps:
            break
        batch = cpu_batch.to(world.device)
        if memory is None:
            memory = torch.zeros(len(batch.memory_resets), *memory_shape, device=world.device)
        key = ("validation", number, world.rank)
        before = memory
        losses, memory, _ = cell(batch, before, key)
        sums += losses.double().view(parts)
        counts += family.count(batch).double().view(parts)
        if carried:
            losses, _, _ = cell(batch.with_resets(), before, key)
            reset += losses.double().view(parts)[0]
    distributed.total(sums)
    distributed.total(counts)
    distributed.total(reset)
    return Validation(
        family.parts,
        sums.cpu(),
        counts.cpu(),
        float(reset) if carried else None,
        weights.double().view(parts),
    )
