"""Sizes of a body under one set of names, whichever body it is."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Shape:
    """What a stack of layers is made of."""

    width: int
    heads: int
    inner: int
    layers: int
    vocabulary: int
    positions: int
    offset: int
    """Rows of the position table before position 0."""
    activation: str
    eps: float
    scale: float
    """Factor on the rows of the table of words."""
    pre_norm: bool
    """GPT-2's order, norm before each part; else BART's, after it."""
    dropout: float
    attention_dropout: float
    activation_dropout: float
    embedding_dropout: float


def gpt2(body: Any) -> Shape:
    """Of a `GPT2Config`."""
    return Shape(
        width=body.n_embd,
        heads=body.n_head,
        inner=body.n_inner or 4 * body.n_embd,
        layers=body.n_layer,
        vocabulary=body.vocab_size,
        positions=body.n_positions,
        offset=0,
        activation=body.activation_function,
        eps=body.layer_norm_epsilon,
        scale=1.0,
        pre_norm=True,
        dropout=body.resid_pdrop,
        attention_dropout=body.attn_pdrop,
        activation_dropout=0.0,
        embedding_dropout=body.embd_pdrop,
    )


def bart(body: Any) -> Shape:
    """Of the decoder of a `MemBartConfig`."""
    return Shape(
        width=body.d_model,
        heads=body.decoder_attention_heads,
        inner=body.decoder_ffn_dim,
        layers=body.decoder_layers,
        vocabulary=body.vocab_size,
        positions=body.max_position_embeddings,
        offset=2,
        activation=body.activation_function,
        eps=1e-5,
        scale=math.sqrt(body.d_model) if body.scale_embedding else 1.0,
        pre_norm=False,
        dropout=body.dropout,
        attention_dropout=body.attention_dropout,
        activation_dropout=body.activation_dropout,
        embedding_dropout=body.dropout,
    )
