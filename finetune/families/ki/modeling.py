"""Dialogue models with the head of knowledge internalization: MemBART, BART and the paper's own bodies."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForSeq2SeqLM, GenerationMixin, PreTrainedModel
from transformers.modeling_outputs import Seq2SeqLMOutput
from transformers.utils import can_return_tuple

from finetune.batch import TurnBatch
from finetune.families.ki.configuration import Head, KiConfig, KiMemBartConfig, head_of
from finetune.families.ki.diffks import DiffksBody
from finetune.families.ki.encoded import Encoded
from finetune.families.ki.lstm import LstmBody
from finetune.families.ki.objective import ANCHOR, PARTS, KiHead, internalization
from finetune.families.ki.transformer import BertBody, TransformerBody
from finetune.smoothing import SmoothedHead
from pretrain.errors import UserError
from pretrain.model import MemBartForConditionalGeneration
from pretrain.model.base import MemBartPreTrainedModel
from pretrain.model.encoder import MemBartEncoderOutput
from pretrain.model.loss import IGNORED
from pretrain.model.modeling import MemBartModel

BODIES = {"transformer": TransformerBody, "bert": BertBody, "lstm": LstmBody, "diffks": DiffksBody}
REPLY = ("nll", "smoothing")
"""Cross-entropy of the reply, and the same against a uniform target: label smoothing weighs the two."""


def loss_parts(kind: str, internalizes: bool) -> tuple[str, ...]:
    """Names of the parts of a model's `losses`."""
    return (*REPLY, *(("selection",) if kind == "diffks" else ()), *(PARTS if internalizes else ()))


class KiMemBart(MemBartForConditionalGeneration):
    """A MemBART, or BART with `memory_len` 0. Without `ki_head.*` its tensors are those of MemBART."""

    config: KiMemBartConfig
    config_class = KiMemBartConfig
    lm_head: SmoothedHead

    def __init__(self, config: KiMemBartConfig) -> None:
        PreTrainedModel.__init__(self, config)
        self.model = MemBartModel(config)
        self.final_logits_bias = nn.Buffer(torch.zeros(1, config.vocab_size))
        self.lm_head = SmoothedHead(config.d_model, config.vocab_size, bias=False)
        self.head = head_of(config)
        if self.head is not None:
            self.ki_head = make_head(self.head, config.d_model)
        self.post_init()

    @classmethod
    def from_pretrained(cls, *inputs: Any, **kwargs: Any) -> Any:
        """Loads its own folders, as transformers does; `Family.build` starts it from MemBART and BART."""
        return super(MemBartPreTrainedModel, cls).from_pretrained(*inputs, **kwargs)

    def read(self, batch: TurnBatch, memory: Tensor) -> MemBartEncoderOutput:
        """The source, with memory."""
        return self.encode(batch.input_ids, batch.attention_mask, memory, batch.memory_resets)

    def token_states(self, read: MemBartEncoderOutput) -> Tensor:
        """`[A, T, d]`: memory rows stand first and are dropped."""
        assert read.last_hidden_state is not None
        return read.last_hidden_state[:, self.config.decoder_slots :]

    def token_losses(
        self, read: MemBartEncoderOutput, batch: TurnBatch, labels: Tensor, per_row: bool = False
    ) -> Tensor:
        """Sums of `REPLY` over labels `[A, U]`, those of the batch or some of them: `[2]` or `[2, A]`."""
        states = self.model.decoder(
            input_ids=batch.decoder_input_ids,
            encoder_hidden_states=read.last_hidden_state,
            encoder_attention_mask=read.attention_mask,
            use_cache=False,
            return_dict=True,
        ).last_hidden_state
        bias, form = self.final_logits_bias[0], self.config.loss_impl
        return self.lm_head.losses(states, labels, bias, form, per_row)

    def losses(self, read: MemBartEncoderOutput, batch: TurnBatch, per_row: bool = False) -> Tensor:
        """Sums of `loss_parts`: `[K]`, or `[K, A]` `per_row`."""
        reply = self.token_losses(read, batch, batch.labels, per_row)
        return joined(self, [reply], self.token_states(read), batch, per_row)

    @torch.no_grad()
    def generate(self, *inputs: Any, **kwargs: Any) -> Any:
        """As MemBART's.

        Raises:
            UserError: knowledge is given.
        """
        refuse_knowledge(kwargs)
        return super().generate(*inputs, **kwargs)


