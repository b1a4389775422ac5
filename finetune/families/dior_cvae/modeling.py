"""Dior-CVAE as a model of transformers: encoder, latents, prior, infused decoder; losses and generation."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForSeq2SeqLM, Cache, GenerationMixin
from transformers import initialization as init
from transformers.modeling_outputs import BaseModelOutput, Seq2SeqLMOutput
from transformers.models.bart.modeling_bart import BartEncoder, BartPreTrainedModel, BartScaledWordEmbedding
from transformers.utils import can_return_tuple

from finetune.batch import TurnBatch
from finetune.families.dior_cvae.configuration import DiorConfig
from finetune.families.dior_cvae.decoder import InfusedDecoder
from finetune.families.dior_cvae.latents import (
    AttentionPool,
    FreshLinear,
    Gaussians,
    Hierarchy,
    WideLinear,
)
from finetune.families.dior_cvae.prior import DiffusionPrior, GaussianPrior, PriorDraws
from finetune.smoothing import SmoothedHead
from pretrain.errors import UserError
from pretrain.model.encoder import MemBartEncoder, MemBartEncoderOutput, widen_mask
from pretrain.model.loss import IGNORED

PARTS = ("nll", "smoothing", "negxent", "reg")
"""Cross-entropy of the reply; the same against a uniform target; E log q; E[-log p] or its bound."""


@dataclass
class DiorOutput(Seq2SeqLMOutput):
    """BART's output and the next memory [batch, K, d]."""

    memory_states: Tensor | None = None


@dataclass(frozen=True)
class Draws:
    """All randomness of one training step but the layers' dropout."""

    posterior: Tensor
    """`[B, L, z]` standard normal."""
    prior: PriorDraws | None
    dropped: Tensor | None
    """`[B, K + N]` bool: rows of the cross-attention memory that the decoder does not see; None: none."""


class Infusion(nn.Module):
    """Latents as rows that the decoder's layers attend to: one projection a layer, for both attentions."""

    def __init__(self, config: DiorConfig) -> None:
        super().__init__()
        both = config.self_infusion and config.cross_infusion
        self.shared_group = config.latent_groups == 1
        self.on = (config.self_infusion, config.cross_infusion)
        self.layers = nn.ModuleList(
            WideLinear(config.latent_size, config.d_model) for _ in range(config.decoder_layers)
        )
        self.cross = (
            nn.ModuleList(WideLinear(config.latent_size, config.d_model) for _ in self.layers)
            if both and config.separate_infusion_projections
            else None
        )

    def forward(self, latents: Tensor) -> tuple[list[Tensor] | None, list[Tensor] | None]:
        """latents [B, L, z] -> of each decoder layer a row [B, 1, d] for self- and for cross-attention."""
        prefixes = self._project(self.layers, latents)
        rows = prefixes if self.cross is None else self._project(self.cross, latents)
        return prefixes if self.on[0] else None, rows if self.on[1] else None

    def held(self) -> tuple[list[Tensor] | None, list[Tensor] | None]:
        """The same for a decoder whose cache has the rows already."""
        return [] if self.on[0] else None, [] if self.on[1] else None

    def _project(self, layers: nn.ModuleList, latents: Tensor) -> list[Tensor]:
        groups = [0 if self.shared_group else number for number in range(len(layers))]
        return [layer(latents[:, group, None]) for layer, group in zip(layers, groups, strict=True)]


class Latent(nn.Module):
    """Everything that BART does not have."""

    def __init__(self, config: DiorConfig) -> None:
        super().__init__()
        self.config = config
        self.pool = nn.ModuleList(AttentionPool(config.d_model) for _ in range(config.latent_groups))
        self.posterior = Hierarchy(config, 2 * config.d_model)
        self.prior = DiffusionPrior(config) if config.prior == "diffusion" else GaussianPrior(config)
        self.infuse = Infusion(config)

    def pooled(self, encoded: MemBartEncoderOutput, mask: Tensor, slots: bool) -> Tensor:
        """Eq. 10 and 14: e of each layer, [B, L, d]; `slots`: memory is pooled with each layer's tokens."""
        assert encoded.hidden_states is not None
        found = []
        for pool, states in zip(self.pool, encoded.hidden_states[-len(self.pool) :], strict=True):
            seen = mask
            if slots and encoded.memory_states is not None:
                states = torch.cat([encoded.memory_states.to(states.dtype), states], dim=1)
                widened = widen_mask(mask, encoded.memory_states.shape[1])
                assert widened is not None
                seen = widened
            found.append(pool(states, seen))
        return torch.stack(found, dim=1)


