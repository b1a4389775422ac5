"""MemBART as models of transformers: the bare model, the model with a head, the recurrent protocol."""

from __future__ import annotations

import math
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForSeq2SeqLM, BartForConditionalGeneration, Cache, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutput, Seq2SeqLMOutput, Seq2SeqModelOutput
from transformers.models.bart.modeling_bart import BartDecoder, BartScaledWordEmbedding, shift_tokens_right
from transformers.utils import can_return_tuple

from pretrain.errors import UserError
from pretrain.model.attention import recorded_attention
from pretrain.model.base import MemBartPreTrainedModel
from pretrain.model.configuration import MemBartConfig
from pretrain.model.encoder import MemBartEncoder, MemBartEncoderOutput, widen_mask
from pretrain.model.loss import IGNORED, VocabularyHead


@dataclass
class MemBartModelOutput(Seq2SeqModelOutput):
    """BART's output and the next memory [batch, L, d]."""

    memory_states: Tensor | None = None


@dataclass
class MemBartLMOutput(Seq2SeqLMOutput):
    """BART's output and the next memory [batch, L, d]."""

    memory_states: Tensor | None = None


class MemBartModel(MemBartPreTrainedModel):
    """Recurrent encoder and BART's decoder, without a head."""

    _tied_weights_keys = {  # noqa: RUF012 -- transformers wants a plain dict here
        "decoder.embed_tokens.weight": "shared.weight",
        "encoder.embed_tokens.weight": "shared.weight",
    }

    def __init__(self, config: MemBartConfig) -> None:
        super().__init__(config)
        scale = math.sqrt(config.d_model) if config.scale_embedding else 1.0
        self.shared = BartScaledWordEmbedding(
            config.vocab_size, config.d_model, config.pad_token_id, embed_scale=scale
        )
        self.encoder = MemBartEncoder(config)
        self.decoder = BartDecoder(config)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.shared

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.shared = self.encoder.embed_tokens = self.decoder.embed_tokens = value

    def construct_memory(self, batch_size: int, device: torch.device | str | None = None) -> Tensor:
        """The memory before the first step: float32 zeros [batch, L, d], on the model's device by default."""
        shape = (batch_size, self.config.memory_len, self.config.d_model)
        return torch.zeros(shape, dtype=torch.float32, device=device or self.device)

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        decoder_input_ids: Tensor | None = None,
        decoder_attention_mask: Tensor | None = None,
        encoder_outputs: BaseModelOutput | tuple[Tensor, ...] | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        decoder_inputs_embeds: Tensor | None = None,
        use_cache: bool | None = None,
        memory_states: Tensor | None = None,
        memory_resets: Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        **kwargs: Any,
    ) -> MemBartModelOutput:
        """BART's arguments and the memory's (see `MemBartEncoder.forward`).

        With `encoder_outputs` the encoder does not run and the memory arguments have no part; then
        `attention_mask` may cover the tokens or memory and tokens, and left out it is the encoder's own.
        """
        if output_attentions is None:
            output_attentions = self.config.output_attentions
        if encoder_outputs is None:
            encoder_outputs = self.encoder(
                input_ids=input_ids,
                attention_mask=attention_mask,
                memory_states=memory_states,
                memory_resets=memory_resets,
                inputs_embeds=inputs_embeds,
                output_attentions=output_attentions,
                output_hidden_states=output_hidden_states,
            )
        encoded = BaseModelOutput(*encoder_outputs) if isinstance(encoder_outputs, tuple) else encoder_outputs
        if decoder_input_ids is None and decoder_inputs_embeds is None:
            if input_ids is None:
                raise UserError("nothing to decode", where="MemBART", mend="give decoder_input_ids or labels")
            decoder_input_ids = shift_tokens_right(
                input_ids, self.config.pad_token_id, self.config.decoder_start_token_id
            )
        with recorded_attention(self.config) if output_attentions else nullcontext():
            decoded = self.decoder(
                input_ids=decoder_input_ids,
                attention_mask=decoder_attention_mask,
                encoder_hidden_states=encoded.last_hidden_state,
                encoder_attention_mask=self._cross_mask(attention_mask, encoded),
                past_key_values=past_key_values,
                inputs_embeds=decoder_inputs_embeds,
                use_cache=use_cache,
                output_attentions=output_attentions,
                output_hidden_states=output_hidden_states,
                return_dict=True,
                **kwargs,
            )
        return MemBartModelOutput(
            last_hidden_state=decoded.last_hidden_state,
            past_key_values=decoded.past_key_values,
            decoder_hidden_states=decoded.hidden_states,
            decoder_attentions=decoded.attentions,
            cross_attentions=decoded.cross_attentions,
            encoder_last_hidden_state=encoded.last_hidden_state,
            encoder_hidden_states=encoded.hidden_states,
            encoder_attentions=encoded.attentions,
            memory_states=getattr(encoded, "memory_states", None),
        )

    def _cross_mask(self, mask: Tensor | None, encoded: BaseModelOutput) -> Tensor | None:
        """The mask over all the decoder can see: the given one widened by the slots, else the encoder's."""
        if mask is None:
            return getattr(encoded, "attention_mask", None)
        length, slots = encoded.last_hidden_state.shape[1], self.config.decoder_slots
        if mask.shape[-1] == length:
            return mask
        if mask.shape[-1] + slots == length:
            return widen_mask(mask, slots)
        raise UserError(
            f"attention_mask covers {mask.shape[-1]} positions, the encoder gave {length} ({slots} slots)",
            where="MemBART",
        )


