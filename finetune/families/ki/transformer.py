"""The paper's Transformer, and a pretrained encoder before the same decoder (Bert2Rnd, Ernie2Rnd)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import CONFIG_MAPPING, AutoModel, Cache, DynamicCache, EncoderDecoderCache, MarianConfig
from transformers.models.marian.modeling_marian import MarianDecoder, MarianEncoder

from finetune.families.ki.configuration import BertShape, KiConfig, TransformerShape
from finetune.families.ki.encoded import Encoded


class TransformerBody(nn.Module):
    """A post-norm Transformer as Marian has it: sinusoidal positions, embeddings times √d."""

    words = "encoder.embed_tokens.weight"
    """The one matrix of words, which decoder and vocabulary head share."""

    def __init__(self, config: KiConfig) -> None:
        super().__init__()
        shape = TransformerShape.model_validate(config.shape or {})
        self.marian = marian(config, shape, shape.width, shape.positions)
        self.encoder: Any = MarianEncoder(self.marian)
        self.decoder = MarianDecoder(self.marian)
        self.width = self.out = shape.width

    @property
    def positions(self) -> int:
        """Longest source."""
        return int(self.encoder.config.max_position_embeddings)

    def encode(self, ids: Tensor, mask: Tensor) -> Encoded:
        # A row that is all padding has nothing to attend to: let it attend to the padding, nobody reads it.
        seen = torch.where(mask.any(dim=1, keepdim=True), mask, torch.ones_like(mask))
        states = self.encoder(input_ids=ids, attention_mask=seen).last_hidden_state
        return Encoded(last_hidden_state=states, attention_mask=seen)

    def decode(self, ids: Tensor, encoded: Encoded, cache: Cache | None) -> Tensor:
        """States `[A, U, d]` after each of the tokens; with a cache, of the new ones."""
        found: Tensor = self.decoder(
            input_ids=ids,
            encoder_hidden_states=encoded.last_hidden_state,
            encoder_attention_mask=encoded.attention_mask,
            past_key_values=cache,
            use_cache=cache is not None,
        ).last_hidden_state
        return found

    def empty_cache(self) -> EncoderDecoderCache:
        return EncoderDecoderCache(DynamicCache(config=self.marian), DynamicCache(config=self.marian))


class BertBody(TransformerBody):
    """A BERT or ERNIE as encoder; the decoder reads the encoder's word rows."""

    words = "encoder.embeddings.word_embeddings.weight"

    def __init__(self, config: KiConfig) -> None:
        nn.Module.__init__(self)
        shape = BertShape.model_validate(config.shape or {})
        pretrained = bert_config(shape.encoder, config.vocab_size)
        self.encoder = AutoModel.from_config(pretrained, add_pooling_layer=False)
        self.width = self.out = int(pretrained.hidden_size)
        self.marian = marian(config, shape, self.width, int(pretrained.max_position_embeddings))
        self.decoder = MarianDecoder(self.marian)


def bert_config(content: dict[str, Any], vocabulary: int) -> Any:
    """The configuration object of an encoder, from what `to_dict` gave."""
    of_the_source = ("model_type", "architectures", "transformers_version", "_name_or_path", "dtype")
    fields = {name: value for name, value in content.items() if name not in of_the_source}
    return CONFIG_MAPPING[content["model_type"]](**{**fields, "vocab_size": vocabulary})


def marian(config: KiConfig, shape: TransformerShape | BertShape, width: int, positions: int) -> MarianConfig:
    """The configuration of the encoder and decoder layers."""
    return MarianConfig(
        vocab_size=config.vocab_size,
        d_model=width,
        encoder_layers=shape.layers,
        decoder_layers=shape.layers,
        encoder_ffn_dim=shape.ffn,
        decoder_ffn_dim=shape.ffn,
        encoder_attention_heads=shape.heads,
        decoder_attention_heads=shape.heads,
        activation_function="relu",
        dropout=shape.dropout,
        attention_dropout=0.0,
        activation_dropout=0.0,
        scale_embedding=True,
        max_position_embeddings=positions,
        pad_token_id=config.pad_token_id,
        bos_token_id=config.bos_token_id,
        eos_token_id=config.eos_token_id,
        decoder_start_token_id=config.bos_token_id,
        forced_eos_token_id=None,
    )
