"""How many kernels a timestep starts: where few tokens meet many layers, starting them takes the time."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from pretrain.model import MemBartConfig, MemBartForConditionalGeneration
from pretrain.planning import Rank
from pretrain.rehearsal import full_batch
from pretrain.replay import Cell

_NO_KERNEL = ("empty", "empty_like", "new_empty", "detach", "_unsafe_view", "_local_scalar_dense")
_TINY = {
    "d_model": 8,
    "encoder_ffn_dim": 8,
    "decoder_ffn_dim": 8,
    "encoder_attention_heads": 1,
    "decoder_attention_heads": 1,
    "memory_len": 2,
    "vocab_size": 16,
    "max_position_embeddings": 8,
}


@dataclass(frozen=True)
class Operations:
    """Of one timestep of one chunk."""

    roll: float
    """The encoder without gradient."""
    forward: float
    backward: float

    def of_step(self, rank: Rank) -> float:
        """All those of a rank's optimizer step but the optimizer's own."""
        timestep = self.forward + self.backward
        if rank.checkpointing or rank.mode == "checkpoint":
            timestep += self.forward
        rolls = rank.horizon - 1 if rank.mode == "replay" else 0
        return rank.chunks * (rank.horizon * timestep + rolls * self.roll)


def count(config: MemBartConfig, half: bool) -> Operations:
    """Count them on a narrow model of the same structure, and add layers up to the depth of `config`."""
    base, encoder, decoder = (counted(config, half, *depth) for depth in ((1, 1), (2, 1), (1, 2)))

    def at_depth(one: int, wider: int, deeper: int) -> float:
        layers = (config.encoder_layers - 1) * (wider - one) + (config.decoder_layers - 1) * (deeper - one)
        return one + layers

    return Operations(*(at_depth(*three) for three in zip(base, encoder, decoder, strict=True)))


def counted(config: MemBartConfig, half: bool, encoder: int, decoder: int) -> tuple[int, int, int]:
    """Roll, forward and backward of a narrow model with so many layers, run on the CPU."""
    shape = {**config.to_dict(), **_TINY, "encoder_layers": encoder, "decoder_layers": decoder}
    cell = Cell(MemBartForConditionalGeneration(MemBartConfig(**shape)).train())
    for parameter in cell.parameters():
        parameter.grad = torch.zeros_like(parameter)
    batch = full_batch(2, 8)
    batch.attention_mask[:, 6:] = 0  # real rows have padding, so masks are made
    memory = torch.zeros(2, _TINY["memory_len"], _TINY["d_model"], requires_grad=True)

    def autocast() -> torch.autocast:
        return torch.autocast("cpu", torch.bfloat16, enabled=half)

    with torch.no_grad(), autocast(), _Counter() as roll:
        cell(batch, memory, (0,), loss=False)
    with autocast(), _Counter() as forward:
        loss, leaving, _ = cell(batch, memory, (0,))
    with _Counter() as backward:
        (loss + leaving.sum()).backward()
    return roll.operations, forward.operations, backward.operations


class _Counter(TorchDispatchMode):
    """Counts operators that do work on a device."""

    def __init__(self) -> None:
        super().__init__()
        self.operations = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.operations += not (func.is_view or func.overloadpacket.__name__ in _NO_KERNEL)
        return func(*args, **(kwargs or {}))