class KiSeq2Seq(PreTrainedModel, GenerationMixin):
    """One of the paper's own bodies, which carry no memory."""

    config: KiConfig
    config_class = KiConfig
    body: Any
    lm_head: SmoothedHead
    base_model_prefix = ""
    main_input_name = "input_ids"
    _supports_sdpa = True
    _no_split_modules = ("MarianEncoderLayer", "MarianDecoderLayer", "BertLayer")

    def __init__(self, config: KiConfig) -> None:
        super().__init__(config)
        body: Any = BODIES[config.kind](config)
        self.body = body
        self.lm_head = SmoothedHead(body.out, config.vocab_size, bias=False)
        if body.words:
            words = f"body.{body.words}"
            self._tied_weights_keys = {"body.decoder.embed_tokens.weight": words, "lm_head.weight": words}
        self.head = head_of(config)
        if self.head is not None:
            self.ki_head = make_head(self.head, body.width)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        found: nn.Module = self.body.get_submodule(self.body.words.rpartition(".")[0] or "embed_tokens")
        return found

    def get_output_embeddings(self) -> nn.Module:
        return self.lm_head

    # --- training ---

    def read(self, batch: TurnBatch, memory: Tensor) -> Encoded:
        """The source, and of DiffKS the knowledge sentences with their scores."""
        found: Encoded = self.body.encode(
            batch.input_ids, batch.attention_mask, *self._sentences(batch.tensors)
        )
        found.memory_states, found.gate = memory, memory.new_zeros(1)
        return found

    def token_states(self, read: Encoded) -> Tensor:
        """`[A, T, d]`."""
        assert read.last_hidden_state is not None
        return read.last_hidden_state

    def token_losses(self, read: Encoded, batch: TurnBatch, labels: Tensor, per_row: bool = False) -> Tensor:
        """As `KiMemBart.token_losses`; of DiffKS with the sentence that the reply was written from."""
        if self.config.kind != "diffks":
            states = self.body.decode(batch.decoder_input_ids, read, None)
            return self.lm_head.losses(states, labels, None, "plain", per_row)
        told = self.body.select(read, batch.chosen)
        states = self.body.decode(batch.decoder_input_ids, told, None)
        shares = self.body.with_copies(self.lm_head(states), states, told).log_softmax(dim=-1)
        scored = labels != IGNORED
        nll = -shares.gather(-1, labels.clamp(min=0)[..., None])[..., 0]
        each = torch.stack([nll * scored, -shares.mean(dim=-1) * scored])
        return each.sum(dim=-1) if per_row else each.sum(dim=(1, 2))

    def losses(self, read: Encoded, batch: TurnBatch, per_row: bool = False) -> Tensor:
        """Sums of `loss_parts`: `[K]`, or `[K, A]` `per_row`."""
        parts = [self.token_losses(read, batch, batch.labels, per_row)]
        if self.config.kind == "diffks":
            assert read.scores is not None
            live = (batch.labels != IGNORED).any(dim=1)
            each = nn.functional.cross_entropy(read.scores, batch.chosen, reduction="none") * live
            parts.append(each[None] if per_row else each.sum()[None])
        return joined(self, parts, self.token_states(read), batch, per_row)

    # --- transformers ---

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        decoder_input_ids: Tensor | None = None,
        encoder_outputs: Encoded | None = None,
        past_key_values: Any = None,
        use_cache: bool | None = None,
        **kwargs: Any,
    ) -> Seq2SeqLMOutput:
        """Logits `[A, U, vocab]` of a source, or of what `read_source` made of one."""
        encoded = encoder_outputs
        if encoded is None:
            encoded = self.read_source(input_ids, attention_mask, kwargs)
        if decoder_input_ids is None:
            raise UserError("nothing to decode", where=self.config.kind, mend="give decoder_input_ids")
        cache = past_key_values
        if cache is None and use_cache:
            cache = self.body.empty_cache()
        states = self.body.decode(decoder_input_ids, encoded, cache)
        logits = self.lm_head(states)
        if self.config.kind == "diffks":
            logits = self.body.with_copies(logits, states, encoded)
        return Seq2SeqLMOutput(
            logits=logits, past_key_values=cache, encoder_last_hidden_state=encoded.last_hidden_state
        )

    def read_source(
        self, input_ids: Tensor | None, attention_mask: Tensor | None, fields: Mapping[str, Any]
    ) -> Encoded:
        """What is decoded from; of DiffKS, `fields` has the sentences, and the best one is selected."""
        if input_ids is None:
            raise UserError("no source", where=self.config.kind, mend="give input_ids")
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        return self.selected(self.body.encode(input_ids, mask, *self._sentences(fields)))

    def selected(self, read: Encoded) -> Encoded:
        """What is decoded from: of DiffKS, with the sentence of the highest score."""
        if read.scores is None:
            return read
        found: Encoded = self.body.select(read, read.scores.argmax(dim=1))
        return found

    @torch.no_grad()
    def generate(
        self,
        inputs: Tensor | None = None,
        *,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        encoder_outputs: Encoded | None = None,
        sentence_ids: Tensor | None = None,
        before_ids: Tensor | None = None,
        **kwargs: Any,
    ) -> Any:
        """transformers' `generate`; the source is read once.

        Args:
            encoder_outputs: of `selected`, if the caller has it.
            sentence_ids, before_ids: of DiffKS, what to select from; see the batch.

        Raises:
            UserError: knowledge ids or keys are given.
        """
        refuse_knowledge(kwargs)
        ids = inputs if input_ids is None else input_ids
        if encoder_outputs is None:
            fields = {"sentence_ids": sentence_ids, "before_ids": before_ids}
            encoder_outputs = self.read_source(ids, attention_mask, fields)
        # transformers repeats these in place for its beams; what was carried is not for the decoder.
        kept = {
            name: value for name, value in encoder_outputs.items() if name not in ("memory_states", "gate")
        }
        return super().generate(ids, attention_mask=attention_mask, encoder_outputs=Encoded(**kept), **kwargs)

    def _prepare_cache_for_generation(
        self, generation_config: Any, model_kwargs: dict[str, Any], *rest: Any
    ) -> None:
        if model_kwargs.get("past_key_values") is None and generation_config.use_cache:
            model_kwargs["past_key_values"] = self.body.empty_cache()

    def _sentences(self, fields: Mapping[str, Any]) -> tuple[Tensor, ...]:
        """Of DiffKS `[A, C, L]` and `[A, M, L]` from rows that lie end to end; else nothing."""
        if self.config.kind != "diffks":
            return ()
        length = (self.config.shape or {}).get("sentence_tokens", 40)
        found = [fields.get(name) for name in ("sentence_ids", "before_ids")]
        if any(each is None for each in found):
            raise UserError("no knowledge sentences", where="diffks", mend="give sentence_ids and before_ids")
        pad = self.config.pad_token_id
        whole = [
            nn.functional.pad(each, (0, -each.shape[1] % length), value=pad)
            for each in found
            if each is not None
        ]
        return tuple(each.unflatten(1, (-1, length)) for each in whole)


