"""Summed cross-entropy over a large vocabulary without the full matrix of logits."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from pretrain.model.attention import compute_dtype

IGNORED = -100
"""Label of a position that carries no loss."""

_BLOCK_ELEMENTS = 1 << 25
"""Logits alive at a time (134 MB in float32): enough rows for matrix products at full speed."""


def block_rows(vocab_size: int) -> int:
    """Target tokens whose logits the chunked loss has alive at a time."""
    return max(1, _BLOCK_ELEMENTS // vocab_size)


class VocabularyHead(nn.Linear):
    """BART's `lm_head`, which can also compute the loss itself.

    The loss lives here so that the tied weight is only read inside its module's forward: ZeRO stage 3 gathers
    it there and nowhere else.
    """

    def forward(
        self, hidden: Tensor, bias: Tensor | None = None, labels: Tensor | None = None, form: str = "plain"
    ) -> Tensor:
        """Logits [..., vocab] of `hidden` [..., d]; with `labels` [...] the sum of cross-entropy instead."""
        if labels is not None:
            return summed_cross_entropy(hidden, self.weight, labels, bias, form)
        logits = nn.functional.linear(hidden, self.weight)
        return logits if bias is None else logits + bias


@torch.compiler.disable(reason="the number of scored rows is data; the work is a few large matrix products")
def summed_cross_entropy(
    hidden: Tensor, weight: Tensor, labels: Tensor, bias: Tensor | None = None, form: str = "chunked"
) -> Tensor:
    """Sum over labels that are not `IGNORED` of -log softmax(hidden · weightᵀ + bias)[label].

    `hidden` [..., d], `weight` [vocab, d], `labels` [...] int64, `bias` [vocab] without gradient. The result
    is 0-d in float32 or wider; it is 0, with a zero gradient, when every label is ignored. `form` is `plain`
    (all logits at once) or `chunked` (blocks of rows; the gradient is made in the forward pass, so nothing
    is computed twice). Both agree to rounding.
    """
    labels = labels.reshape(-1)
    scored = labels != IGNORED
    rows, labels = hidden.reshape(-1, hidden.shape[-1])[scored], labels[scored]
    if not torch.is_grad_enabled():  # the chunked form would make gradients that nobody takes
        rows, weight = rows.detach(), weight.detach()
    dtype = compute_dtype(hidden)
    with torch.autocast(hidden.device.type, enabled=False):
        if form == "plain":
            logits = nn.functional.linear(rows.to(dtype), weight.to(dtype), _cast(bias, dtype))
            return nn.functional.cross_entropy(logits.to(_wide(dtype)), labels, reduction="sum")
        return _ChunkedCrossEntropy.apply(rows, weight, labels, bias, dtype)


class _ChunkedCrossEntropy(torch.autograd.Function):
    """A sum's gradient only scales with the incoming one: the forward pass uses up each block of logits."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, labels: Tensor, bias: Tensor | None, dtype: torch.dtype
    ) -> Tensor:
        needs_hidden, needs_weight = ctx.needs_input_grad[:2]
        rows, table, offset = hidden.to(dtype), weight.to(dtype), _cast(bias, dtype)
        loss = torch.zeros((), dtype=_wide(dtype), device=hidden.device)
        hidden_grad = torch.empty_like(rows) if needs_hidden else None
        weight_grad = torch.zeros_like(weight, dtype=_wide(dtype)) if needs_weight else None
        step = block_rows(weight.shape[0])
        for start in range(0, rows.shape[0], step):
            block = rows[start : start + step]
            chosen = labels[start : start + step, None]
            scores = torch.log_softmax(nn.functional.linear(block, table, offset), dim=-1, dtype=loss.dtype)
            loss -= scores.gather(-1, chosen).sum()
            if not (needs_hidden or needs_weight):
                continue
            scores.exp_().scatter_add_(-1, chosen, -torch.ones_like(chosen, dtype=loss.dtype))
            gradient = scores.to(dtype)
            if hidden_grad is not None:
                torch.mm(gradient, table, out=hidden_grad[start : start + step])
            if weight_grad is not None:
                _add_product(weight_grad, gradient.t(), block)
            del scores, gradient  # before the next block is made
        ctx.gradients = (hidden_grad, weight_grad)
        ctx.dtypes = (hidden.dtype, weight.dtype)
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, seed: Tensor) -> tuple[Tensor | None, ...]:
        if ctx.gradients is None:
            raise RuntimeError("the chunked loss gives its gradient away once: run the forward pass again")
        given, ctx.gradients = ctx.gradients, None
        scaled = (
            None if gradient is None else gradient.mul_(seed).to(dtype)
            for gradient, dtype in zip(given, ctx.dtypes, strict=True)
        )
        return (*scaled, None, None, None)


def _add_product(total: Tensor, left: Tensor, right: Tensor) -> None:
    """total += left @ right; `total` may be wider, so that sums over many blocks are not rounded away."""
    if left.dtype == total.dtype:
        total.addmm_(left, right)
    else:
        total += left @ right


def _cast(bias: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    return None if bias is None else bias.to(dtype)


def _wide(dtype: torch.dtype) -> torch.dtype:
    """Losses and sums of gradients are kept in float32 at least."""
    return torch.promote_types(dtype, torch.float32)
