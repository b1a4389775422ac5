"""Prior and recognition network, and the small modules that no backbone has."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from transformers import BartConfig
from transformers.models.bart.modeling_bart import BartEncoderLayer, BartLearnedPositionalEmbedding

from finetune.families.persona_cvae.configuration import PersonaConfig
from finetune.families.persona_cvae.objectives import LOG_VARIANCE_LIMIT, similarity, word_vectors
from pretrain.model.attention import compute_dtype


class FreshLinear(nn.Linear):
    """A linear map that no backbone has, in float32 at least whatever autocast says; drawn as torch does."""

    def forward(self, input: Tensor) -> Tensor:
        kind = torch.promote_types(self.weight.dtype, torch.float32)
        with torch.autocast(input.device.type, enabled=False):
            return nn.functional.linear(input.to(kind), self.weight.to(kind), self.bias.to(kind))


class LastLinear(FreshLinear):
    """The last layer of a head: scaled by `head_scale` at the start, without bias then."""


class Marks(nn.Module):
    """The role vector, and the vectors of the tokens [z] and [a]."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.role = nn.Parameter(torch.zeros(width))
        self.slots = nn.Parameter(torch.zeros(2, width))

    def forward(self, roles: Tensor | None) -> Tensor:
        """`[A, L]` flags of the other party -> `[A, L, D]`; None -> the slots, `[2, D]`."""
        return self.slots if roles is None else roles[..., None].to(self.role.dtype) * self.role


def layer_config(config: PersonaConfig) -> BartConfig:
    """Shape of one layer: as the body's encoder, or the paper's (8 heads, twice the width, ReLU)."""
    body = config.body
    assert body is not None
    if config.kind == "membart" and config.inference_like_body:
        fields = {
            "encoder_attention_heads": body["encoder_attention_heads"],
            "encoder_ffn_dim": body["encoder_ffn_dim"],
            "activation_function": body["activation_function"],
            "dropout": body["dropout"],
            "attention_dropout": body["attention_dropout"],
            "activation_dropout": body["activation_dropout"],
        }
    else:
        rate = config.inference_dropout
        fields = {
            "encoder_attention_heads": config.inference_heads,
            "encoder_ffn_dim": 2 * config.width,
            "activation_function": "relu",
            "dropout": rate,
            "attention_dropout": rate,
            "activation_dropout": rate,
        }
    made = BartConfig(d_model=config.width, encoder_layers=config.inference_layers, **fields)
    made._attn_implementation = "sdpa"
    return made


class Inference(nn.Module):
    """A bidirectional Transformer over latent slots and tokens, with a head that gives a Gaussian.

    On a MemBART it has position table and embedding norm of its own, copied from the encoder.
    """

    def __init__(self, config: PersonaConfig) -> None:
        super().__init__()
        shape, width = layer_config(config), config.width
        self.layers = nn.ModuleList(BartEncoderLayer(shape, i) for i in range(config.inference_layers))
        self.embed_positions: nn.Module | None = None
        self.layernorm_embedding: nn.Module | None = None
        if config.kind == "membart":
            assert config.body is not None
            positions = int(config.body["max_position_embeddings"])
            self.embed_positions = BartLearnedPositionalEmbedding(positions, width)
            self.layernorm_embedding = nn.LayerNorm(width)
        self.rate = shape.dropout
        self.hidden = FreshLinear(width, 4 * width)
        self.gaussian = LastLinear(4 * width, 2 * width)

    def enter(self, embedded: Tensor) -> Tensor:
        """Tokens `[A, L, D]`, on GPT-2 with positions already, as what layers read."""
        if self.embed_positions is None or self.layernorm_embedding is None:
            return embedded
        normed: Tensor = self.layernorm_embedding(embedded + self.embed_positions(embedded[:, :, 0]))
        return normed

    def slot(self, row: Tensor) -> Tensor:
        """A token of a latent, `[D]`, which has no position."""
        return row if self.layernorm_embedding is None else self.layernorm_embedding(row)

    def forward(self, slots: Tensor, tokens: Tensor, mask: Tensor) -> Tensor:
        """Slots `[A, n, D]` and entered tokens `[A, L, D]` with mask `[A, L]` -> their states, in order."""
        number = slots.shape[1]
        states = torch.cat([slots.to(tokens.dtype), tokens], dim=1)
        states = nn.functional.dropout(states, self.rate, self.training)
        seen = nn.functional.pad(mask, (number, 0), value=1) != 0
        kind = compute_dtype(states)
        hidden = torch.zeros(seen.shape, dtype=kind, device=seen.device)
        hidden = hidden.masked_fill(~seen, torch.finfo(kind).min)[:, None, None]
        hidden = hidden.expand(-1, 1, seen.shape[1], -1)
        for layer in self.layers:
            states = layer(states, hidden)
        return states

    def head(self, state: Tensor) -> tuple[Tensor, Tensor]:
        """`[A, D]` -> mean and log variance, `[A, D]` float32."""
        found = self.gaussian(nn.functional.leaky_relu(self.hidden(state), 0.01))
        mean, logvar = found.chunk(2, dim=-1)
        return mean, logvar.clamp(-LOG_VARIANCE_LIMIT, LOG_VARIANCE_LIMIT)


class Fader(nn.Module):
    """The fader's recognition: no parameters, but a word table as it was before training."""

    def __init__(self, config: PersonaConfig) -> None:
        super().__init__()
        self.form, self.threshold = config.fader_similarity, config.fader_threshold
        self.table = nn.Buffer(torch.zeros(config.body_vocabulary, config.width))

    @torch.no_grad()
    def forward(self, keyword_ids: Tensor, keywords: Tensor, reply_ids: Tensor, reply: Tensor) -> Tensor:
        """Pieces and their words' numbers, `[A, L]` each -> the level α `[A]`."""
        table = self.table.float()
        with torch.autocast(table.device.type, enabled=False):
            wanted, said = word_vectors(table, keyword_ids, keywords), word_vectors(table, reply_ids, reply)
            return similarity(*wanted, *said, self.form, self.threshold)
