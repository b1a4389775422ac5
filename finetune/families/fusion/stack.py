"""A stack of layers that attend to several sources: the decoder of both bodies, and GPT-2's encoder.

A layer of GPT-2 (norms before) or BART (norms after) with one attention for each source. Without contexts it
is GPT-2's own layer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from transformers.activations import ACT2FN
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.bart.modeling_bart import eager_attention_forward

from finetune.families.fusion.configuration import FusionConfig
from finetune.families.fusion.fusing import Attentive, make_fusion
from finetune.families.fusion.shape import Shape
from pretrain.model.attention import split_heads
from pretrain.model.layers import finite

KeyValue = tuple[Tensor, Tensor]
"""`[B, H, S, dh]` each."""


@dataclass(frozen=True)
class Context:
    """An encoded source."""

    states: Tensor
    """`[B, S, d]`, MemBART's slots in front."""
    mask: Tensor
    """`[B, S]` nonzero where it may be looked at."""
    present: Tensor
    """`[B]` bool: whether the row has this source at all."""

    def rows(self, rows: Tensor) -> Context:
        """Some rows, in that order."""
        return Context(self.states[rows], self.mask[rows], self.present[rows])


@dataclass
class LayerCache:
    """What one layer keeps of the places before."""

    own: KeyValue | None = None
    contexts: list[KeyValue] = field(default_factory=list)
    parts: Tensor | None = None
    """`[S, B, P, d]`, for a fusion that looks back."""

    def reorder(self, rows: Tensor, contexts: bool) -> None:
        """Take over the places of other rows, and their contexts where those differ."""
        if self.own is not None:
            self.own = (self.own[0][rows], self.own[1][rows])
        if contexts:
            self.contexts = [(key[rows], value[rows]) for key, value in self.contexts]
        if self.parts is not None:
            self.parts = self.parts[:, rows]


