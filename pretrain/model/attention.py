"""The dual attention stream: tokens and memory slots look at each other in one softmax.

Token queries see every slot and every real token. Slot i sees itself and every real token, but no other slot.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor, nn
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.bart.modeling_bart import eager_attention_forward

from pretrain.model.configuration import MemBartConfig


class Masks(NamedTuple):
    """Additive masks of one encoder step, built once and shared by all layers; None hides nothing.

    `text` [batch, 1, 1, S] hides padding as key; `keys` [batch, 1, 1, L + S] is that with the slots in front;
    `joint` [batch or 1, 1, L + S, L + S] also hides every slot from the other slots.
    """

    text: Tensor | None
    keys: Tensor | None
    joint: Tensor | None


def build_masks(attention_mask: Tensor | None, slots: int, like: Tensor, *, joint: bool) -> Masks:
    """The masks for token states `like` [batch, S, d] and a padding mask [batch, S] (nonzero = real token).

    The hidden value is the dtype's lowest finite number and not minus infinity, so that a row in which
    everything is hidden (no slots, no text) stays free of NaN.
    """
    dtype = compute_dtype(like)
    lowest = torch.finfo(dtype).min
    text = keys = None
    if attention_mask is not None:
        hidden = torch.zeros(attention_mask.shape, dtype=dtype, device=like.device)
        text = hidden.masked_fill(attention_mask == 0, lowest)[:, None, None, :]
        keys = nn.functional.pad(text, (slots, 0))
    if not joint:
        return Masks(text, keys, None)
    itself = torch.eye(slots, dtype=torch.bool, device=like.device)
    others = torch.zeros(slots, slots, dtype=dtype, device=like.device).masked_fill(~itself, lowest)
    square = nn.functional.pad(others, (0, like.shape[1], 0, like.shape[1]))[None, None]
    return Masks(text, keys, square if keys is None else square + keys)


def compute_dtype(tensor: Tensor) -> torch.dtype:
    """The dtype in which matrix products of this tensor run: autocast's where it is on, else its own."""
    kind = tensor.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else tensor.dtype


class MemBartAttention(nn.Module):
    """BART's self-attention with a second set of projections for the slots.

    The masks pick the form; both give the same numbers. With a joint mask: one attention call over
    [memory; text]. Without: tokens attend to everything with only padding hidden (so a fast kernel fits),
    slots attend to the text and, by one appended score, to themselves.
    """

    is_causal = False  # read by transformers' attention functions

    def __init__(self, config: MemBartConfig, layer_idx: int) -> None:
        super().__init__()
        width = config.d_model
        self.config = config
        self.layer_idx = layer_idx
        self.heads = config.encoder_attention_heads
        self.scaling = (width // self.heads) ** -0.5
        self.dropout = config.attention_dropout
        self.k_proj = nn.Linear(width, width)
        self.v_proj = nn.Linear(width, width)
        self.q_proj = nn.Linear(width, width)
        self.out_proj = nn.Linear(width, width)
        self.mem_k_proj = nn.Linear(width, width)
        self.mem_v_proj = nn.Linear(width, width)
        self.mem_q_proj = nn.Linear(width, width)
        self.mem_out_proj = nn.Linear(width, width)

    def forward(self, tokens: Tensor, memory: Tensor, masks: Masks) -> tuple[Tensor, Tensor, Tensor | None]:
        """tokens [batch, S, d], memory [batch, L, d] -> the same two shapes, and where the kernel keeps them
        the weights [batch, heads, L + S, L + S], memory rows and columns first."""
        slots = memory.shape[1]
        query = self._heads(self.mem_q_proj(memory)), self._heads(self.q_proj(tokens))
        key = self._heads(self.mem_k_proj(memory)), self._heads(self.k_proj(tokens))
        value = self._heads(self.mem_v_proj(memory)), self._heads(self.v_proj(tokens))
        weights = None
        if masks.joint is not None:
            mixed, weights = self._attend(
                torch.cat(query, 2), torch.cat(key, 2), torch.cat(value, 2), masks.joint
            )
            memory_mix, token_mix = mixed[:, :slots], mixed[:, slots:]
        else:
            token_mix, _ = self._attend(query[1], torch.cat(key, 2), torch.cat(value, 2), masks.keys)
            memory_mix = attend_slots(query[0], key, value, masks.text, self.scaling, self._dropout)
        return self.out_proj(token_mix), self.mem_out_proj(memory_mix), weights

    @property
    def _dropout(self) -> float:
        return self.dropout if self.training else 0.0

    def _attend(
        self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        attention = ALL_ATTENTION_FUNCTIONS.get_interface(
            self.config._attn_implementation, eager_attention_forward
        )
        mixed, weights = attention(self, query, key, value, mask, scaling=self.scaling, dropout=self._dropout)
        return mixed.flatten(2), weights

    def _heads(self, states: Tensor) -> Tensor:
        return split_heads(states, self.heads)


def attend_slots(
    query: Tensor,
    key: tuple[Tensor, Tensor],
    value: tuple[Tensor, Tensor],
    mask: Tensor | None,
    scaling: float,
    dropout: float,
) -> Tensor:
    """Each slot over itself and the text: one softmax, the own score as one more column.

    `query` [batch, heads, L, head_dim]; `key` and `value` are pairs (of the slots, like `query`; of the text,
    [batch, heads, S, head_dim]); `mask` [batch, 1, 1, S] additive. Returns [batch, L, heads · head_dim].
    """
    own = (query * key[0]).sum(-1, keepdim=True)
    scores = torch.cat([own, query @ key[1].transpose(2, 3)], dim=-1) * scaling
    if mask is not None:
        scores = scores + nn.functional.pad(mask, (1, 0))
    weights = torch.softmax(scores, dim=-1, dtype=torch.promote_types(scores.dtype, torch.float32))
    weights = nn.functional.dropout(weights.to(query.dtype), dropout)
    mixed = weights[..., :1] * value[0] + weights[..., 1:] @ value[1]
    return mixed.transpose(1, 2).flatten(2)


def split_heads(states: Tensor, heads: int) -> Tensor:
    """[batch, length, d] -> [batch, heads, length, d / heads]."""
    return states.unflatten(-1, (heads, -1)).transpose(1, 2)


@contextmanager
def recorded_attention(config: MemBartConfig) -> Iterator[None]:
    """Inside, attention runs in the plain form: the fused kernels keep no weights."""
    kernel = config._attn_implementation
    config._attn_implementation = "eager"
    try:
        yield
    finally:
        config._attn_implementation = kernel