class DiorPreTrainedModel(BartPreTrainedModel):
    """What loading and initialization need to know."""

    config: DiorConfig
    config_class = DiorConfig
    # a slot sees itself but no other slot, a latent is no position: these kernels cannot say that
    _supports_flash_attn = False
    _supports_flex_attn = False
    _no_split_modules = ("MemBartEncoderLayer", "BartEncoderLayer", "InfusedDecoderLayer")

    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, FreshLinear):
            init.normal_(module.weight, mean=0.0, std=self.config.latent_init_std)
        own = {**module._parameters, **module._buffers}
        if "memory_bias" in own:
            init.normal_(module.memory_bias, mean=0.0, std=self.config.init_std)
        for name in ("memory_alpha", "final_logits_bias"):
            if name in own:
                init.zeros_(own[name])


class Body(nn.Module):
    """Encoder and decoder, under the names that BART and MemBART give their tensors."""

    def __init__(self, config: DiorConfig) -> None:
        super().__init__()
        scale = math.sqrt(config.d_model) if config.scale_embedding else 1.0
        self.shared = BartScaledWordEmbedding(
            config.vocab_size, config.d_model, config.pad_token_id, embed_scale=scale
        )
        self.encoder = MemBartEncoder(config) if config.memory_len else BartEncoder(config)
        self.decoder = InfusedDecoder(config)