class MemBartForConditionalGeneration(MemBartPreTrainedModel, BartForConditionalGeneration):
    """MemBART with BART's tied vocabulary head.

    Beside transformers' interface it has the recurrent protocol that memory replay uses: `construct_memory`,
    `encode`, `token_loss`.
    """

    base_model_prefix = "model"
    _tied_weights_keys = {"lm_head.weight": "model.shared.weight"}  # noqa: RUF012 -- as above

    def __init__(self, config: MemBartConfig) -> None:
        PreTrainedModel.__init__(self, config)  # BART's own would build its encoder
        self.model = MemBartModel(config)
        self.final_logits_bias = nn.Buffer(torch.zeros(1, config.vocab_size))
        self.lm_head = VocabularyHead(config.d_model, config.vocab_size, bias=False)
        self.post_init()

    def construct_memory(self, batch_size: int, device: torch.device | str | None = None) -> Tensor:
        """The memory before the first step: float32 zeros [batch, L, d], on the model's device by default."""
        return self.model.construct_memory(batch_size, device)

    def encode(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        memory_states: Tensor | None = None,
        memory_resets: Tensor | None = None,
        **kwargs: Any,
    ) -> MemBartEncoderOutput:
        """One recurrent step of the encoder; arguments as in `MemBartEncoder.forward`."""
        return self.model.encoder(
            input_ids=input_ids,
            attention_mask=attention_mask,
            memory_states=memory_states,
            memory_resets=memory_resets,
            **kwargs,
        )

    def token_loss(
        self,
        encoder_output: MemBartEncoderOutput,
        decoder_input_ids: Tensor,
        labels: Tensor,
        per_row: bool = False,
    ) -> Tensor:
        """Sum of cross-entropy over labels that are not -100, float32 or wider: 0-d, or [batch] `per_row`.

        `decoder_input_ids` and `labels` [batch, D] int64, padded on the right. Without any label the result
        is 0 and its gradient reaches every parameter as 0.
        """
        states = self.model.decoder(
            input_ids=decoder_input_ids,
            encoder_hidden_states=encoder_output.last_hidden_state,
            encoder_attention_mask=encoder_output.attention_mask,
            use_cache=False,
            return_dict=True,
        ).last_hidden_state
        bias, form = self.final_logits_bias[0], self.config.loss_impl
        if per_row:
            rows = zip(states, labels, strict=True)
            return torch.stack(
                [self.lm_head(row, bias=bias, labels=wanted, form=form) for row, wanted in rows]
            )
        return self.lm_head(states, bias=bias, labels=labels, form=form)

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        decoder_input_ids: Tensor | None = None,
        decoder_attention_mask: Tensor | None = None,
        encoder_outputs: BaseModelOutput | tuple[Tensor, ...] | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        decoder_inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        memory_states: Tensor | None = None,
        memory_resets: Tensor | None = None,
        **kwargs: Any,
    ) -> MemBartLMOutput:
        """`MemBartModel.forward`, with logits [batch, D, vocab] and, given labels, their mean cross-entropy.

        The mean is over the labels that are not -100 of all rows together; 0 when there are none.
        """
        if labels is not None:
            use_cache = False
            if decoder_input_ids is None and decoder_inputs_embeds is None:
                decoder_input_ids = shift_tokens_right(
                    labels, self.config.pad_token_id, self.config.decoder_start_token_id
                )
        outputs = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            decoder_input_ids=decoder_input_ids,
            decoder_attention_mask=decoder_attention_mask,
            encoder_outputs=encoder_outputs,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            decoder_inputs_embeds=decoder_inputs_embeds,
            use_cache=use_cache,
            memory_states=memory_states,
            memory_resets=memory_resets,
            return_dict=True,
            **kwargs,
        )
        logits = self.lm_head(outputs.last_hidden_state, bias=self.final_logits_bias[0])
        loss = None
        if labels is not None:
            wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
            total = nn.functional.cross_entropy(wide.flatten(0, 1), labels.flatten(), reduction="sum")
            loss = total / (labels != IGNORED).sum().clamp(min=1)
        return MemBartLMOutput(
            loss=loss,
            logits=logits,
            past_key_values=outputs.past_key_values,
            decoder_hidden_states=outputs.decoder_hidden_states,
            decoder_attentions=outputs.decoder_attentions,
            cross_attentions=outputs.cross_attentions,
            encoder_last_hidden_state=outputs.encoder_last_hidden_state,
            encoder_hidden_states=outputs.encoder_hidden_states,
            encoder_attentions=outputs.encoder_attentions,
            memory_states=outputs.memory_states,
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
        encoder_outputs: BaseModelOutput | None = None,
        **kwargs: Any,
    ) -> Any:
        """transformers' `generate`, reading and updating memory.

        Encodes once, with memory, and decodes from that; or decodes from `encoder_outputs` of `encode`. The
        caller's tensors are left as they are. With `return_dict_in_generate=True` the result also has
        `memory_states`, the next memory; otherwise call `encode` first and take it from there.
        """
        if inputs is not None and input_ids is not None:
            raise UserError("give input_ids once", where="generate")
        input_ids = inputs if input_ids is None else input_ids
        cache = kwargs.get("past_key_values")
        if cache is not None and cache.get_seq_length() > 0:
            raise UserError(
                "a used cache holds the keys of another turn's memory", where="generate", mend="leave it out"
            )
        if encoder_outputs is None:
            encoder_outputs = self.encode(
                input_ids,
                attention_mask,
                memory_states,
                memory_resets,
                output_attentions=kwargs.get("output_attentions"),
                output_hidden_states=kwargs.get("output_hidden_states"),
            )
        # transformers repeats the tensors of the encoder output in place, once per beam
        private = BaseModelOutput(
            last_hidden_state=encoder_outputs.last_hidden_state,
            hidden_states=encoder_outputs.hidden_states,
            attentions=encoder_outputs.attentions,
        )
        mask = self.model._cross_mask(attention_mask, encoder_outputs)
        if mask is None:
            mask = torch.ones(private.last_hidden_state.shape[:2], dtype=torch.long, device=self.device)
        made = super().generate(input_ids, encoder_outputs=private, attention_mask=mask, **kwargs)
        if isinstance(made, dict):
            made["memory_states"] = getattr(encoder_outputs, "memory_states", None)
        return made


def freeze_as_authors(model: MemBartForConditionalGeneration) -> None:
    """Freeze what the authors froze: the word embedding (hence the head) and both position tables."""
    model.model.shared.requires_grad_(False)
    model.model.encoder.embed_positions.requires_grad_(False)
    model.model.decoder.embed_positions.requires_grad_(False)


AutoModelForSeq2SeqLM.register(MemBartConfig, MemBartForConditionalGeneration)
