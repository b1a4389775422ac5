"""The internalization loss (Eq. 2, 3): f1 of a token's vector near its knowledge, far from another's."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

ANCHOR, POSITIVE, NEGATIVE = "ki_anchor", "ki_positive", "ki_negative"
"""Fields of a batch: `[A, T]` what a token is to the loss; `[A, T, j]` float32 key of its item, and of its
negative. They come from the file of keys and are constants."""
NO_ANCHOR, ALONE, PAIRED = 0, 1, 2
"""Of a token: without knowledge; with knowledge, but no negative was found; with both."""

PARTS = ("ki", "ki_satisfied", "ki_positive", "ki_negative", "ki_alone", "ki_coverage")
"""The hinge; and what is only watched: the share of anchors that fulfil the margin, both mean scores, the
share of anchors without a negative, the share of source tokens that are anchors."""


class KiHead(nn.Sequential):
    """f1, from the encoder's width to the joint space: two layers, as released; the norm is the paper's."""

    def __init__(self, width: int, size: int, dropout: float, normalize: bool) -> None:
        super().__init__(nn.Linear(width, width), nn.Tanh(), nn.Dropout(dropout), nn.Linear(width, size))
        self.normalize = normalize

    def forward(self, states: Tensor) -> Tensor:
        """States [..., d] -> [..., j], float32 at least, unit vectors if `normalize`."""
        found: Tensor = super().forward(states)
        found = found.to(torch.promote_types(found.dtype, torch.float32))
        return nn.functional.normalize(found, dim=-1) if self.normalize else found


def hinge(positive: Tensor, negative: Tensor, margin: float) -> Tensor:
    """max(0, m - s+ + s-) of scores of any shape."""
    return (margin - positive + negative).clamp(min=0)


def internalization(head: KiHead, states: Tensor, fields: Mapping[str, Tensor], margin: float) -> Tensor:
    """Sums of `PARTS` over each row, `[6, A]` float32; only the first has a gradient.

    The head sees anchors with a negative and nothing else.

    Args:
        states: `[A, T, d]` of the source tokens, memory slots left out.
        fields: `ANCHOR`, `POSITIVE`, `NEGATIVE` of the batch.
    """
    kind = fields[ANCHOR]
    paired = kind == PAIRED
    queries = head(states[paired])
    near = (queries * fields[POSITIVE][paired].to(queries.dtype)).sum(dim=-1)
    far = (queries * fields[NEGATIVE][paired].to(queries.dtype)).sum(dim=-1)
    loss = hinge(near, far, margin)
    rows = paired.nonzero()[:, 0]

    def by_row(values: Tensor) -> Tensor:
        return loss.new_zeros(len(kind)).index_add(0, rows, values.to(loss.dtype))

    watched = torch.stack([by_row(loss == 0), by_row(near), by_row(far)]).detach()
    counted = torch.stack([(kind == ALONE).sum(dim=1), (kind != NO_ANCHOR).sum(dim=1)]).to(loss.dtype)
    return torch.cat([by_row(loss)[None], watched, counted])


def counts(kind: Tensor, tokens: Tensor, mask: Tensor) -> dict[str, Tensor]:
    """What each of `PARTS` is summed over, `[A]` by name.

    The hinge is counted by target tokens, as the cross-entropy is, so that both have one divisor (Eq. 4).

    Args:
        kind: `[A, T]`, `ANCHOR` of the batch.
        tokens: `[A]` target tokens.
        mask: `[A, T]` of the source.
    """
    paired = (kind == PAIRED).sum(dim=1)
    found = dict.fromkeys(PARTS, paired)
    return found | {
        "ki": tokens,
        "ki_alone": (kind != NO_ANCHOR).sum(dim=1),
        "ki_coverage": mask.sum(dim=1),
    }
