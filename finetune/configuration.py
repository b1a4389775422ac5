"""What settings of families and configurations of their models have in common: how they are checked."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Any, TypeVar, get_args

from huggingface_hub.errors import StrictDataclassError
from pydantic import ValidationError
from transformers import GPT2Config, PreTrainedConfig

from pretrain.errors import UserError
from pretrain.model import MemBartConfig
from pretrain.recipe import Section

Settings = TypeVar("Settings", bound=Section)
BAD_CONFIG = (TypeError, ValueError, AssertionError, StrictDataclassError)
"""What transformers raises for fields that cannot be, when a configuration or a model is made of them."""

_OF_THE_CLASS = ("model_type", "architectures", "transformers_version", "_name_or_path", "dtype")
"""Entries that name the class and the place a configuration is of."""


def settings_of(schema: type[Settings], content: Mapping[str, Any], key: str, where: str) -> Settings:
    """`content` as a section of a family.

    Args:
        key: of the section in the recipe.

    Raises:
        UserError: the first key of `where` that is unknown, with the nearest, or whose value does not fit.
    """
    try:
        return schema.model_validate(dict(content))
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join([key, *map(str, first["loc"])])
        if first["type"] == "extra_forbidden":
            known: Any = schema
            for part in first["loc"][:-1]:
                known = known.model_fields[part].annotation
            near = difflib.get_close_matches(str(first["loc"][-1]), list(known.model_fields), n=1)
            mend = f"did you mean '{near[0]}'?" if near else f"known: {', '.join(known.model_fields)}"
            raise UserError(f"unknown recipe key '{name}'", where=where, mend=mend) from None
        problem = first["msg"].removeprefix("Value error, ")
        raise UserError(
            f"recipe key '{name}': {problem}", where=where, mend=f"set it with {name}=VALUE or in the file"
        ) from None


def bad_config(error: Exception) -> UserError:
    """One of `BAD_CONFIG` as a user should read it."""
    lines = str(error).splitlines() or [type(error).__name__]
    if isinstance(error, StrictDataclassError):  # which says in the second line what is wrong
        lines = [lines[-1].strip().partition(": ")[2].partition(" Errors: ")[0]]
    return UserError(f"model.config: {lines[0]}", mend="correct the field")


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
