"""The recurrent encoder: BART's token stream, a memory beside it, and the rule that updates the memory."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers.modeling_outputs import BaseModelOutput
from transformers.models.bart.modeling_bart import BartLearnedPositionalEmbedding, BartScaledWordEmbedding

from pretrain.errors import UserError
from pretrain.model.attention import build_masks, recorded_attention
from pretrain.model.base import MemBartPreTrainedModel
from pretrain.model.configuration import MemBartConfig
from pretrain.model.layers import MemoryGate, MemoryLayerNorm
from pretrain.model.variants import LAYERS, MemoryWriter


@dataclass
class MemBartEncoderOutput(BaseModelOutput):
    """What one encoder step gives; the memory travels on, the rest is for the decoder and for inspection.

    `last_hidden_state` [batch, L + S, d]: memory rows first, then token rows (Memformers: token rows only).
    `memory_states` [batch, L, d]: the next memory, float32 or wider where the incoming one was.
    `attention_mask` [batch, L + S]: for the decoder's cross-attention; None when none was given.
    `gate` [batch, L, 1]: share of new content; 1 everywhere where the structure has no gate.
    `hidden_states`: token states before the first layer and after each. `attentions`: one tensor a layer,
    [batch, heads, L + S, L + S] with memory rows and columns first (Memformers: the reader's, [.., S, L]).
    """

    memory_states: Tensor | None = None
    attention_mask: Tensor | None = None
    gate: Tensor | None = None


class MemBartEncoder(MemBartPreTrainedModel):
    """A recurrent step: (tokens, memory, resets) -> (states for the decoder, next memory)."""

    def __init__(self, config: MemBartConfig) -> None:
        super().__init__(config)
        width = config.d_model
        scale = math.sqrt(width) if config.scale_embedding else 1.0
        self.embed_tokens = BartScaledWordEmbedding(
            config.vocab_size, width, config.pad_token_id, embed_scale=scale
        )
        self.embed_positions = BartLearnedPositionalEmbedding(config.max_position_embeddings, width)
        self.layernorm_embedding = nn.LayerNorm(width)
        bias = torch.zeros(1, config.memory_len, width)
        # A parameter without elements cannot be gathered by ZeRO-3.
        self.memory_bias = nn.Parameter(bias) if config.memory_len else nn.Buffer(bias)
        self.memory_layer_norm = MemoryLayerNorm(width)
        layer = LAYERS[config.variant]
        self.layers = nn.ModuleList([layer(config, i) for i in range(config.encoder_layers)])
        if config.is_memformer:
            self.memory_writer = MemoryWriter(config)
        else:
            self.memory_gate_net = MemoryGate(config)
        self.gradient_checkpointing = False
        self.post_init()

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        memory_states: Tensor | None = None,
        memory_resets: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        prefix: Tensor | None = None,
        after_layer: Callable[[Tensor, int], Tensor] | None = None,
    ) -> MemBartEncoderOutput:
        """One timestep.

        `input_ids` [batch, S] int64 (or `inputs_embeds` [batch, S, d]), `attention_mask` [batch, S] with 1
        for real tokens, `memory_states` [batch, L, d] (None: the initial memory), `memory_resets` [batch]
        with 1 where a row starts afresh. `prefix` [batch, P, d]: states before the tokens, without
        position and norm of an embedding; `after_layer`: (token states, number of the layer) -> token states.
        Raises `UserError` for shapes that do not fit.
        """
        config = self.config
        record = config.output_attentions if output_attentions is None else output_attentions
        keep_states = config.output_hidden_states if output_hidden_states is None else output_hidden_states
        tokens = self._enter_tokens(input_ids, inputs_embeds)
        if prefix is not None:
            tokens = torch.cat([prefix.to(tokens.dtype), tokens], dim=1)
            if attention_mask is not None:
                attention_mask = nn.functional.pad(attention_mask, (prefix.shape[1], 0), value=1)
        kept = self._enter_memory(memory_states, memory_resets, tokens.shape[0])
        memory = kept.to(tokens.dtype)
        masks = build_masks(attention_mask, memory.shape[1], tokens, joint=config.needs_joint_mask or record)
        hidden_states = [tokens]
        attentions = []
        with recorded_attention(config) if record else nullcontext():
            for number, layer in enumerate(self.layers):
                tokens, memory, weights = layer(tokens, memory, masks)
                if after_layer is not None:
                    tokens = after_layer(tokens, number)
                if keep_states:
                    hidden_states.append(tokens)
                if record:
                    attentions.append(weights)
        if config.is_memformer:
            updated = self.memory_writer(memory, tokens, masks.text).to(kept.dtype)
            gate = torch.ones_like(updated[..., :1])
            visible = tokens
        else:
            gate = self.memory_gate_net(memory)
            share = gate.to(kept.dtype)
            updated = share * memory.to(kept.dtype) + (1 - share) * kept
            visible = torch.cat([updated.to(tokens.dtype), tokens], dim=1)
        return MemBartEncoderOutput(
            last_hidden_state=visible,
            hidden_states=tuple(hidden_states) if keep_states else None,
            attentions=tuple(attentions) if record else None,
            memory_states=updated,
            attention_mask=widen_mask(attention_mask, config.decoder_slots),
            gate=gate,
        )

    def _enter_tokens(self, input_ids: Tensor | None, inputs_embeds: Tensor | None) -> Tensor:
        if (input_ids is None) == (inputs_embeds is None):
            raise UserError("give exactly one of input_ids and inputs_embeds", where="MemBART encoder")
        embedded = self.embed_tokens(input_ids) if inputs_embeds is None else inputs_embeds
        length, most = embedded.shape[1], self.config.max_position_embeddings
        if length > most:
            raise UserError(
                f"{length} tokens, but {most} positions", where="MemBART encoder", mend="cut the text"
            )
        positions = self.embed_positions(embedded[:, :, 0])  # needed for the shape only
        states = self.layernorm_embedding(embedded + positions)
        return nn.functional.dropout(states, self.config.dropout, self.training)

    def _enter_memory(self, states: Tensor | None, resets: Tensor | None, batch: int) -> Tensor:
        """M' = LN((1 - r) M + b), [batch, L, d]: the bias is added at every step, not only after a reset."""
        shape = (batch, *self.memory_bias.shape[1:])
        if states is None:
            states = torch.zeros(shape, dtype=torch.float32, device=self.memory_bias.device)
        if tuple(states.shape) != shape:
            raise UserError(
                f"memory_states has shape {tuple(states.shape)}, this model and batch need {shape}",
                where="MemBART encoder",
            )
        states = states.to(torch.promote_types(states.dtype, self.memory_bias.dtype))
        if resets is not None:
            if tuple(resets.shape) != (batch,):
                raise UserError(
                    f"memory_resets has shape {tuple(resets.shape)}, needs ({batch},)",
                    where="MemBART encoder",
                )
            states = states.masked_fill((resets != 0)[:, None, None], 0.0)
        return self.memory_layer_norm(states + self.memory_bias)


def widen_mask(attention_mask: Tensor | None, slots: int) -> Tensor | None:
    """[batch, S] -> [batch, slots + S]: memory is always visible."""
    if attention_mask is None:
        return None
    return torch.cat([attention_mask.new_ones(attention_mask.shape[0], slots), attention_mask], dim=1)
