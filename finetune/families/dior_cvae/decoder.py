"""BART's decoder with latents infused into every layer (Eq. 11 and 12).

A latent is a key and a value of both attentions and nothing else: it has no position, no layer norm and no
query. Carried along as a full position whose outputs nobody reads it would give the same numbers.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from transformers import Cache, DynamicCache, EncoderDecoderCache
from transformers.models.bart.modeling_bart import (
    BartDecoderLayer,
    BartLearnedPositionalEmbedding,
    BartScaledWordEmbedding,
)

from finetune.families.dior_cvae.configuration import DiorConfig
from finetune.masks import hide
from pretrain.model.layers import drop, feed_forward, finite


class InfusedDecoderLayer(BartDecoderLayer):
    """BART's own layer and weights, whose two attentions may also see one latent row each."""

    def forward(
        self,
        states: Tensor,
        mask: Tensor | None,
        memory: Tensor,
        memory_mask: Tensor,
        prefix: Tensor | None,
        row: Tensor | None,
        cache: EncoderDecoderCache | None,
    ) -> Tensor:
        """One layer.

        Args:
            states: `[B, R, d]`.
            mask: additive `[1, 1, R, prefix + past + R]`; None hides nothing.
            memory: `[B, M, d]` cross-attention memory.
            memory_mask: additive `[B, 1, 1, row + M]`.
            prefix: `[B, 1, d]` latent for the self-attention; None where there is none or the cache has it.
            row: `[B, 1, d]` latent for the cross-attention; the same.
        """
        source = states if prefix is None else torch.cat([prefix, states], dim=1)
        # Keys and values of another source than the queries: BART's attention takes that path for any source,
        # and appends to whatever plain cache it is given.
        mixed, _ = self.self_attn(
            states,
            key_value_states=source,
            past_key_values=None if cache is None else cache.self_attention_cache,
            attention_mask=mask,
        )
        states = self.self_attn_layer_norm(states + drop(self, mixed))
        source = memory if row is None else torch.cat([row, memory], dim=1)
        mixed, _ = self.encoder_attn(
            states, key_value_states=source, past_key_values=cache, attention_mask=memory_mask
        )
        states = self.encoder_attn_layer_norm(states + drop(self, mixed))
        return finite(self.final_layer_norm(states + feed_forward(self, states, self.fc1, self.fc2)))


class InfusedDecoder(nn.Module):
    """BART's decoder, under the names of its tensors, with one latent row per layer."""

    def __init__(self, config: DiorConfig) -> None:
        super().__init__()
        self.config = config
        scale = math.sqrt(config.d_model) if config.scale_embedding else 1.0
        self.embed_tokens = BartScaledWordEmbedding(
            config.vocab_size, config.d_model, config.pad_token_id, embed_scale=scale
        )
        self.embed_positions = BartLearnedPositionalEmbedding(config.max_position_embeddings, config.d_model)
        self.layers = nn.ModuleList(InfusedDecoderLayer(config, i) for i in range(config.decoder_layers))
        self.layernorm_embedding = nn.LayerNorm(config.d_model)

    def forward(
        self,
        input_ids: Tensor,
        memory: Tensor,
        memory_mask: Tensor,
        prefixes: list[Tensor] | None,
        rows: list[Tensor] | None,
        cache: Cache | None = None,
        use_cache: bool = False,
    ) -> tuple[Tensor, Cache | None]:
        """Decode.

        Args:
            input_ids: `[B, R]`, padded on the right; with a used cache the new tokens alone.
            memory: `[B, M, d]` cross-attention memory, without latents.
            memory_mask: `[B, M]`, nonzero where the decoder may look.
            prefixes: of each layer the latent [B, 1, d] for its self-attention; None for no latent at all,
                empty where the used cache has them.
            rows: the same for the cross-attention.
            cache: keys and values of the tokens before, latents among them.

        Returns:
            states `[B, R, d]` and the cache, None unless `use_cache`.
        """
        if use_cache and cache is None:
            cache = EncoderDecoderCache(DynamicCache(config=self.config), DynamicCache(config=self.config))
        held = 0 if cache is None else cache.get_seq_length()
        infused = 0 if prefixes is None else 1
        past = held - infused if held else 0  # positions count tokens, and the prefix is none
        embedded = self.embed_tokens(input_ids)
        places = torch.arange(past, past + input_ids.shape[1], device=input_ids.device)
        states = self.layernorm_embedding(embedded + self.embed_positions(input_ids, position_ids=places))
        states = nn.functional.dropout(states, self.config.dropout, self.training)
        mask = causal_mask(input_ids.shape[1], past, infused, states)
        seen = memory_mask if rows is None else nn.functional.pad(memory_mask, (1, 0), value=1)
        cross = hide(seen == 0, states)[:, None, None, :]
        for number, layer in enumerate(self.layers):
            prefix = prefixes[number].to(states.dtype) if prefixes else None
            row = rows[number].to(states.dtype) if rows else None
            states = layer(states, mask, memory, cross, prefix, row, cache)
        return states, cache if use_cache else None


def causal_mask(length: int, past: int, infused: int, like: Tensor) -> Tensor | None:
    """Additive [1, 1, length, infused + past + length]: what comes later is hidden, the latents never are.

    None where nothing is hidden: for a single new token.
    """
    if length == 1:
        return None
    later = torch.ones(length, past + length, dtype=torch.bool, device=like.device).triu(past + 1)
    return nn.functional.pad(hide(later, like), (infused, 0))[None, None]
