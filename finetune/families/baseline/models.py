"""Models of transformers as they are: which class a configuration asks for, and how one is started."""

from __future__ import annotations

import difflib
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, ClassVar

import torch
from huggingface_hub.errors import StrictDataclassError
from transformers import (
    CONFIG_MAPPING,
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_MASKED_LM_MAPPING,
    MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    PreTrainedConfig,
    PreTrainedModel,
)

from finetune.backbone import Backbone
from finetune.configuration import BAD_CONFIG, bad_config, check_known
from finetune.weights import WeightMap
from pretrain.errors import CheckpointError, UserError
from pretrain.export import load_model, named_tensors
from pretrain.model.origins import FRESH, Origin


class AnyConfig:
    """Stands for the configuration class that a `model_type` names."""

    @staticmethod
    def from_dict(content: Mapping[str, Any]) -> PreTrainedConfig:
        config_class: type[PreTrainedConfig] = CONFIG_MAPPING[content["model_type"]]
        return config_class.from_dict(dict(content))


class AnyLanguageModel:
    """Stands for the model class that a configuration asks for; there are no instances of it itself.

    Checkpoints and exports thus hold transformers' own models, which need no code of ours to be loaded.
    """

    config_class: ClassVar[type[AnyConfig]] = AnyConfig

    def __new__(cls, config: PreTrainedConfig) -> Any:
        return auto_class(config).from_config(config, dtype=torch.float32)

    @staticmethod
    def from_pretrained(folder: Any, **how: Any) -> Any:
        return auto_class(AutoConfig.from_pretrained(folder)).from_pretrained(folder, **how)


def auto_class(config: PreTrainedConfig) -> Any:
    """The Auto class by which a configuration's model is built.

    Raises:
        UserError: the model writes no text, or has a family of its own.
    """
    kind = config.model_type
    if kind == "membart":
        raise UserError(
            "a MemBART is no baseline", mend="the family membart with data.memory=reset or off is its control"
        )
    if type(config) in MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING:
        return AutoModelForSeq2SeqLM
    # What was pretrained to fill gaps reads ahead, unless it is told that it is a decoder.
    sees_ahead = type(config) in MODEL_FOR_MASKED_LM_MAPPING and not getattr(config, "is_decoder", False)
    if type(config) in MODEL_FOR_CAUSAL_LM_MAPPING and not sees_ahead:
        return AutoModelForCausalLM
    raise UserError(f"a {kind} does not write text from left to right", mend="give a BART, LED, GPT-2 or T5")


def fresh(changes: Mapping[str, Any], special: Mapping[str, int]) -> PreTrainedModel:
    """A model of `changes["model_type"]` with fresh weights.

    Args:
        changes: the configuration.
        special: vocabulary and special tokens, which `changes` may overrule.

    Raises:
        UserError: no such type or key, or values that the model refuses.
    """
    fields = dict(changes)
    kind = fields.pop("model_type", None)
    if kind not in CONFIG_MAPPING:
        near = difflib.get_close_matches(str(kind), list(CONFIG_MAPPING), n=1)
        hint = f"did you mean '{near[0]}'? " if near else ""
        raise UserError(
            f"model.config.model_type is {kind!r}, no type of transformers",
            where="family baseline",
            mend=f"{hint}e.g. bart, led, gpt2",
        )
    check_known(fields, CONFIG_MAPPING[kind]())
    try:
        config = CONFIG_MAPPING[kind](**{**special, **fields})
        model: PreTrainedModel = AnyLanguageModel(config)
    except BAD_CONFIG as error:
        raise bad_config(error) from None
    return model


def loaded(backbone: Backbone, changes: Mapping[str, Any]) -> tuple[PreTrainedModel, WeightMap]:
    """The model of a backbone with changes to its configuration, and what its files gave.

    Raises:
        UserError, CheckpointError: no such key, or a model that is damaged or of another kind.
    """
    auto = auto_class(backbone.config)
    check_known(changes, backbone.config)
    with _folder(backbone) as folder:
        try:
            model, info = auto.from_pretrained(
                folder, dtype=torch.float32, output_loading_info=True, **changes
            )
        except StrictDataclassError as error:
            raise bad_config(error) from None
        except (OSError, ValueError, RuntimeError) as error:
            reason = str(error).splitlines()[0]
            raise CheckpointError(f"cannot be loaded ({reason})", where=backbone.place) from None
    missing = set(info["missing_keys"])
    rows = [
        Origin(name, tuple(tensor.shape), FRESH if name in missing else name)
        for name, tensor in named_tensors(model).items()
    ]
    reason = f"no part of {type(model).__name__} in this shape"
    return model, WeightMap(
        backbone.place, tuple(rows), dict.fromkeys(sorted(info["unexpected_keys"]), reason)
    )


def check_room(config: PreTrainedConfig, source: int, target: int) -> None:
    """Raises UserError where a model has fewer positions than `source` and `target` tokens need."""
    whole = getattr(config, "max_position_embeddings", None)
    if config.is_encoder_decoder:
        reads = getattr(config, "max_encoder_position_embeddings", None) or whole
        writes = getattr(config, "max_decoder_position_embeddings", None) or whole
        window = attention_window(config)
        needs: Iterable[tuple[int, int | None, str]] = (
            (-(-source // window) * window, reads, "data.context_tokens"),
            (target, writes, "data.target_tokens"),
        )
    else:
        needs = ((source + target - 2, whole, "data.context_tokens or data.target_tokens"),)
    for needed, there, key in needs:
        if there is not None and needed > there:
            raise UserError(
                f"{needed} tokens do not fit the {there} positions of this {config.model_type}",
                mend=f"lower {key}",
            )


def room_to_write(config: PreTrainedConfig, source: int) -> int | None:
    """Tokens that a model can write after a source of at most `source`; None: no limit."""
    whole = getattr(config, "max_position_embeddings", None)
    if config.is_encoder_decoder:
        found: int | None = getattr(config, "max_decoder_position_embeddings", None) or whole
        return found
    return None if whole is None else whole - (source - 1)


def attention_window(config: PreTrainedConfig) -> int:
    """What encoder inputs are padded to multiples of: LED's window, 1 for models without one."""
    window = getattr(config, "attention_window", 1)
    return int(window) if isinstance(window, int) else max(window)


@contextmanager
def _folder(backbone: Backbone) -> Iterator[str]:
    if backbone.saved is None:
        yield backbone.folder
        return
    with tempfile.TemporaryDirectory() as aside:
        load_model(backbone.saved).save_pretrained(aside)
        yield aside
