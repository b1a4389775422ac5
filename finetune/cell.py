"""One turn of a family's model as one module call, as replay and DeepSpeed want it."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from finetune.batch import TurnBatch
from pretrain import replay


class TurnCell(nn.Module):
    """Runs a `finetune.family.TurnModel`.

    All randomness (dropout, latent samples, negatives) is seeded per call, so that replay's second pass
    through a turn draws what its first one drew.
    """

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(
        self, batch: TurnBatch, memory: Tensor, key: replay.Key, *, loss: bool = True, per_row: bool = False
    ) -> tuple[Tensor | None, Tensor, Tensor]:
        """As `pretrain.replay.Cell.forward`, with loss parts `[K]`, or `[K, A]` `per_row`."""
        replay.seed(*key, 0)
        read = self.model.read(batch, memory)
        gate = read.gate.detach().float().mean()
        if not loss:
            return None, read.memory_states, gate
        replay.seed(*key, 1)
        return self.model.losses(read, batch, per_row), read.memory_states, gate
