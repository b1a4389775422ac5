"""The seven fusions (section 2.3 and the released code): several attention results become one.

All take `parts` `[S, B, L, d]`, what a layer found in each of its S sources, zero where a row lacks the
source, and `present` `[B, S]` bool; all return `[B, L, d]`. Sources stand in the order reply, persona,
history.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from transformers import initialization as init

from finetune.families.fusion.configuration import FusionConfig
from finetune.families.fusion.shape import Shape
from finetune.masks import hide
from pretrain.model.attention import split_heads

SMALLEST_SUM = 1e-3
"""Of the weights that the paper's form divides by: at 0 it has a pole."""
INSIDE_ROOT = 1e-6
"""The slope of a square root at 0 is infinite."""


class Average(nn.Module):
    """`avg`: the mean of the sources that are there."""

    def forward(self, parts: Tensor, present: Tensor, before: Tensor | None = None) -> Tensor:
        number = present.sum(dim=1).clamp(min=1).to(parts.dtype)
        return parts.sum(dim=0) / number[:, None, None]


class Extreme(nn.Module):
    """`max` and `min`, element by element."""

    def __init__(self, largest: bool) -> None:
        super().__init__()
        self.largest = largest

    def forward(self, parts: Tensor, present: Tensor, before: Tensor | None = None) -> Tensor:
        bound = -math.inf if self.largest else math.inf
        open_parts = parts.masked_fill(~present.t()[:, :, None, None], bound)
        found = open_parts.amax(dim=0) if self.largest else open_parts.amin(dim=0)
        return torch.where(present.any(dim=1)[:, None, None], found, 0)


class Weighted(nn.Module):
    """`sw` and `dw`: a learnt weight for each source, or for each source and dimension; in float32."""

    def __init__(self, sources: int, width: int, norm: str, start: str) -> None:
        """`width` is 1 for `sw`."""
        super().__init__()
        self.sources, self.width, self.norm, self.start = sources, width, norm, start
        # A row, not a matrix: weight decay takes matrices only, and would pull the weights to the pole.
        self.weight = nn.Parameter(torch.zeros(sources * width))

    def first(self) -> Tensor:
        """What the weights start from, `[S, width]`."""
        if self.norm == "softmax":
            return torch.zeros(self.sources, self.width)
        if self.sources != 3:  # serial: BART's function is the mean of the two contexts
            return torch.ones(self.sources, self.width)
        share = (3.0, 1.5, 1.5) if self.start == "bart" else (1 / 3,) * 3
        return torch.tensor(share)[:, None].expand(-1, self.width)

    def factors(self, present: Tensor) -> Tensor:
        """What each source is multiplied by, `[B, S, width]` float32."""
        weight = self.weight.float().view(1, self.sources, self.width)
        there = present[:, :, None]
        if self.norm == "softmax":
            lowest = torch.finfo(weight.dtype).min
            return torch.softmax(weight.expand(len(there), -1, -1).masked_fill(~there, lowest), dim=1) * there
        weight = weight * there
        if self.norm == "code":
            return weight / there.sum(dim=1, keepdim=True).clamp(min=1)
        return weight / away_from_zero(weight.sum(dim=1, keepdim=True))

    def forward(self, parts: Tensor, present: Tensor, before: Tensor | None = None) -> Tensor:
        factors = self.factors(present).transpose(0, 1)[:, :, None]
        found: Tensor = (factors * parts.float()).sum(dim=0).to(parts.dtype)
        return found


def away_from_zero(total: Tensor) -> Tensor:
    """Sums that are divided by: the same, but at least `SMALLEST_SUM` in size."""
    return torch.where(total < 0, -1.0, 1.0) * total.abs().clamp(min=SMALLEST_SUM)


class Linear(nn.Module):
    """`linear`: one matrix on the sources end to end."""

    def __init__(self, sources: int, width: int, start: str) -> None:
        super().__init__()
        self.sources, self.start = sources, start
        self.mix = nn.Linear(sources * width, width)

    def forward(self, parts: Tensor, present: Tensor, before: Tensor | None = None) -> Tensor:
        found: Tensor = self.mix(torch.cat(list(parts), dim=-1))
        return found


