"""What the dispatcher gives: one timestep of a rank's agents as tensors."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor

from pretrain.dispatch.gather import Rows
from pretrain.dispatch.layout import IGNORE, Layout


@dataclass(frozen=True)
class Batch:
    """One timestep. A = the rank's agents by (lane, agent), S and D the padded widths; all tensors are int64.

    A dry agent (finite pass, no documents left) has an all-padding row: mask 0, labels -100, reset 1,
    document, segment and epoch -1.
    """

    input_ids: Tensor
    """`[A, S]` noised `<s> x </s>`, padded with 1."""
    attention_mask: Tensor
    """`[A, S]` 1 on tokens, 0 on padding."""
    decoder_input_ids: Tensor
    """`[A, D]` `</s> <s> x`, padded with 1."""
    labels: Tensor
    """`[A, D]` `<s> x </s>`, padded with -100."""
    memory_resets: Tensor
    """`[A]` 1 where this segment starts a document: memory is reset before it is read."""
    lane: Tensor
    """`[A]`"""
    agent: Tensor
    """`[A]` number of the agent in the global batch: lane * agents_per_lane + its place in the lane."""
    document: Tensor
    """`[A]` document id (63 bits of its content's hash)."""
    segment: Tensor
    """`[A]` segment of the document."""
    epoch: Tensor
    """`[A]` how often the document's source had been passed before."""
    timestep: int
    """Batches before this one since the beginning of the data."""
    target_tokens: int
    """Labels that are not -100."""

    @classmethod
    def of(cls, rows: Rows, layout: Layout, lane: Tensor, agent: Tensor, timestep: int) -> Batch:
        """Pad a timestep's rows and wrap them."""
        tensor = torch.from_numpy
        input_ids, attention_mask = layout.encoder_side(rows)
        decoder_input_ids, labels = layout.decoder_side(rows)
        return cls(
            input_ids=tensor(input_ids),
            attention_mask=tensor(attention_mask),
            decoder_input_ids=tensor(decoder_input_ids),
            labels=tensor(labels),
            memory_resets=tensor(rows.resets),
            lane=lane,
            agent=agent,
            document=tensor(rows.document),
            segment=tensor(rows.segment),
            epoch=tensor(rows.epoch),
            timestep=timestep,
            target_tokens=len(rows.target) + 2 * int((rows.target_lengths > 0).sum()),
        )

    def to(self, device: torch.device | str) -> Batch:
        """The same batch on another device."""
        return self._map(lambda tensor: tensor.to(device, non_blocking=True))

    def rows(self, rows: slice) -> Batch:
        """Some of the agents; the widths stay."""
        some = self._map(lambda tensor: tensor[rows])
        return replace(some, target_tokens=int((some.labels != IGNORE).sum()))

    def _map(self, function: Callable[[Tensor], Tensor]) -> Batch:
        values: dict[str, Any] = {field.name: getattr(self, field.name) for field in fields(self)}
        tensors = {name: function(value) for name, value in values.items() if isinstance(value, Tensor)}
        return Batch(**{**values, **tensors})
