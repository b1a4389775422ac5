"""What a kind of model must say of itself to be exported; most have nothing to say."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import (
    CONFIG_MAPPING,
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING,
    PreTrainedConfig,
    PreTrainedModel,
)

import pretrain.model.modeling  # noqa: F401 -- registers MemBART with the Auto classes
from pretrain.checkpoint import Checkpoint
from pretrain.errors import CheckpointError

PROBE_LENGTH = 16


@torch.no_grad()
def probe(model: Any) -> Tensor:
    """Logits of two timesteps of two rows of fixed random tokens, float32.

    A model with `construct_memory` carries its memory from the first to the second; a decoder-only model is
    given no decoder input.
    """
    config = model.config
    length = min(PROBE_LENGTH, getattr(config, "max_position_embeddings", None) or PROBE_LENGTH)
    generator = torch.Generator().manual_seed(0)
    memory = model.construct_memory(2) if hasattr(model, "construct_memory") else None
    logits = []
    for ids in torch.randint(config.vocab_size, (2, 2, length), generator=generator):
        words = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        if config.is_encoder_decoder:
            words["decoder_input_ids"] = ids
        if memory is not None:
            words["memory_states"] = memory
        out = model(**words)
        memory = out.memory_states if memory is not None else None
        logits.append(out.logits)
    return torch.stack(logits).float()


def nothing_more(saved: Checkpoint, folder: Path) -> None:
    """The extras of a kind that has none."""


@dataclass(frozen=True)
class Kind:
    """How models of one kind are rebuilt, compared and served.

    The defaults serve every kind whose configuration and model are registered with transformers' Auto classes
    and whose forward is that of an encoder-decoder or a causal LM, with or without MemBART's memory.
    """

    model_class: type[PreTrainedModel] | None = None
    """None: the class that is registered for the configuration's `model_type`."""
    probe: Callable[[Any], Tensor] = probe
    """Model in eval mode -> a float32 tensor that depends on every weight; equal for equal weights."""
    extras: Callable[[Checkpoint, Path], None] = nothing_more
    """Writes into the exported folder what the kind also needs."""
    server: str = "pretrain.serving"
    """Module that answers for the exported folder in MLflow; see `pretrain.serving`."""

    def config(self, saved: Checkpoint) -> PreTrainedConfig:
        """The configuration of a checkpoint, naming its model class.

        Raises:
            CheckpointError: unreadable, or of a model type that nobody registered.
        """
        where = str(saved.path)
        try:
            fields = json.loads((saved.path / "config.json").read_text(encoding="utf-8"))
            model_type = fields["model_type"]
            fields.pop("auto_map", None)  # names code to run, which a foreign backbone may have brought
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise CheckpointError(f"config.json cannot be read: {error!r}", where=where) from None
        if self.model_class is not None:
            config_class = self.model_class.config_class
        elif model_type in CONFIG_MAPPING:
            config_class = CONFIG_MAPPING[model_type]
        else:
            raise CheckpointError(
                f"nobody knows the model type '{model_type}'",
                where=where,
                mend="import the module that registers it with transformers' Auto classes",
            )
        config: PreTrainedConfig = config_class.from_dict(fields)
        config.architectures = [self._class_for(config, where).__name__]
        return config

    def build(self, config: PreTrainedConfig) -> PreTrainedModel:
        """A model of this configuration with fresh weights on the current device."""
        return self._class_for(config, "")(config)

    def _class_for(self, config: PreTrainedConfig, where: str) -> type[PreTrainedModel]:
        if self.model_class is not None:
            return self.model_class
        for mapping in (MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING, MODEL_FOR_CAUSAL_LM_MAPPING):
            if type(config) in mapping:
                found: type[PreTrainedModel] = mapping[type(config)]
                return found
        raise CheckpointError(f"no model that writes text is known for {type(config).__name__}", where=where)


DEFAULT = Kind()