class Attentive(nn.Module):
    """`att` (Eq. 3): attention among the results, per head with the root of d / heads, causal.

    `paper`: queries A^c, keys A^p, values A^h and a signed root. `code`: A^p, A^h, A^c, and a root of
    products of absolute values, which has no sign. The mask is ours in both: rows are places of the reply, so
    without it a place would see the tokens after it. Where a row lacks the history the result is A^c; where
    it lacks the persona, A^c stands in.
    """

    def __init__(self, shape: Shape, variant: str) -> None:
        super().__init__()
        self.heads, self.variant = shape.heads, variant
        self.attention_dropout, self.out_dropout = shape.attention_dropout, shape.dropout
        self.out = nn.Linear(shape.width, shape.width)

    def forward(self, parts: Tensor, present: Tensor, before: Tensor | None = None) -> Tensor:
        """`before` `[3, B, P, d]`: parts of the places before these."""
        reply, length = parts[0], parts.shape[2]
        whole = parts if before is None else torch.cat([before, parts], dim=2)
        there = present[:, :, None, None]
        stand_in = torch.where(there[:, 1], whole[1], whole[0])
        sources = {"c": whole[0], "p": stand_in, "h": whole[2]}
        order = "cph" if self.variant == "paper" else "phc"
        query, key, value = (split_heads(sources[name], self.heads) for name in order)
        scores = self.scores(query[:, :, -length:].float(), key.float())
        later = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device)
        shares = torch.softmax(scores + hide(later.triu(1 + whole.shape[2] - length), scores), dim=-1)
        shares = nn.functional.dropout(shares.to(value.dtype), self.attention_dropout, self.training)
        mixed = self.out((shares @ value).transpose(1, 2).flatten(2))
        mixed = nn.functional.dropout(mixed, self.out_dropout, self.training)
        return torch.where(there[:, 2], mixed, reply.to(mixed.dtype))

    def scores(self, query: Tensor, key: Tensor) -> Tensor:
        """[B, H, L, dh] and [B, H, P + L, dh] -> [B, H, L, P + L] float32."""
        with torch.autocast(query.device.type, enabled=False):
            if self.variant == "code":
                query, key = query.abs(), key.abs()
            product = query @ key.transpose(2, 3)
            root = (product.abs() + INSIDE_ROOT).sqrt() / math.sqrt(query.shape[-1])
            return root if self.variant == "code" else product.sign() * root


def make_fusion(config: FusionConfig, shape: Shape) -> nn.Module:
    """The fusion of one decoder layer.

    Its weights are set by `start`, not here.
    """
    sources, width = len(config.fused), shape.width
    if config.fusion in ("avg", "none"):
        return Average()
    if config.fusion in ("max", "min"):
        return Extreme(config.fusion == "max")
    if config.fusion in ("sw", "dw"):
        return Weighted(
            sources, 1 if config.fusion == "sw" else width, config.weight_norm, config.weight_init
        )
    if config.fusion == "linear":
        return Linear(sources, width, config.linear_init)
    return Attentive(shape, config.att_variant)


def start(module: Any) -> None:
    """Give a fusion its first weights."""
    if isinstance(module, Weighted):
        init.copy_(module.weight, module.first().flatten())
    elif isinstance(module, Linear):
        width = module.mix.out_features
        if module.start == "code":
            bound = 1 / math.sqrt(module.mix.in_features)
            init.uniform_(module.mix.weight, -bound, bound)
            init.uniform_(module.mix.bias, -bound, bound)
            return
        init.zeros_(module.mix.bias)
        if module.start == "normal":
            init.normal_(module.mix.weight, mean=0.0, std=0.02)
        else:
            average = torch.eye(width).repeat(1, module.sources) / module.sources
            init.copy_(module.mix.weight, average)
    elif isinstance(module, Attentive):
        init.zeros_(module.out.bias)
        if module.variant == "code":
            init.constant_(module.out.weight, 1 / module.out.in_features)
        else:
            init.normal_(module.out.weight, mean=0.0, std=0.02)