def make_head(head: Head, width: int) -> KiHead:
    return KiHead(width, head.size, head.dropout, head.normalize)


def joined(
    model: KiMemBart | KiSeq2Seq, parts: Iterable[Tensor], states: Tensor, batch: TurnBatch, per_row: bool
) -> Tensor:
    """The reply's parts and those of knowledge, which are zero for a batch that has none, as in evaluation.

    Args:
        states: `[A, T, d]` of the source tokens.
    """
    found = list(parts)
    if model.head is not None:
        if ANCHOR in batch.tensors:
            known = internalization(model.ki_head, states, batch.tensors, model.head.margin)
        else:
            known = found[0].new_zeros(len(PARTS), len(batch.labels))
        found.append((known if per_row else known.sum(dim=1)).to(found[0].dtype))
    return torch.cat(found)


def refuse_knowledge(given: Mapping[str, Any]) -> None:
    """Knowledge is for training alone.

    Raises:
        UserError: some is given.
    """
    for name in ("knowledge_ids", "keys"):
        if given.get(name) is not None:
            raise UserError(
                f"{name} given to generate: what the model knows is in its weights",
                where="knowledge internalization",
                mend="leave it out",
            )


AutoModelForSeq2SeqLM.register(KiMemBartConfig, KiMemBart)
AutoModelForSeq2SeqLM.register(KiConfig, KiSeq2Seq)
