"""What every MemBART class shares with transformers: configuration, initialisation, loading."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import fields
from typing import Any, Self

import torch
from torch import Tensor, nn
from transformers import initialization as init
from transformers.models.bart.modeling_bart import BartPreTrainedModel

from pretrain.errors import UserError
from pretrain.model.configuration import MemBartConfig
from pretrain.model.convert import Checkpoint, fit, read_checkpoint, read_generation_config, twin

_HUB_OPTIONS = (
    "cache_dir",
    "force_download",
    "local_files_only",
    "proxies",
    "revision",
    "subfolder",
    "token",
)
_OF_THE_SOURCE = ("architectures", "model_type", "transformers_version", "_name_or_path")
"""Fields of a foreign config.json that say what the checkpoint was, not what the model is to be."""
_OVERRIDABLE = {field.name for field in fields(MemBartConfig)} - {"dtype", *_OF_THE_SOURCE}


class MemBartPreTrainedModel(BartPreTrainedModel):
    """The base of all classes here; not a model by itself."""

    config: MemBartConfig
    config_class = MemBartConfig
    _no_split_modules = (
        "MemBartEncoderLayer",
        "SharedEncoderLayer",
        "MemformerEncoderLayer",
        "BartDecoderLayer",
    )
    # a slot sees itself but no other slot: these kernels cannot say that
    _supports_flash_attn = False
    _supports_flex_attn = False

    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        own = {**module._parameters, **module._buffers}
        if "memory_bias" in own:
            init.normal_(module.memory_bias, mean=0.0, std=self.config.init_std)
        for name in ("memory_alpha", "final_logits_bias"):
            if name in own:
                init.zeros_(own[name])

    @classmethod
    def from_scratch(cls, config: MemBartConfig) -> Self:
        """A model with fresh weights in which the memory stream starts as a copy of the token stream.

        Linear and embedding weights and memory_bias are N(0, init_std²), biases 0, norms 1 and 0.
        """
        model = cls(config)
        weights = model.state_dict()
        with torch.no_grad():
            for name, tensor in weights.items():
                origin = twin(name)
                if origin is not None:
                    tensor.copy_(weights[origin])
        return model

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | os.PathLike[str] | None,
        *model_args: Any,
        config: MemBartConfig | None = None,
        **kwargs: Any,
    ) -> Self:
        """Loads ours, the authors' published layout or trainer dump, or plain BART: a folder or a hub name.

        Keywords that name a configuration field override it (`memory_len=128`, `variant="shared"`,
        `dropout=0.1`); the others are transformers' (`dtype`, `device_map`, `revision`, ...). From plain BART
        the memory stream starts as a copy of BART's own; see `pretrain.model.convert.fit` for the rules.

        Raises `CheckpointError`, in one line that names the tensors, for weights that do not fit.
        """
        if pretrained_model_name_or_path is None:
            return super().from_pretrained(None, *model_args, config=config, **kwargs)
        name = os.fspath(pretrained_model_name_or_path)
        where = {key: kwargs.pop(key) for key in _HUB_OPTIONS if key in kwargs}
        checkpoint = read_checkpoint(name, **where)
        if config is None:
            overrides = {key: kwargs.pop(key) for key in list(kwargs) if key in _OVERRIDABLE}
            config = MemBartConfig(**(_model_fields(checkpoint.config) | overrides))
        elif not isinstance(config, MemBartConfig):
            raise UserError(f"config is a {type(config).__name__}", where=name, mend="give a MemBartConfig")
        weights = cls._fitted(checkpoint, config)
        made = super().from_pretrained(None, *model_args, config=config, state_dict=weights, **kwargs)
        model = made[0] if isinstance(made, tuple) else made
        model.config.name_or_path = name
        if model.can_generate() and kwargs.get("generation_config") is None:
            model.generation_config = read_generation_config(name, **where) or model.generation_config
        return made

    @classmethod
    def _fitted(cls, checkpoint: Checkpoint, config: MemBartConfig) -> dict[str, Tensor]:
        """The checkpoint's weights under this class's names (the bare model has no head and no `model.`)."""
        with torch.device("meta"):
            shapes = {name: tensor.shape for name, tensor in cls(config).state_dict().items()}
        prefix = "" if "final_logits_bias" in shapes else "model."
        if prefix:
            checkpoint.weights.pop("final_logits_bias", None)
        expected = {prefix + name: shape for name, shape in shapes.items()}
        weights = fit(checkpoint, expected, memory_len=config.memory_len, init_std=config.init_std)
        return {name.removeprefix(prefix): tensor for name, tensor in weights.items()}


def _model_fields(config: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in config.items() if key not in _OF_THE_SOURCE}