class DiorForConditionalGeneration(DiorPreTrainedModel, GenerationMixin):
    """A hierarchical CVAE whose groups of latents are infused into BART's decoder.

    It has the recurrent protocol (`construct_memory`, `encode`) and that of `finetune.cell.TurnCell` (`read`,
    `losses`).
    """

    base_model_prefix = "model"
    main_input_name = "input_ids"
    _tied_weights_keys = {  # noqa: RUF012 -- transformers wants a plain dict here
        "model.encoder.embed_tokens.weight": "model.shared.weight",
        "model.decoder.embed_tokens.weight": "model.shared.weight",
        "lm_head.weight": "model.shared.weight",
    }

    def __init__(self, config: DiorConfig) -> None:
        super().__init__(config)
        self.model = Body(config)
        self.latent = Latent(config)
        self.final_logits_bias = nn.Buffer(torch.zeros(1, config.vocab_size))
        self.lm_head = SmoothedHead(config.d_model, config.vocab_size, bias=False)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.model.shared

    def set_input_embeddings(self, value: Any) -> None:
        self.model.shared = self.model.encoder.embed_tokens = self.model.decoder.embed_tokens = value

    def get_output_embeddings(self) -> nn.Module:
        return self.lm_head

    def construct_memory(self, batch_size: int, device: torch.device | str | None = None) -> Tensor:
        """The memory before the first turn: float32 zeros [batch, K, d]."""
        shape = (batch_size, self.config.memory_len, self.config.d_model)
        return torch.zeros(shape, dtype=torch.float32, device=device or self.device)

    # --- the parts ---

    def encode(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        memory_states: Tensor | None = None,
        memory_resets: Tensor | None = None,
    ) -> MemBartEncoderOutput:
        """One recurrent step over a context [B, N], with the states of every layer."""
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        if self.config.memory_len:
            found: MemBartEncoderOutput = self.model.encoder(
                input_ids=input_ids,
                attention_mask=mask,
                memory_states=memory_states,
                memory_resets=memory_resets,
                output_hidden_states=True,
            )
            return found
        # A row that is all padding has nothing to attend to: let it attend to the padding, nobody reads it.
        seen = torch.where(mask.any(dim=1, keepdim=True), mask, torch.ones_like(mask))
        encoded = self.model.encoder(input_ids=input_ids, attention_mask=seen, output_hidden_states=True)
        memory = self.construct_memory(len(input_ids)) if memory_states is None else memory_states
        return MemBartEncoderOutput(
            last_hidden_state=encoded.last_hidden_state,
            hidden_states=encoded.hidden_states,
            memory_states=memory,
            attention_mask=mask,
            gate=torch.zeros(1, device=self.device),
        )

    def condition(self, encoded: MemBartEncoderOutput, attention_mask: Tensor) -> Tensor:
        """e_c of every layer, [B, L, d]."""
        return self.latent.pooled(encoded, attention_mask, slots=self.config.pool_memory_slots)

    def recognize(self, labels: Tensor, context: Tensor, noise: Tensor) -> Gaussians:
        """The posterior of a context [B, L, d] and its reply, labels [B, R], with a sample (Eq. 7).

        The reply is read with a memory of its own, which nobody keeps: at inference there is no reply.
        """
        mask = (labels != IGNORED).long()
        encoded = self.encode(labels.masked_fill(labels == IGNORED, self.config.pad_token_id), mask)
        reply = self.latent.pooled(encoded, mask, slots=False)
        found: Gaussians = self.latent.posterior(torch.cat([context, reply], dim=-1), noise)
        return found

    def noise_shape(self) -> tuple[int, int]:
        """Of the standard normal noise that decides one sample of the prior."""
        return self.latent.prior.noise_rows, self.config.latent_total

    def decode(
        self,
        decoder_input_ids: Tensor,
        memory: Tensor,
        memory_mask: Tensor,
        latents: Tensor | None,
        cache: Cache | None = None,
        use_cache: bool = False,
    ) -> tuple[Tensor, Cache | None]:
        """Decoder states [B, R, d] for latents [B, L, z]; None: as plain BART. See `InfusedDecoder`."""
        if latents is None:
            prefixes, rows = None, None
        elif cache is not None and cache.get_seq_length():
            prefixes, rows = self.latent.infuse.held()
        else:
            prefixes, rows = self.latent.infuse(latents)
        found: tuple[Tensor, Cache | None] = self.model.decoder(
            decoder_input_ids, memory, memory_mask, prefixes, rows, cache, use_cache
        )
        return found

    # --- training ---

    def read(self, batch: TurnBatch, memory: Tensor) -> MemBartEncoderOutput:
        """The context, with memory."""
        return self.encode(batch.input_ids, batch.attention_mask, memory, batch.memory_resets)

    def draw(self, encoded: MemBartEncoderOutput) -> Draws:
        """Fresh randomness for one step, from torch's generators."""
        assert encoded.attention_mask is not None
        config, mask = self.config, encoded.attention_mask
        rows, device = len(mask), mask.device
        posterior = torch.randn(rows, config.latent_groups, config.latent_size, device=device)
        prior = self.latent.prior.draw(rows, device)
        if not self.training or not config.cross_memory_dropout:
            return Draws(posterior, prior, None)
        dropped = torch.rand(mask.shape, device=device) < config.cross_memory_dropout
        if config.cross_memory_scope == "tokens":
            dropped[:, : config.decoder_slots] = False
        if not config.cross_infusion:
            # No latent row is there to fall back on: a row that would see nothing keeps its first state.
            seen = (mask != 0) & ~dropped
            dropped[:, 0] &= seen.any(dim=1)
        return Draws(posterior, prior, dropped)

    def losses(
        self, read: MemBartEncoderOutput, batch: TurnBatch, per_row: bool = False, draws: Draws | None = None
    ) -> Tensor:
        """Sums of the parts of Eq. 16 in nats, `PARTS` in order: `[4]`, or `[4, A]` `per_row`."""
        given = self.draw(read) if draws is None else draws
        context = self.condition(read, batch.attention_mask)
        drawn = self.recognize(batch.labels, context, given.posterior)
        live = (batch.labels != IGNORED).any(dim=1)
        divergence = torch.stack(
            [drawn.negative_entropy(), self.latent.prior.cross_entropy(drawn, context, given.prior)]
        )
        divergence = torch.where(live, divergence, divergence * 0)
        reply = self.token_losses(read, batch.labels, drawn.sample, per_row, given.dropped)
        return torch.cat([reply, divergence if per_row else divergence.sum(dim=1)])

    def token_losses(
        self,
        read: MemBartEncoderOutput,
        labels: Tensor,
        latents: Tensor | None,
        per_row: bool = False,
        dropped: Tensor | None = None,
        scored: Tensor | None = None,
    ) -> Tensor:
        """Summed cross-entropy of labels [B, R] and the same against a uniform target: `[2]` or `[2, B]`.

        Args:
            latents: `[B, L, z]`; None is plain BART.
            dropped: `[B, K + N]` what the cross-attention does not see.
            scored: `[B, R]` labels that count, where those are not all.
        """
        assert read.last_hidden_state is not None
        assert read.attention_mask is not None
        seen = read.attention_mask if dropped is None else read.attention_mask.masked_fill(dropped, 0)
        states, _ = self.decode(self.shift(labels), read.last_hidden_state, seen, latents)
        wanted = labels if scored is None else scored
        found: Tensor = self.lm_head.losses(
            states, wanted, self.final_logits_bias[0], self.config.loss_impl, per_row
        )
        return found

    def shift(self, labels: Tensor) -> Tensor:
        """What the decoder reads to write `labels` [B, R]: the start token and all but the last."""
        start = labels.new_full((len(labels), 1), self.config.decoder_start_token_id)
        shifted = torch.cat([start, labels[:, :-1]], dim=1)
        return shifted.masked_fill(shifted == IGNORED, self.config.pad_token_id)

    # --- transformers ---

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        decoder_input_ids: Tensor | None = None,
        encoder_outputs: BaseModelOutput | None = None,
        latents: Tensor | None = None,
        past_key_values: Cache | None = None,
        use_cache: bool | None = None,
        memory_states: Tensor | None = None,
        memory_resets: Tensor | None = None,
        **kwargs: Any,
    ) -> DiorOutput:
        """Logits [B, R, vocab] for a context and latents [B, L, z].

        Without latents they are the prior's for noise of zeros. With `encoder_outputs` (its first field:
        memory rows and token rows) the encoder does not run, `attention_mask` covers all of its rows, and
        latents are required.
        """
        if decoder_input_ids is None:
            raise UserError("nothing to decode", where="Dior-CVAE", mend="give decoder_input_ids")
        memory: Tensor | None = None
        states: Any
        seen: Any
        if encoder_outputs is None:
            if input_ids is None:
                raise UserError("no context", where="Dior-CVAE", mend="give input_ids")
            mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
            encoded = self.encode(input_ids, mask, memory_states, memory_resets)
            memory, states, seen = encoded.memory_states, encoded.last_hidden_state, encoded.attention_mask
            if latents is None:
                context = self.condition(encoded, mask)
                noise = context.new_zeros(len(context), *self.noise_shape())
                latents = self.latent.prior.sample(context, noise)
        else:
            states, seen = encoder_outputs[0], attention_mask
            if latents is None or seen is None:
                raise UserError(
                    "encoder_outputs without latents or mask",
                    where="Dior-CVAE",
                    mend="give both, or input_ids",
                )
        hidden, cache = self.decode(
            decoder_input_ids, states, seen, latents, past_key_values, bool(use_cache)
        )
        return DiorOutput(
            logits=self.lm_head(hidden, bias=self.final_logits_bias[0]),
            past_key_values=cache,
            encoder_last_hidden_state=states,
            memory_states=memory,
        )

    @torch.no_grad()
    def generate(
        self,
        inputs: Tensor | None = None,
        *,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        memory_states: Tensor | None = None,
        memory_resets: Tensor | None = None,
        encoder_outputs: MemBartEncoderOutput | None = None,
        latents: Tensor | None = None,
        **kwargs: Any,
    ) -> Any:
        """transformers' `generate`: the context is encoded once, latents are sampled once for each row.

        Args:
            encoder_outputs: of `encode`, if the caller has them.
            latents: `[n · B, L, z]`, n for each row one after the other, as `repeat_interleave` lays them;
                without them one a row is drawn with torch's generators. The result has `n · B` rows.

        With `return_dict_in_generate=True` the result also has `memory_states`, the next memory.
        """
        ids = inputs if input_ids is None else input_ids
        if ids is None:
            raise UserError("no context", where="generate", mend="give input_ids")
        mask = torch.ones_like(ids) if attention_mask is None else attention_mask
        encoded = encoder_outputs
        if encoded is None:
            encoded = self.encode(ids, mask, memory_states, memory_resets)
        if latents is None:
            context = self.condition(encoded, mask)
            noise = torch.randn(len(ids), *self.noise_shape(), device=context.device, dtype=context.dtype)
            latents = self.latent.prior.sample(context, noise)
        times = len(latents) // len(ids)
        assert encoded.last_hidden_state is not None
        assert encoded.attention_mask is not None
        made = super().generate(
            ids.repeat_interleave(times, 0),
            encoder_outputs=BaseModelOutput(encoded.last_hidden_state.repeat_interleave(times, 0)),
            attention_mask=encoded.attention_mask.repeat_interleave(times, 0),
            latents=latents,
            **kwargs,
        )
        if isinstance(made, dict):
            made["memory_states"] = encoded.memory_states
        return made


def dior_config(backbone: Any, **changes: Any) -> DiorConfig:
    """The configuration of a BART or MemBART with fields added or changed.

    Raises:
        UserError: a field that there is not, or a value that the model cannot honour.
    """
    known = {field.name for field in fields(DiorConfig)}
    unknown = next((name for name in changes if name not in known), None)
    if unknown is not None:
        raise UserError(f"there is no configuration field '{unknown}'", where="Dior-CVAE")
    foreign = ("architectures", "model_type", "transformers_version", "_name_or_path", "dtype")
    given = {name: value for name, value in backbone.to_dict().items() if name not in foreign}
    return DiorConfig(**{**given, **changes})


AutoModelForSeq2SeqLM.register(DiorConfig, DiorForConditionalGeneration)
