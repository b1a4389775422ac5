"""Turns as tensors: what a family makes of one target turn, and a timestep of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from finetune.metrics.prediction import Prediction

MULTIPLE = 8
"""Sequences are padded to the longest of the batch, rounded up to this."""


@dataclass(frozen=True)
class Example:
    """One target turn, ready for the model."""

    fields: Mapping[str, Sequence[int] | int | float]
    """Token sequences, and single numbers, by name. `attention_mask` and `labels` are always there."""
    about: Prediction
    """The turn for people and metrics; its replies are still empty."""


@dataclass(frozen=True)
class TurnBatch:
    """One timestep of A agents, `[A, ...]` each; a dry agent (None in `examples`) is all padding, reset 1.

    Fields by name as attributes: `input_ids`, `attention_mask`, `labels`, `memory_resets`, and the family's.
    """

    tensors: Mapping[str, Tensor]
    examples: tuple[Example | None, ...]

    def __getattr__(self, name: str) -> Tensor:
        try:
            return self.__dict__["tensors"][name]
        except KeyError:
            raise AttributeError(name) from None

    def to(self, device: torch.device | str, non_blocking: bool = True) -> TurnBatch:
        """The same batch on another device."""
        return self._map(lambda tensor: tensor.to(device, non_blocking=non_blocking), self.examples)

    def rows(self, rows: slice) -> TurnBatch:
        """Some of the agents; the widths stay."""
        return self._map(lambda tensor: tensor[rows], self.examples[rows])

    def with_resets(self) -> TurnBatch:
        """The same batch with every memory reset."""
        resets = torch.ones_like(self.tensors["memory_resets"])
        return TurnBatch({**self.tensors, "memory_resets": resets}, self.examples)

    def _map(self, function: Callable[[Tensor], Tensor], examples: tuple[Example | None, ...]) -> TurnBatch:
        return TurnBatch({name: function(tensor) for name, tensor in self.tensors.items()}, examples)


def collate(
    examples: Sequence[Example | None],
    resets: Sequence[int],
    pads: Mapping[str, int],
    numbers: Mapping[str, Any],
) -> TurnBatch:
    """Pad a timestep's examples on the right and stack them.

    Args:
        pads: padding value of each token sequence; also says which fields are sequences (int64 tensors).
        numbers: what a dry row has in each field that is a single number; its type gives int64 or float32.
    """
    tensors: dict[str, Tensor] = {"memory_resets": torch.tensor(list(resets), dtype=torch.int64)}
    for name, pad in pads.items():
        rows = [list(example.fields[name]) if example else [] for example in examples]  # type: ignore[arg-type]
        width = max(-(-max(map(len, rows)) // MULTIPLE), 1) * MULTIPLE
        tensors[name] = torch.tensor([row + [pad] * (width - len(row)) for row in rows], dtype=torch.int64)
    for name, empty in numbers.items():
        values = [example.fields[name] if example else empty for example in examples]
        dtype = torch.float32 if isinstance(empty, float) else torch.int64
        tensors[name] = torch.tensor(values, dtype=dtype)
    return TurnBatch(tensors, tuple(examples))
