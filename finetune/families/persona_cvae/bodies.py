"""The two bodies, GPT-2 and MemBART, as decoders whose first positions may be latents.

Both read a prefix and then the reply. GPT-2's prefix is the context. MemBART's encoder reads the context,
with memory, and its decoder's prefix is `</s> <s>`. Latents stand before the prefix and have no position.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Cache, DynamicCache, EncoderDecoderCache, GPT2LMHeadModel

from finetune.batch import TurnBatch
from finetune.configuration import body_config
from finetune.families.persona_cvae.configuration import PersonaConfig
from finetune.masks import causal, hide
from pretrain.model import MemBartForConditionalGeneration
from pretrain.model.encoder import MemBartEncoderOutput


@dataclass
class Reading(MemBartEncoderOutput):
    """What was read of a context, and the memory `before` it, `[A, slots, D]`, with which it can be read
    again."""

    before: Tensor | None = None


class Body(nn.Module):
    """What both have in common."""

    lm: Any

    @property
    def all_tied_weights_keys(self) -> dict[str, str]:
        """What the model inside ties, under the names it has here; transformers asks only direct children."""
        ties: dict[str, str] = self.lm.all_tied_weights_keys
        return {f"lm.{name}": f"lm.{to}" for name, to in ties.items()}

    def __init__(self, config: PersonaConfig) -> None:
        super().__init__()
        self.points, self.weight = frozenset(config.inject_after), config.inject_weight
        self.encoder_points = frozenset(config.inject_encoder_after)
        self.scale = config.latent_scale

    def inject(self, states: Tensor, latents: Tensor | None, block: int, encoder: bool = False) -> Tensor:
        """Mix the latents `[A, n, D]` into the first n positions after some blocks, in a new tensor."""
        if latents is None or block not in (self.encoder_points if encoder else self.points):
            return states
        number = latents.shape[1]
        mixed = (1 - self.weight) * states[:, :number] + self.weight * latents.to(states.dtype)
        return torch.cat([mixed, states[:, number:]], dim=1)


class Gpt2Body(Body):
    """A GPT-2; nothing is carried."""

    memory_slots = 0

    def __init__(self, config: PersonaConfig) -> None:
        super().__init__(config)
        assert config.body is not None
        self.lm = GPT2LMHeadModel(body_config(config.body))

    def words(self, ids: Tensor) -> Tensor:
        """Word and position rows of a sequence that begins at position 0."""
        model = self.lm.transformer
        found: Tensor = model.wte(ids) + model.wpe(torch.arange(ids.shape[1], device=ids.device))
        return found

    def read(self, batch: TurnBatch, memory: Tensor, roles: Tensor | None) -> MemBartEncoderOutput:
        """Nothing is encoded; the memory without slots goes through."""
        return MemBartEncoderOutput(memory_states=memory, gate=torch.zeros(1, device=memory.device))

    def prefix(self, batch: TurnBatch, roles: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None]:
        """Tokens, mask, and what is added to their embeddings."""
        return batch.input_ids, batch.attention_mask, roles

    def decode(
        self,
        ids: Tensor,
        places: Tensor,
        seen: Tensor,
        more: Tensor | None,
        latents: Tensor | None,
        read: MemBartEncoderOutput,
        cache: Cache | None,
    ) -> Tensor:
        """States `[A, T, D]` of the tokens.

        Args:
            ids, places: `[A, T]` new tokens and their positions.
            seen: `[A, n + past + T]` nonzero where a key may be looked at, latents included.
            more: `[A, T, D]` added to the embeddings.
            latents: `[A, n, D]`, with the first tokens only.
        """
        model = self.lm.transformer
        states = model.wte(ids) + model.wpe(places)
        states = states if more is None else states + more
        if latents is not None:
            latents = self.scale * latents
            states = torch.cat([latents.to(states.dtype), states], dim=1)
        states = model.drop(states)
        mask = causal(seen, states)
        for number, block in enumerate(model.h):
            states = block(states, cache, mask, use_cache=cache is not None)
            states = self.inject(states, latents, number)
        found: Tensor = model.ln_f(states)
        return found if latents is None else found[:, latents.shape[1] :]

    def logits(self, states: Tensor) -> Tensor:
        found: Tensor = self.lm.lm_head(states)
        return found

    def empty_cache(self) -> Cache:
        return DynamicCache(config=self.lm.config)


class MemBartBody(Body):
    """A MemBART; `memory_len` 0 leaves its encoder without memory."""

    def __init__(self, config: PersonaConfig) -> None:
        super().__init__(config)
        assert config.body is not None
        self.lm = MemBartForConditionalGeneration(body_config(config.body))
        own = self.lm.config
        self.memory_slots: int = own.memory_len
        self.start: tuple[int, int] = (own.eos_token_id, own.bos_token_id)

    def words(self, ids: Tensor) -> Tensor:
        """Word rows; the networks that read them add positions of their own."""
        found: Tensor = self.lm.model.encoder.embed_tokens(ids)
        return found

    def read(self, batch: TurnBatch, memory: Tensor, roles: Tensor | None) -> Reading:
        """The context, with memory; roles are added before the embedding norm."""
        embedded = self.words(batch.input_ids)
        found = self.lm.encode(
            attention_mask=batch.attention_mask,
            memory_states=memory,
            memory_resets=batch.memory_resets,
            inputs_embeds=embedded if roles is None else embedded + roles,
        )
        return Reading(**found, before=memory)

    def read_again(
        self, read: Reading, batch: TurnBatch, roles: Tensor | None, latents: Tensor
    ) -> MemBartEncoderOutput:
        """The same with latents before the context; what this pass writes to the memory is not carried."""
        latents = self.scale * latents
        embedded = self.words(batch.input_ids)
        return self.lm.encode(
            attention_mask=batch.attention_mask,
            memory_states=read.before,
            memory_resets=batch.memory_resets,
            inputs_embeds=embedded if roles is None else embedded + roles,
            prefix=latents,
            after_layer=lambda states, block: self.inject(states, latents, block, encoder=True),
        )

    def prefix(self, batch: TurnBatch, roles: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None]:
        start = torch.tensor(self.start, device=batch.input_ids.device)
        ids = start.expand(len(batch.input_ids), 2)
        return ids, torch.ones_like(ids), None

    def decode(
        self,
        ids: Tensor,
        places: Tensor,
        seen: Tensor,
        more: Tensor | None,
        latents: Tensor | None,
        read: MemBartEncoderOutput,
        cache: Cache | None,
    ) -> Tensor:
        """As `Gpt2Body.decode`; latents bypass the embedding norm."""
        decoder = self.lm.model.decoder
        embedded = decoder.embed_tokens(ids)
        # Prefixes are equally long, so positions are those of any row; BART's table takes one row of them.
        row = places[0, :1] + torch.arange(ids.shape[1], device=ids.device)
        states = decoder.layernorm_embedding(
            embedded + decoder.embed_positions(embedded[:, :, 0], position_ids=row)
        )
        if latents is not None:
            latents = self.scale * latents
            states = torch.cat([latents.to(states.dtype), states], dim=1)
        states = nn.functional.dropout(states, decoder.dropout, self.training)
        mask = causal(seen, states)
        assert read.attention_mask is not None
        cross = hide(read.attention_mask == 0, states)[:, None, None]
        cross = cross.expand(-1, 1, states.shape[1], -1)
        for number, layer in enumerate(decoder.layers):
            states = layer(
                states,
                mask,
                read.last_hidden_state,
                cross,
                past_key_values=cache,
                use_cache=cache is not None,
            )
            states = self.inject(states, latents, number)
        return states if latents is None else states[:, latents.shape[1] :]

    def logits(self, states: Tensor) -> Tensor:
        found: Tensor = self.lm.lm_head(states, bias=self.lm.final_logits_bias[0])
        return found

    def empty_cache(self) -> Cache:
        return EncoderDecoderCache(DynamicCache(config=self.lm.config), DynamicCache(config=self.lm.config))


def make_body(config: PersonaConfig) -> Gpt2Body | MemBartBody:
    """The body that a configuration names."""
    return Gpt2Body(config) if config.kind == "gpt2" else MemBartBody(config)
