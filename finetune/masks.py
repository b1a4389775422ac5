"""What attention may not look at, as numbers to add to its scores."""

from __future__ import annotations

import torch
from torch import Tensor

from pretrain.model.attention import compute_dtype


def hide(hidden: Tensor, like: Tensor) -> Tensor:
    """A boolean mask (True: hidden) as one to add, in the dtype in which attention over `like` runs.

    The hidden value is the lowest finite number, so that a row in which all is hidden stays free of NaN.
    """
    kind = compute_dtype(like)
    return torch.zeros(hidden.shape, dtype=kind, device=like.device).masked_fill(
        hidden, torch.finfo(kind).min
    )


def causal(seen: Tensor, states: Tensor) -> Tensor:
    """Keys `[A, n]` (nonzero: may be looked at) and the last T of them as queries -> `[A, 1, T, n]`."""
    length, keys = states.shape[1], seen.shape[1]
    before = torch.ones(length, keys, dtype=torch.bool, device=seen.device).tril(keys - length)
    return hide(~((seen != 0)[:, None, None] & before), states)
