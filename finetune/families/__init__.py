"""The families, each in a module of its own; none is imported before it is asked for."""

from __future__ import annotations

import difflib
from importlib import import_module
from importlib.util import find_spec
from typing import Any

from pretrain.errors import UserError

FAMILIES = (
    "membart",
    "fusion",
    "persona_cvae",
    "ki",
    "dior_cvae",
    "baseline",  # for controls: plain models of transformers on the same data and evaluation
)


def family_class(name: str) -> Any:
    """The class `Family` of a family's module; see `finetune.family.Family`.

    Raises:
        UserError: no such family, or not in this version.
    """
    if name not in FAMILIES:
        near = difflib.get_close_matches(name, FAMILIES, n=1)
        hint = f"did you mean '{near[0]}'? " if near else ""
        raise UserError(f"no family '{name}'", mend=f"{hint}one of: {', '.join(FAMILIES)}")
    if not _is_here(name):
        here = ", ".join(filter(_is_here, FAMILIES))
        raise UserError(f"this version does not have the family '{name}' yet", mend=f"it has: {here}")
    return import_module(f"finetune.families.{name}").Family


def _is_here(name: str) -> bool:
    return find_spec(f"finetune.families.{name}") is not None
