"""Configurations: MemBART's with the head beside it, and one for the paper's other bodies."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from pydantic import Field
from transformers import AutoConfig, PreTrainedConfig

from pretrain.model import MemBartConfig
from pretrain.recipe import Section

HEAD = "ki_head"
"""Name of the head in a model, and of its group of parameters."""
Kind = Literal["transformer", "bert", "lstm", "diffks"]


@dataclass(frozen=True)
class Head:
    """The head f1 and its loss; what `ki` in a configuration holds."""

    size: int
    """Dimensions of the joint space: those of the keys."""
    dropout: float = 0.3
    margin: float = 0.1
    normalize: bool = True
    knowledge: str = ""
    """Hash of the annotations that it learns from."""


class KiMemBartConfig(MemBartConfig):
    """MemBART's fields and the head's; `memory_len` 0 is BART."""

    model_type = "ki_membart"

    ki: dict[str, Any] | None = None
    """Fields of `Head`; None is the body alone."""


class KiConfig(PreTrainedConfig):
    """One of the paper's own bodies."""

    model_type = "ki"

    kind: str = "transformer"
    shape: dict[str, Any] | None = None
    """Sizes of the body; see `SHAPES`."""
    ki: dict[str, Any] | None = None
    """As in `KiMemBartConfig`."""
    vocab_size: int = 0
    num_hidden_layers: int = 1
    """Layers whose keys and values are cached in decoding."""
    is_encoder_decoder: bool = True
    tie_word_embeddings: bool = True


class TransformerShape(Section):
    """The paper's Transformer: post-norm, ReLU, sinusoidal positions, one matrix for all words."""

    width: int = Field(default=512, gt=0)
    layers: int = Field(default=6, gt=0)
    ffn: int = Field(default=1024, gt=0)
    heads: int = Field(default=4, gt=0)
    dropout: float = Field(default=0.3, ge=0, lt=1)
    positions: int = Field(default=1024, gt=0)


class BertShape(Section):
    """A pretrained encoder with the same decoder, as wide as the encoder."""

    encoder: dict[str, Any] = Field(default_factory=lambda: {"model_type": "bert"})
    """Configuration of the encoder, with its `model_type`: `bert`, `ernie`."""
    layers: int = Field(default=6, gt=0)
    ffn: int = Field(default=1024, gt=0)
    heads: int = Field(default=4, gt=0)
    dropout: float = Field(default=0.1, ge=0, lt=1)
    """Of the decoder."""


class LstmShape(Section):
    """Seq2Seq: bidirectional encoder, `hidden` in each direction, and an attending decoder of `hidden`."""

    embedding: int = Field(default=256, gt=0)
    hidden: int = Field(default=256, gt=0)
    layers: int = Field(default=2, gt=0)
    dropout: float = Field(default=0.3, ge=0, lt=1)


class DiffksShape(Section):
    """DiffKS: bidirectional GRUs of `hidden` for context and knowledge, a GRU of `decoder` that copies."""

    embedding: int = Field(default=300, gt=0)
    hidden: int = Field(default=200, gt=0)
    decoder: int = Field(default=400, gt=0)
    dropout: float = Field(default=0.5, ge=0, lt=1)
    history: tuple[float, ...] = (0.7, 0.3)
    """Weights of what was selected before, the latest first."""
    sentence_tokens: int = Field(default=40, gt=0, multiple_of=8)
    """Longest knowledge sentence; the rest is cut."""
    sentences: int = Field(default=128, gt=1)
    """Most sentences to select from, "none of them" included; the rest is left out."""


SHAPES: dict[str, type[Section]] = {
    "transformer": TransformerShape,
    "bert": BertShape,
    "lstm": LstmShape,
    "diffks": DiffksShape,
}


def head_of(config: KiConfig | KiMemBartConfig) -> Head | None:
    """The head of a configuration, None without one."""
    return None if config.ki is None else Head(**config.ki)


AutoConfig.register("ki_membart", KiMemBartConfig)
AutoConfig.register("ki", KiConfig)
