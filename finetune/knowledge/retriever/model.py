"""Two encoders with a head each: `r(s_i | S, K) = f(h_i) . f'(g(K))` (section 4.2).

`h_i` is the last layer of the first encoder at token i, `g(K)` the mean of the last layer of the second over
the tokens of a sentence. The heads are Linear, ReLU, Dropout, Linear; the result is divided by its norm. Both
encoders start as copies of one: a BERT of the hub, or the encoder of a MemBART or BART of ours, whose memory
is as at the start of a document and whose memory rows are dropped.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AutoConfig, AutoModel, AutoTokenizer

from finetune import backbone
from finetune.knowledge import artifact
from finetune.knowledge.retriever.settings import RetrieverSettings
from pretrain.errors import UserError
from pretrain.model.encoder import MemBartEncoder

KIND = artifact.Kind("retriever", "membart ki train-retriever --base BASE --from PLACE --out FOLDER")
WEIGHTS, SETTINGS = "model.safetensors", "settings.json"
LONGEST = 512
"""Tokens that are read at once, specials included, where the encoder has positions for them."""
WINDOW, STRIDE = 256, 128
"""Of a text that is longer."""


@dataclass(frozen=True)
class Encoded:
    """Texts as a batch of an encoder."""

    ids: Tensor
    """`[B, S]` int64"""
    mask: Tensor
    """`[B, S]` int64, 0 on padding."""
    real: Tensor
    """`[B, S]` bool: neither padding nor special."""
    offsets: Tensor
    """`[B, S, 2]` int64, characters that each token stands for."""

    def to(self, device: torch.device) -> Encoded:
        """The same on another device."""
        return Encoded(*(tensor.to(device) for tensor in (self.ids, self.mask, self.real, self.offsets)))


class Tower(nn.Module):
    """An encoder and its head."""

    def __init__(self, encoder: nn.Module, settings: RetrieverSettings) -> None:
        super().__init__()
        self.encoder = encoder
        width = int(encoder.config.hidden_size)  # type: ignore[union-attr, arg-type]
        self.head = nn.Sequential(
            nn.Linear(width, settings.head_size),
            nn.ReLU(),
            nn.Dropout(settings.head_dropout),
            nn.Linear(settings.head_size, settings.joint_size),
        )

    def states(self, texts: Encoded) -> Tensor:
        """Last layer at every token, `[B, S, d]`."""
        out = self.encoder(input_ids=texts.ids, attention_mask=texts.mask).last_hidden_state
        found: Tensor = out[:, out.shape[1] - texts.ids.shape[1] :]
        return found


class Retriever(nn.Module):
    """The pair of towers, with the tokenizer of both."""

    def __init__(
        self, tokens: nn.Module, knowledge: nn.Module, settings: RetrieverSettings, tokenizer: Any
    ) -> None:
        super().__init__()
        self.settings, self.tokenizer = settings, tokenizer
        self.tokens, self.knowledge = Tower(tokens, settings), Tower(knowledge, settings)

    @classmethod
    def begin(cls, place: str, settings: RetrieverSettings) -> Retriever:
        """From a run or folder of a MemBART or BART, or `hf:NAME` of any encoder.

        Raises:
            UserError, CheckpointError: nothing usable there.
        """
        if place == backbone.SCRATCH:
            raise UserError(
                "a retriever starts from trained encoders", where=place, mend="--from RUN|hf:NAME"
            )
        start = backbone.find(place)
        if start.is_membart:
            encoder: Any = start.membart().model.encoder
        elif start.config.is_encoder_decoder:
            raise UserError(
                f"{start.config.model_type} is no encoder", where=place, mend="a BERT, BART or MemBART"
            )
        else:
            encoder = start.hub_model(AutoModel)
        if not start.tokenizer.is_fast:
            raise UserError("its tokenizer tells no character offsets", where=place, mend="a fast tokenizer")
        torch.manual_seed(settings.seed)
        return cls(encoder, copy.deepcopy(encoder), settings, start.tokenizer)

    @classmethod
    def open(cls, folder: Path) -> Retriever:
        """A trained retriever in eval mode, float32 on the CPU.

        Raises:
            UserError: absent, damaged, or of another format.
        """
        artifact.read(folder, KIND)
        settings = RetrieverSettings.model_validate_json((folder / SETTINGS).read_text(encoding="utf-8"))
        config = AutoConfig.from_pretrained(folder)
        tokenizer = AutoTokenizer.from_pretrained(folder)
        model = cls(_empty(config), _empty(config), settings, tokenizer)
        model.load_state_dict(load_file(folder / WEIGHTS))
        return model.eval()

    def save(self, folder: Path) -> None:
        """Write all that `open` needs into an unfinished folder."""
        save_file({name: tensor.contiguous() for name, tensor in self.state_dict().items()}, folder / WEIGHTS)
        content = json.dumps(self.settings.model_dump(mode="json"), indent=1)
        (folder / SETTINGS).write_text(content, encoding="utf-8")
        config: Any = self.tokens.encoder.config
        config.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)

    @property
    def longest(self) -> int:
        """Tokens that an encoder reads at once, specials included."""
        config: Any = self.tokens.encoder.config
        return min(LONGEST, int(getattr(config, "max_position_embeddings", LONGEST)))

    def encode(self, texts: Sequence[str], longest: int | None = None) -> Encoded:
        """Texts as tokens, cut to `longest` (default: `settings.max_tokens`, at most what can be read)."""
        found = self.tokenizer(
            list(texts),
            truncation=True,
            max_length=min(longest or self.settings.max_tokens, self.longest),
            padding=True,
            padding_side="right",
            return_offsets_mapping=True,
            return_special_tokens_mask=True,
            return_tensors="pt",
        )
        mask = found["attention_mask"]
        real = (mask == 1) & (found["special_tokens_mask"] == 0)
        return Encoded(found["input_ids"], mask, real, found["offset_mapping"])

    def offsets(self, text: str) -> list[tuple[int, int]]:
        """Characters that each token of a text stands for, however long it is, without specials."""
        found = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
        return list(found["offset_mapping"])

    def token_outputs(self, texts: Encoded) -> Tensor:
        """Head outputs `[B, S, joint_size]` of every token, not yet of unit length."""
        found: Tensor = self.tokens.head(self.tokens.states(texts))
        return found

    def keys(self, sentences: Encoded) -> Tensor:
        """Unit vectors `[B, joint_size]` of sentences: the mean over real tokens through the other head."""
        states = self.knowledge.states(sentences)
        weights = sentences.real.unsqueeze(-1).to(states.dtype)
        mean = (states * weights).sum(dim=1) / weights.sum(dim=1).clamp(min=1)
        return F.normalize(self.knowledge.head(mean).float(), dim=-1)


def _empty(config: Any) -> nn.Module:
    """An encoder with weights yet to be loaded."""
    if config.model_type == "membart":
        return MemBartEncoder(config)
    model: nn.Module = AutoModel.from_config(config)
    return model
