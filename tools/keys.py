"""`membart keys`: what a recipe may say, from the schema itself; `docs/recipes.md` is made of it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Annotated, Any, Literal, get_args, get_origin

import typer
from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from pretrain.errors import UserError

PRETRAIN, FINETUNE, ALL = "pretrain", "finetune", "all"
TITLES = {PRETRAIN: "Pretraining", FINETUNE: "Every fine-tune"}
Key = tuple[str, str, str, str]
"""Dotted name, values, default, what it is."""


def keys(
    of: Annotated[
        str, typer.Argument(help="`pretrain`, `finetune` (what all families share), a family, or `all`.")
    ] = PRETRAIN,
    search: Annotated[str, typer.Option(help="Only keys that have this in their name or text.")] = "",
) -> None:
    """Every key of a recipe: what it is, its values and its default. Set one with KEY=VALUE."""
    if of == ALL:
        typer.echo(reference())
        return
    found = [key for key in keys_of(of) if search.lower() in " ".join(key).lower()]
    if not found:
        raise UserError(f"no key of {of} has '{search}' in it", mend="search for less")
    typer.echo(table(found))


def reference() -> str:
    """All keys under their headings, the generated part of `docs/recipes.md`."""
    from finetune.families import FAMILIES

    parts = (PRETRAIN, FINETUNE, *FAMILIES)
    return "\n\n".join(f"## {TITLES.get(of, f'Family {of}')}\n\n{table(keys_of(of))}" for of in parts)


def keys_of(of: str) -> list[Key]:
    """The keys of pretraining, of every fine-tune, or the `model` section of a family.

    Raises:
        UserError: no such family.
    """
    from finetune.families import family_class
    from finetune.recipe import FineTuneRecipe
    from pretrain.recipe import Recipe

    if of == PRETRAIN:
        return list(_keys(Recipe))
    if of == FINETUNE:
        return list(_keys(FineTuneRecipe))
    settings: type[BaseModel] = family_class(of).Settings
    return list(_keys(settings, "model."))


def table(found: list[Key]) -> str:
    """Markdown."""
    lines = ["| key | values | default | what it is |", "| --- | --- | --- | --- |"]
    lines += [
        f"| `{name}` | {values} | {default} | " + text.replace("|", "\\|") + " |"
        for name, values, default, text in found
    ]
    return "\n".join(lines)


def _keys(schema: type[BaseModel], prefix: str = "") -> Iterator[Key]:
    for name, field in schema.model_fields.items():
        inner = _section(field)
        if inner is not None:
            yield from _keys(inner, f"{prefix}{name}.")
        else:
            text = re.sub(r"\s+", " ", field.description or "")
            yield f"{prefix}{name}", _values(field.annotation), _default(field), text


def _section(field: FieldInfo) -> type[BaseModel] | None:
    kind = field.annotation
    return kind if isinstance(kind, type) and issubclass(kind, BaseModel) else None


def _default(field: FieldInfo) -> str:
    value = field.get_default(call_default_factory=True)
    if value is PydanticUndefined:
        return "required"
    if value is None:
        return "unset"
    if value == "":
        return "empty"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, (tuple, list, dict)) and not value:
        return "none"
    return f"`{list(value) if isinstance(value, tuple) else value}`"


def _values(kind: Any) -> str:
    """A type in a user's words."""
    arguments = get_args(kind)
    if get_origin(kind) is Literal:
        return ", ".join(f"`{value}`" for value in arguments)
    if type(None) in arguments:
        return ", ".join(_values(one) for one in arguments if one is not type(None))
    origin = get_origin(kind) or kind
    plain: dict[Any, str] = {
        bool: "true, false",
        int: "integer",
        float: "number",
        str: "text",
        tuple: "list",
        list: "list",
        dict: "mapping",
    }
    if origin in plain:
        return plain[origin]
    return ", ".join(_values(one) for one in arguments) if arguments else str(kind)
