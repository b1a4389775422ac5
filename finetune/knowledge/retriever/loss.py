"""The hinge loss over the tokens of a batch of sentences, with negatives out of the batch (section 4.2)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Matched:
    """Tokens of a batch against its sentences."""

    loss: Tensor
    """0-d: mean hinge over the tokens that have a negative; 0 without any."""
    recall: Tensor
    """0-d float: share of the tokens that are nearest to their own sentence, or to one of equal text."""


def match(
    tokens: Tensor, keys: Tensor, owners: Tensor, hashes: Tensor, margin: float, generator: torch.Generator
) -> Matched:
    """Score `max(0, m - r(s_i, K) + r(s_i, K-))` for every token.

    The negative of a token is the sentence of another token, drawn evenly among all tokens of the batch whose
    sentence has another text.

    Args:
        tokens: `[n, j]` unit vectors. keys: `[B, j]` unit vectors. owners: `[n]` int64, sentence of each
            token. hashes: `[B]` int64, equal for equal texts. generator: on the CPU.
    """
    scores = tokens @ keys.T
    own = scores.gather(1, owners[:, None]).squeeze(1)
    other = hashes[owners][:, None] != hashes[None]
    counts = torch.bincount(owners, minlength=len(keys)).to(scores.dtype)
    chances = (other * counts).cpu()
    usable = chances.sum(dim=1) > 0
    drawn = torch.multinomial(chances[usable].float(), 1, generator=generator).to(scores.device)
    usable = usable.to(scores.device)
    negative = scores[usable].gather(1, drawn).squeeze(1)
    hinge = (margin - own[usable] + negative).clamp(min=0)
    nearest = hashes[scores.argmax(dim=1)] == hashes[owners]
    loss = hinge.sum() / max(len(hinge), 1)
    return Matched(loss, nearest.float().mean() if len(nearest) else scores.new_zeros(()))
