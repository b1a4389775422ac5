"""Multi-source attention fusion as a model of transformers: encoder, fusing decoder, three losses."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModel, PreTrainedModel
from transformers import initialization as init

from finetune.batch import TurnBatch
from finetune.families.fusion import fusing, shape, targets
from finetune.families.fusion.configuration import INFO, TYPES, FusionConfig
from finetune.families.fusion.stack import Context, LayerCache, Stack
from finetune.masks import causal, hide
from pretrain.model.encoder import MemBartEncoder
from pretrain.model.loss import IGNORED, VocabularyHead


@dataclass(frozen=True)
class Read:
    """The history of a turn as the encoder sees it."""

    history: Context | None
    """None where there is nothing to encode: one sequence, which the decoder reads."""
    memory_states: Tensor
    """`[A, slots, d]`, the next memory."""
    gate: Tensor
    before: Tensor
    """`[A, slots, d]`, the memory that the history was read with."""


class TypeTable(nn.Embedding):
    """Rows of the four token types; zero at the start."""


class FusionModel(PreTrainedModel):
    """A GPT-2 or MemBART whose decoder attends to reply, persona and history and fuses what it finds."""

    config: FusionConfig
    config_class = FusionConfig
    base_model_prefix = ""
    _no_split_modules = ("MemBartEncoderLayer", "Layer")
    _supports_sdpa = True

    def __init__(self, config: FusionConfig) -> None:
        super().__init__(config)
        body = config.body_config()
        self.is_gpt2 = config.kind == "gpt2"
        self.shape = shape.gpt2(body) if self.is_gpt2 else shape.bart(body)
        self._tied_weights_keys = {"lm_head.weight": "decoder.tok.weight"}
        self.memory_slots = 0
        self.loss_form = "chunked"
        if not self.is_gpt2:
            self.encoder: Any = MemBartEncoder(body)
            self.memory_slots, self.loss_form = body.memory_len, body.loss_impl
            if not config.untie_embeddings:
                self._tied_weights_keys["encoder.embed_tokens.weight"] = "decoder.tok.weight"
        elif config.contexts and not config.shared_module:
            self.encoder = Stack(config, self.shape, ())
        self.decoder = Stack(config, self.shape, config.contexts)
        if not config.type_tokens:
            self.types = TypeTable(TYPES, self.shape.width)
        if not self.is_gpt2:
            self.final_logits_bias = nn.Buffer(torch.zeros(1, self.shape.vocabulary))
        self.lm_head = VocabularyHead(self.shape.width, self.shape.vocabulary, bias=False)
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        """What a backbone does not give; the rest is only well-formed, until weights are loaded."""
        if isinstance(module, TypeTable):
            init.zeros_(module.weight)
        elif isinstance(module, nn.Linear | nn.Embedding):
            init.normal_(module.weight, mean=0.0, std=0.02)
            if isinstance(module, nn.Linear) and module.bias is not None:
                init.zeros_(module.bias)
        elif isinstance(module, nn.LayerNorm):
            init.ones_(module.weight)
            init.zeros_(module.bias)
        elif module is self and not self.is_gpt2:
            init.zeros_(self.final_logits_bias)
        fusing.start(module)

    def get_input_embeddings(self) -> nn.Module:
        return self.decoder.tok

    def set_input_embeddings(self, value: Any) -> None:
        self.decoder.tok = value

    # --- reading ---

    def read(self, batch: TurnBatch, memory: Tensor) -> Read:
        """The history, on a MemBART with the memory before it."""
        if self.is_gpt2:
            history = None
            if self.config.contexts:
                history = self._encode_causally(batch.input_ids, batch.attention_mask, batch.types)
            return Read(history, memory, torch.zeros(1, device=memory.device), memory)
        encoded = self._encode(
            batch.input_ids, batch.attention_mask, batch.types, memory, batch.memory_resets
        )
        present = batch.attention_mask.any(dim=1)
        history = Context(encoded.last_hidden_state, encoded.attention_mask, present)
        return Read(history, encoded.memory_states, encoded.gate, memory)

    def contexts(self, read: Read, batch: TurnBatch) -> list[Context]:
        """Everything that the decoder attends to beside the reply."""
        if read.history is None:
            return []
        if self.config.inputs == "single":
            return [read.history]
        return [self.read_persona(batch.persona_ids, batch.persona_mask), read.history]

    def read_persona(self, ids: Tensor, mask: Tensor) -> Context:
        """The persona `[A, S]`; its memory is never carried."""
        kinds = torch.full_like(ids, INFO)
        if self.is_gpt2:
            return self._encode_causally(ids, mask, kinds)
        encoded = self._encode(ids, mask, kinds, None, None)
        return Context(encoded.last_hidden_state, encoded.attention_mask, mask.any(dim=1))

    def _encode(
        self, ids: Tensor, mask: Tensor, kinds: Tensor, memory: Tensor | None, resets: Tensor | None
    ) -> Any:
        embedded = self.encoder.embed_tokens(ids)
        return self.encoder(
            attention_mask=mask,
            memory_states=memory,
            memory_resets=resets,
            inputs_embeds=embedded + self.type_rows(kinds, self.encoder.embed_tokens),
        )

    def _encode_causally(self, ids: Tensor, mask: Tensor, kinds: Tensor) -> Context:
        """By GPT-2's layers; bidirectional if the configuration says so."""
        stack = self.decoder if self.config.shared_module else self.encoder
        more = self.type_rows(kinds, stack.tok)
        if self.config.encoder_mask == "causal":
            hidden = causal(mask, more)
        else:
            hidden = hide(mask == 0, more)[:, None, None]
        places = torch.arange(ids.shape[1], device=ids.device)
        states = stack(ids, places, more, hidden)
        return Context(states, mask, mask.any(dim=1))

    def type_rows(self, kinds: Tensor, words: nn.Module) -> Tensor:
        """What token types `[..., L]` add to the embeddings, `[..., L, d]`."""
        if not self.config.type_tokens:
            found: Tensor = self.types(kinds)
            return found
        scale = 1.0 if words is not self.decoder.tok else self.shape.scale
        tokens = torch.tensor(self.config.type_tokens, device=kinds.device)
        return scale * words(tokens[kinds])

    # --- the reply ---

    def decode(
        self,
        ids: Tensor,
        kinds: Tensor,
        places: Tensor,
        seen: Tensor | None,
        contexts: Sequence[Context],
        cache: list[LayerCache] | None = None,
    ) -> Tensor:
        """Decoder states `[A, T, d]` of tokens `[A, T]` of types `kinds` at `places`.

        Args:
            seen: `[A, past + T]` nonzero where a key may be looked at; None: all are real, but those after.
        """
        more = self.type_rows(kinds, self.decoder.tok)
        if seen is None:
            held = 0 if cache is None or cache[0].own is None else cache[0].own[0].shape[2]
            seen = torch.ones(1, held + ids.shape[1], device=ids.device)
        masks = [hide(one.mask == 0, more)[:, None, None] for one in contexts]
        found: Tensor = self.decoder(ids, places, more, causal(seen, more), contexts, masks, cache)
        return found

    def reply_states(self, contexts: Sequence[Context], batch: TurnBatch) -> Tensor:
        """Decoder states that predict each label, `[A, R, d]`."""
        prefix = torch.tensor(self.config.reply_prefix, device=batch.labels.device)
        spoken = batch.labels[:, :-1]
        ids = torch.cat([prefix.expand(len(spoken), -1), spoken.masked_fill(spoken == IGNORED, 0)], dim=1)
        kinds = torch.full_like(ids, self.config.reply_type)
        first = len(prefix) - 1
        if contexts:
            places = torch.arange(ids.shape[1], device=ids.device)
            return self.decode(ids, kinds, places, None, contexts)[:, first:]
        width = batch.input_ids.shape[1]
        real = torch.cat([torch.ones_like(ids[:, : first + 1]), (spoken != IGNORED).long()], dim=1)
        seen = torch.cat([batch.attention_mask, real], dim=1)
        states = self.decode(
            torch.cat([batch.input_ids, ids], dim=1),
            torch.cat([batch.types, kinds], dim=1),
            (seen.cumsum(dim=1) - 1).clamp(min=0),
            seen,
            (),
        )
        return states[:, width + first :]

    def logits(self, states: Tensor) -> Tensor:
        found: Tensor = self.lm_head(states, bias=self._bias)
        return found

    @property
    def _bias(self) -> Tensor | None:
        return None if self.is_gpt2 else self.final_logits_bias[0]

    # --- the losses ---

    def losses(self, read: Read, batch: TurnBatch, per_row: bool = False) -> Tensor:
        """Sums of `FusionConfig.parts` in nats: `[K]`, or `[K, A]` `per_row`; 0-d or `[A]` where K is 1."""
        contexts = self.contexts(read, batch)
        reply = self.nll(self.reply_states(contexts, batch), batch.labels, per_row)
        if self.config.aux_loss == "none":
            return reply
        guessed = self._next_token if self.config.aux_loss == "next_token" else self._gaps
        return torch.stack([reply, *(self.nll(*one, per_row) for one in guessed(contexts, read, batch))])

    def nll(self, states: Tensor, labels: Tensor, per_row: bool) -> Tensor:
        """Summed cross-entropy of labels `[A, R]`, 0-d or `[A]` float32."""
        bias, form = self._bias, self.loss_form
        if not per_row:
            found: Tensor = self.lm_head(states, bias=bias, labels=labels, form=form)
            return found
        rows = zip(states, labels, strict=True)
        return torch.stack([self.lm_head(row, bias=bias, labels=wanted, form=form) for row, wanted in rows])

    def _next_token(
        self, contexts: Sequence[Context], read: Read, batch: TurnBatch
    ) -> list[tuple[Tensor, Tensor]]:
        special = self.config.special_tokens
        persona = targets.next_tokens(batch.persona_ids, batch.persona_mask, special)
        history = targets.next_tokens(batch.input_ids, batch.attention_mask, special)
        return [(contexts[0].states, persona), (contexts[1].states, history)]

    def _gaps(self, contexts: Sequence[Context], read: Read, batch: TurnBatch) -> list[tuple[Tensor, Tensor]]:
        """Both contexts once more with words hidden; the memory that comes of it is nobody's."""
        config, slots = self.config, self.memory_slots
        assert config.mask_token_id is not None
        how = (config.special_tokens, config.mlm_share, config.mask_token_id)
        persona, persona_labels = targets.hidden(batch.persona_ids, batch.persona_mask, *how)
        history, history_labels = targets.hidden(batch.input_ids, batch.attention_mask, *how)
        if self.is_gpt2:
            again = self._encode_causally(history, batch.attention_mask, batch.types).states
        else:
            again = self._encode(
                history, batch.attention_mask, batch.types, read.before, batch.memory_resets
            ).last_hidden_state
        first = self.read_persona(persona, batch.persona_mask).states
        return [(first[:, slots:], persona_labels), (again[:, slots:], history_labels)]


AutoModel.register(FusionConfig, FusionModel)
