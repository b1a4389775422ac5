"""Figures of the updates since the last report, summed on the device and reduced over ranks when read."""

from __future__ import annotations

import math
import resource
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from pretrain import distributed
from pretrain.replay import RolloutResult

_SUMMED = ("memory_gradient", "gate", "segments", "real_tokens", "row_tokens", "waited", "ranks")


class Meter:
    """Collects what `Run.advance` saw; `read` is collective and starts over."""

    def __init__(
        self,
        device: torch.device,
        segment_flops: Callable[[float, float], float] | None = None,
        peak_flops: float = 0.0,
        parts: tuple[str, ...] = ("loss",),
    ) -> None:
        """`segment_flops(source, target)` are the useful FLOPs of training on one segment of so many tokens;
        `peak_flops` those of one device a second, 0 when unknown (then no MFU is reported); `parts` the names
        of the K loss parts, of which the first is the cross-entropy of the target tokens."""
        self._device, self._names = device, parts
        self._segment_flops, self._peak_flops = segment_flops, peak_flops
        self._reset()

    def add(
        self,
        *,
        rollout: Sequence[Any],
        results: Sequence[RolloutResult],
        counts: Tensor,
        loss_scale: float,
        learning_rates: Mapping[str, float],
        gradient_norm: float | None,
        skipped: int,
        waited: float,
        seconds: float,
    ) -> None:
        """Note one update.

        Args:
            rollout: this rank's batches.
            results: one per agent chunk.
            counts: `[T]` or `[T, K]`: target tokens of the global batch, and what the other parts count.
            loss_scale: factor that the gradients carry.
            learning_rates: by the name of a parameter group; the one without a name is all the others.
            skipped: updates skipped since the run began.
            waited, seconds: wall time spent waiting for data, and in all.
        """
        gradients = [r.memory_gradient for r in results if r.memory_gradient is not None]
        if gradients:
            norms = torch.cat([g.norm(dim=-1).flatten() for g in gradients]) / loss_scale
            self._sums["memory_gradient"] += norms.mean()
        parts = len(self._names)
        self._parts += torch.stack([r.nll.view(-1, parts).sum(0) for r in results]).sum(0)
        self._counts += counts.view(-1, parts).sum(0)
        self._sums["gate"] += torch.stack([r.gate for r in results]).mean()
        self._sums["real_tokens"] += sum(int(batch.attention_mask.sum()) for batch in rollout)
        self._sums["segments"] += sum(int(batch.attention_mask.any(dim=1).sum()) for batch in rollout)
        self._sums["row_tokens"] += sum(batch.attention_mask.numel() for batch in rollout)
        self._sums["waited"] += waited
        self._updates += 1
        self._seconds += seconds
        self._latest["skipped_steps"] = float(skipped)
        for name, rate in learning_rates.items():
            self._latest[f"learning_rate/{name}" if name else "learning_rate"] = rate
        if gradient_norm is not None:
            self._latest["gradient_norm"] = gradient_norm

    def read(self) -> dict[str, float]:
        """The tracked training figures; means over the updates since the last call. Collective."""
        self._sums["ranks"] += 1
        keys = list(_SUMMED)
        values = distributed.total(torch.cat([torch.stack([self._sums[key] for key in keys]), self._parts]))
        sums = dict(zip(keys, values.tolist(), strict=False))
        ranks, updates = sums["ranks"], max(self._updates, 1)
        targets = int(self._counts[0])
        means = (values[len(keys) :] / self._counts.clamp(min=1)).tolist()
        loss = means[0]
        figures = {
            "loss": loss,
            "perplexity": math.exp(min(loss, 700.0)),
            "tokens_per_second": targets / max(self._seconds, 1e-9),
            "step_seconds": self._seconds / updates,
            "target_tokens": targets / updates,
            "memory_gradient_norm": sums["memory_gradient"] / ranks / updates,
            "gate_mean": sums["gate"] / ranks / updates,
            "data_wait_share": sums["waited"] / ranks / max(self._seconds, 1e-9),
            "padding_share": 1.0 - sums["real_tokens"] / max(sums["row_tokens"], 1.0),
            "memory_bytes": float(self._peak_memory()),
            **self._latest,
            **{f"loss/{name}": mean for name, mean in zip(self._names[1:], means[1:], strict=True)},
        }
        if self._peak_flops and self._segment_flops:
            # Without padding, and with the source as short as noise has left it: only useful work counts.
            segments = max(sums["segments"], 1.0)
            used = segments * self._segment_flops(sums["real_tokens"] / segments, targets / segments)
            figures["mfu"] = used / max(self._seconds, 1e-9) / (self._peak_flops * ranks)
        self._reset()
        return figures

    def _peak_memory(self) -> int:
        if self._device.type == "cuda":
            return torch.cuda.max_memory_allocated(self._device)
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

    def _reset(self) -> None:
        self._sums = {key: torch.zeros((), dtype=torch.float64, device=self._device) for key in _SUMMED}
        self._parts = torch.zeros(len(self._names), dtype=torch.float64, device=self._device)
        self._counts = torch.zeros_like(self._parts)
        self._updates, self._seconds = 0, 0.0
        self._latest: dict[str, float] = {}
