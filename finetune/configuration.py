"""What the configurations of families' models have in common."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Any, get_args

from transformers import GPT2Config, PreTrainedConfig

from pretrain.errors import UserError
from pretrain.model import MemBartConfig

_OF_THE_CLASS = ("model_type", "architectures", "transformers_version", "_name_or_path", "dtype")
"""Entries that name the class and the place a configuration is of."""


def check_choices(config: Any, choices: Mapping[str, Any], where: str) -> None:
    """Refuse a field that is none of its words.

    Args:
        choices: the `Literal` of each field.

    Raises:
        UserError: names the first such field of `where`.
    """
    for field, kind in choices.items():
        if getattr(config, field) not in get_args(kind):
            words = ", ".join(get_args(kind))
            raise UserError(f"{field} is {getattr(config, field)!r}", where=where, mend=f"one of: {words}")


def check_known(changes: Mapping[str, Any], config: PreTrainedConfig) -> None:
    """Refuse a key that a configuration does not have: transformers would keep it and never look at it.

    Raises:
        UserError: names the first such key of `model.config`, and the nearest that there is.
    """
    for key in changes:
        if not hasattr(config, key):
            near = difflib.get_close_matches(key, list(config.to_dict()), n=1)
            hint = f"did you mean '{near[0]}'?" if near else "see its configuration in transformers"
            raise UserError(f"a {config.model_type} has no 'model.config.{key}'", mend=hint)


def own_fields(content: Mapping[str, Any]) -> dict[str, Any]:
    """What `to_dict` of a configuration gave, as fields of one of another class."""
    return {name: value for name, value in content.items() if name not in _OF_THE_CLASS}


def body_config(content: Mapping[str, Any]) -> GPT2Config | MemBartConfig:
    """The configuration of a GPT-2 or MemBART from what `to_dict` gave."""
    made: type[GPT2Config | MemBartConfig] = GPT2Config if content["model_type"] == "gpt2" else MemBartConfig
    return made(**own_fields(content))
