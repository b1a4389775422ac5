"""The other structures of the model-selection study (Appendix A of the paper), under the same protocol.

`shared`: the dual stream with one set of weights for both streams. `memformer`: every layer reads the memory
by a cross-attention between self-attention and feed-forward network, and a writer after the last layer fills
it.
`memformer_rezero`: the same, where the reading enters with a factor that starts at 0.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from transformers.models.bart.modeling_bart import BartAttention, BartEncoderLayer

from pretrain.model.attention import Masks, attend_slots, split_heads
from pretrain.model.configuration import MemBartConfig
from pretrain.model.layers import LayerResult, MemBartEncoderLayer, drop, feed_forward, finite


class SharedEncoderLayer(BartEncoderLayer):
    """BART's own layer over [memory; tokens]: what MemBART is when `mem_*` equals its twin."""

    def forward(self, tokens: Tensor, memory: Tensor, masks: Masks) -> LayerResult:
        """As `MemBartEncoderLayer`."""
        slots = memory.shape[1]
        states = torch.cat([memory, tokens], dim=1)
        mixed, weights = self.self_attn(states, attention_mask=masks.joint)
        states = self.self_attn_layer_norm(states + drop(self, mixed))
        states = finite(self.final_layer_norm(states + feed_forward(self, states, self.fc1, self.fc2)))
        return states[:, slots:], states[:, :slots], weights


class MemformerEncoderLayer(BartEncoderLayer):
    """BART's layer with a reader of the memory in its middle; the memory itself passes unchanged.

    Plain: the reader is followed by a norm of its own, as BART's other sublayers. ReZero: tokens + alpha ·
    reading without a norm, so that with alpha = 0 the layer is BART's.
    """

    def __init__(self, config: MemBartConfig, layer_idx: int) -> None:
        super().__init__(config, layer_idx)
        self.memory_attn = BartAttention(
            config.d_model,
            config.encoder_attention_heads,
            dropout=config.attention_dropout,
            config=config,
            layer_idx=layer_idx,
        )
        self.rezero = config.variant == "memformer_rezero"
        if self.rezero:
            self.memory_alpha = nn.Parameter(torch.zeros(1))
        else:
            self.memory_attn_layer_norm = nn.LayerNorm(config.d_model)

    def forward(self, tokens: Tensor, memory: Tensor, masks: Masks) -> LayerResult:
        """As `MemBartEncoderLayer`; the weights are the reader's, [batch, heads, S, L]."""
        mixed, _ = self.self_attn(tokens, attention_mask=masks.text)
        tokens = self.self_attn_layer_norm(tokens + drop(self, mixed))
        read, weights = self.memory_attn(tokens, key_value_states=memory)
        if self.rezero:
            tokens = tokens + self.memory_alpha * drop(self, read)
        else:
            tokens = self.memory_attn_layer_norm(tokens + drop(self, read))
        tokens = self.final_layer_norm(tokens + feed_forward(self, tokens, self.fc1, self.fc2))
        return finite(tokens), memory, weights


class MemoryWriter(nn.Module):
    """The Memformers' update: each slot attends to itself and to all final token states."""

    def __init__(self, config: MemBartConfig) -> None:
        super().__init__()
        width = config.d_model
        self.heads = config.encoder_attention_heads
        self.scaling = (width // self.heads) ** -0.5
        self.dropout = config.attention_dropout
        self.q_proj = nn.Linear(width, width)
        self.k_proj = nn.Linear(width, width)
        self.v_proj = nn.Linear(width, width)
        self.out_proj = nn.Linear(width, width)

    def forward(self, memory: Tensor, tokens: Tensor, mask: Tensor | None) -> Tensor:
        """memory [batch, L, d], tokens [batch, S, d], additive mask [batch, 1, 1, S] -> [batch, L, d]."""
        sizes = (memory.shape[1], tokens.shape[1])
        states = torch.cat([memory, tokens], dim=1)
        own_key, key = split_heads(self.k_proj(states), self.heads).split(sizes, dim=2)
        own_value, value = split_heads(self.v_proj(states), self.heads).split(sizes, dim=2)
        query = split_heads(self.q_proj(memory), self.heads)
        dropout = self.dropout if self.training else 0.0
        return self.out_proj(
            attend_slots(query, (own_key, key), (own_value, value), mask, self.scaling, dropout)
        )


LAYERS: dict[str, type[nn.Module]] = {
    "membart": MemBartEncoderLayer,
    "shared": SharedEncoderLayer,
    "memformer": MemformerEncoderLayer,
    "memformer_rezero": MemformerEncoderLayer,
}
