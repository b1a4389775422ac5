"""The parts of MemBART's encoder: a layer of both streams, the memory's norm, the gate."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers.activations import ACT2FN
from transformers.modeling_layers import GradientCheckpointingLayer

from pretrain.model.attention import Masks, MemBartAttention
from pretrain.model.configuration import MemBartConfig

LayerResult = tuple[Tensor, Tensor, Tensor | None]
"""Tokens [batch, S, d], memory [batch, L, d], attention weights where the kernel keeps them."""


class MemBartEncoderLayer(GradientCheckpointingLayer):
    """One layer of both streams: post-LN Transformer layers that share one attention."""

    def __init__(self, config: MemBartConfig, layer_idx: int) -> None:
        super().__init__()
        width, inner = config.d_model, config.encoder_ffn_dim
        self.dropout = config.dropout
        self.activation_dropout = config.activation_dropout
        self.activation_fn = ACT2FN[config.activation_function]
        self.self_attn = MemBartAttention(config, layer_idx)
        self.self_attn_layer_norm = nn.LayerNorm(width)
        self.fc1 = nn.Linear(width, inner)
        self.fc2 = nn.Linear(inner, width)
        self.final_layer_norm = nn.LayerNorm(width)
        self.mem_self_attn_layer_norm = nn.LayerNorm(width)
        self.mem_fc1 = nn.Linear(width, inner)
        self.mem_fc2 = nn.Linear(inner, width)
        self.mem_final_layer_norm = nn.LayerNorm(width)

    def forward(self, tokens: Tensor, memory: Tensor, masks: Masks) -> LayerResult:
        """tokens [batch, S, d], memory [batch, L, d] -> the same after this layer."""
        token_mix, memory_mix, weights = self.self_attn(tokens, memory, masks)
        tokens = self.self_attn_layer_norm(tokens + drop(self, token_mix))
        memory = self.mem_self_attn_layer_norm(memory + drop(self, memory_mix))
        tokens = self.final_layer_norm(tokens + feed_forward(self, tokens, self.fc1, self.fc2))
        memory = self.mem_final_layer_norm(memory + feed_forward(self, memory, self.mem_fc1, self.mem_fc2))
        return finite(tokens), finite(memory), weights


class MemoryLayerNorm(nn.LayerNorm):
    """LayerNorm in the dtype of its input, so that a float32 memory stays float32 under bfloat16 weights."""

    def forward(self, input: Tensor) -> Tensor:
        weight, bias = self.weight.to(input.dtype), self.bias.to(input.dtype)
        return nn.functional.layer_norm(input, self.normalized_shape, weight, bias, self.eps)


class MemoryGate(nn.Module):
    """One number in (0, 1) per slot: how much of the candidate replaces the old content."""

    def __init__(self, config: MemBartConfig) -> None:
        super().__init__()
        self.dense = nn.Linear(config.d_model, config.d_model)
        self.dense2 = nn.Linear(config.d_model, 1)
        self.dropout = config.dropout

    def forward(self, candidate: Tensor) -> Tensor:
        """candidate [batch, L, d] -> [batch, L, 1]."""
        states = self.dense(drop(self, candidate))
        return torch.sigmoid(self.dense2(drop(self, nn.functional.gelu(states))))


def feed_forward(layer: Any, states: Tensor, fc1: nn.Module, fc2: nn.Module) -> Tensor:
    """The layer's position-wise network on `states`, with the weights given."""
    inner = layer.activation_fn(fc1(states))
    return drop(layer, fc2(nn.functional.dropout(inner, layer.activation_dropout, layer.training)))


def drop(layer: Any, states: Tensor) -> Tensor:
    """Dropout at the layer's own rate, while it trains."""
    return nn.functional.dropout(states, layer.dropout, layer.training)


def finite(states: Tensor) -> Tensor:
    """BART's guard against overflow in half precision, without its look at the values (a sync on a GPU)."""
    if states.dtype != torch.float16:
        return states
    bound = torch.finfo(torch.float16).max - 1000
    return states.clamp(-bound, bound)