class SourceAttention(nn.Module):
    """Multi-head attention (Eq. 2, with the root of d / heads) with output projection and dropout."""

    is_causal = False  # read by transformers' attention functions

    def __init__(self, config: FusionConfig, shape: Shape) -> None:
        super().__init__()
        self.config, self.heads, self.dropout = config, shape.heads, shape.attention_dropout
        self.out_dropout = shape.dropout if shape.pre_norm else 0.0
        self.q = nn.Linear(shape.width, shape.width)
        self.k = nn.Linear(shape.width, shape.width)
        self.v = nn.Linear(shape.width, shape.width)
        self.out = nn.Linear(shape.width, shape.width)

    def keys(self, source: Tensor) -> KeyValue:
        """Of a source `[B, S, d]`."""
        return split_heads(self.k(source), self.heads), split_heads(self.v(source), self.heads)

    def forward(self, states: Tensor, source: KeyValue, mask: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """What `states` `[B, L, d]` find, and where the kernel keeps them the weights `[B, H, L, S]`.

        Args:
            mask: additive, broadcast to `[B, H, L, S]`.
        """
        attention = ALL_ATTENTION_FUNCTIONS.get_interface(
            self.config._attn_implementation, eager_attention_forward
        )
        dropout = self.dropout if self.training else 0.0
        query = split_heads(self.q(states), self.heads)
        mixed, weights = attention(
            self, query, *source, mask, scaling=query.shape[-1] ** -0.5, dropout=dropout
        )
        return nn.functional.dropout(self.out(mixed.flatten(2)), self.out_dropout, self.training), weights


class Layer(GradientCheckpointingLayer):
    """One layer: attentions to the reply and to each context, their fusion, a feed-forward network."""

    def __init__(self, config: FusionConfig, shape: Shape, contexts: tuple[str, ...]) -> None:
        super().__init__()
        width = shape.width
        self.shape, self.serial, self.gain = shape, config.is_serial, config.fusion_gain
        self.self_attn = SourceAttention(config, shape)
        self.names = () if config.shared_attention else contexts
        for name in self.names:
            self.add_module(f"{name}_attn", SourceAttention(config, shape))
        if contexts:
            self.fusion = make_fusion(config, shape)
            self.looks_back = isinstance(self.fusion, Attentive)
        if shape.pre_norm:
            self.ln1 = nn.LayerNorm(width, eps=shape.eps)
            self.ln2 = nn.LayerNorm(width, eps=shape.eps)
        else:
            if self.serial:
                self.ctx_query_norm = nn.LayerNorm(width, eps=shape.eps)
            self.attn_norm = nn.LayerNorm(width, eps=shape.eps)
            self.final_norm = nn.LayerNorm(width, eps=shape.eps)
        self.fc1 = nn.Linear(width, shape.inner)
        self.fc2 = nn.Linear(shape.inner, width)
        self.activation = ACT2FN[shape.activation]

    def forward(
        self,
        states: Tensor,
        mask: Tensor | None,
        contexts: Sequence[Context],
        context_masks: Sequence[Tensor],
        cache: LayerCache | None,
    ) -> Tensor:
        """One layer on `[B, L, d]`.

        Args:
            mask: additive, of the reply on itself and what the cache has of it; None hides nothing.
            context_masks: additive `[B, 1, 1, S]` of each context.
        """
        shape = self.shape
        if shape.pre_norm:
            normed = self.ln1(states)
            own = self._own(normed, mask, cache)
            if contexts:
                fused = self._fuse(normed, own, contexts, context_masks, cache)
                own = nn.functional.dropout(fused, shape.attention_dropout, self.training)
            states = states + own
            return finite(states + self._feed_forward(self.ln2(states)))
        own = self._own(states, mask, cache)
        if self.serial:
            states = self.ctx_query_norm(states + self._drop(own))
        fused = self.gain * self._fuse(states, own, contexts, context_masks, cache)
        states = self.attn_norm(states + self._drop(fused))
        return finite(self.final_norm(states + self._feed_forward(states)))

    def _own(self, states: Tensor, mask: Tensor | None, cache: LayerCache | None) -> Tensor:
        """A^c: the reply on itself."""
        source = self.self_attn.keys(states)
        if cache is not None:
            if cache.own is not None:
                source = (torch.cat([cache.own[0], source[0]], 2), torch.cat([cache.own[1], source[1]], 2))
            cache.own = source
        found: Tensor = self.self_attn(states, source, mask)[0]
        return found

    def _fuse(
        self,
        states: Tensor,
        own: Tensor,
        contexts: Sequence[Context],
        masks: Sequence[Tensor],
        cache: LayerCache | None,
    ) -> Tensor:
        """The contexts as `states` sees them, fused with each other and, side by side, with A^c."""
        attentions = [getattr(self, f"{name}_attn") for name in self.names] or [self.self_attn] * len(
            contexts
        )
        keys = cache.contexts if cache is not None else []
        if not keys:
            keys = [attend.keys(one.states) for attend, one in zip(attentions, contexts, strict=True)]
            if cache is not None:
                cache.contexts = keys
        parts = [] if self.serial else [own]
        present = [] if self.serial else [torch.ones_like(contexts[0].present)]
        for attend, source, mask, one in zip(attentions, keys, masks, contexts, strict=True):
            found = attend(states, source, mask)[0]
            parts.append(torch.where(one.present[:, None, None], found, 0))
            present.append(one.present)
        stacked = torch.stack(parts)
        before = None
        if cache is not None and self.looks_back:
            before = cache.parts
            cache.parts = stacked if before is None else torch.cat([before, stacked], dim=2)
        fused: Tensor = self.fusion(stacked, torch.stack(present, dim=1), before)
        return fused

    def _feed_forward(self, states: Tensor) -> Tensor:
        inner = nn.functional.dropout(
            self.activation(self.fc1(states)), self.shape.activation_dropout, self.training
        )
        return self._drop(self.fc2(inner))

    def _drop(self, states: Tensor) -> Tensor:
        return nn.functional.dropout(states, self.shape.dropout, self.training)


class Stack(nn.Module):
    """Words, positions, layers."""

    def __init__(self, config: FusionConfig, shape: Shape, contexts: tuple[str, ...]) -> None:
        super().__init__()
        self.shape = shape
        self.tok = nn.Embedding(shape.vocabulary, shape.width)
        self.pos = nn.Embedding(shape.positions + shape.offset, shape.width)
        if not shape.pre_norm:
            self.ln_emb = nn.LayerNorm(shape.width, eps=shape.eps)
        self.layers = nn.ModuleList(Layer(config, shape, contexts) for _ in range(shape.layers))
        if shape.pre_norm:
            self.ln_f = nn.LayerNorm(shape.width, eps=shape.eps)

    def forward(
        self,
        ids: Tensor,
        places: Tensor,
        more: Tensor,
        mask: Tensor | None,
        contexts: Sequence[Context] = (),
        context_masks: Sequence[Tensor] = (),
        cache: list[LayerCache] | None = None,
    ) -> Tensor:
        """States `[B, L, d]` of tokens `ids`, `[B, L]`, at `places`, broadcast to it.

        Args:
            more: `[B, L, d]` or broadcast to it, added to the embeddings.
            mask: additive, of these tokens on those of the cache and themselves; None hides nothing.
        """
        shape = self.shape
        states = shape.scale * self.tok(ids) + self.pos(places + shape.offset) + more
        if not shape.pre_norm:
            states = self.ln_emb(states)
        states = nn.functional.dropout(states, shape.embedding_dropout, self.training)
        for number, layer in enumerate(self.layers):
            held = None if cache is None else cache[number]
            states = layer(states, mask, contexts, context_masks, held)
        if shape.pre_norm:
            states = self.ln_f(states)
        return states
