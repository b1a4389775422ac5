"""What the encoder's own losses predict: the next token of a context, or tokens hidden in it."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from pretrain.model.loss import IGNORED


def words(ids: Tensor, mask: Tensor, special: Sequence[int]) -> Tensor:
    """Where a context `[A, S]` has a word and no special token, bool."""
    none_of = torch.tensor(special, dtype=ids.dtype, device=ids.device)
    return (mask != 0) & ~torch.isin(ids, none_of)


def next_tokens(ids: Tensor, mask: Tensor, special: Sequence[int]) -> Tensor:
    """Labels `[A, S]` of what follows each token; special tokens are nobody's target."""
    following = ids.masked_fill(~words(ids, mask, special), IGNORED)
    return torch.nn.functional.pad(following[:, 1:], (0, 1), value=IGNORED)


def number_hidden(ids: Tensor, mask: Tensor, special: Sequence[int], share: float) -> Tensor:
    """How many words of each row are hidden, `[A]`: known before it is drawn which."""
    found = words(ids, mask, special).sum(dim=1)
    return torch.ceil(found * math.nextafter(share, 0)).to(torch.int64)


def hidden(
    ids: Tensor, mask: Tensor, special: Sequence[int], share: float, mask_token: int
) -> tuple[Tensor, Tensor]:
    """The context with some words replaced, and labels `[A, S]` that tell them; from torch's generators."""
    candidates = words(ids, mask, special)
    drawn = torch.rand(ids.shape, device=ids.device).masked_fill(~candidates, 2.0)
    rank = drawn.argsort(dim=1).argsort(dim=1)
    chosen = candidates & (rank < number_hidden(ids, mask, special, share)[:, None])
    return ids.masked_fill(chosen, mask_token), ids.masked_fill(~chosen, IGNORED)
