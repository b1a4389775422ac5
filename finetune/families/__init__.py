"""The families, each in a module of its own; none is imported before it is asked for.

A name with a dot is a user's own family: the module of that name, wherever Python finds it.
"""

from __future__ import annotations

import difflib
from importlib import import_module
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
        UserError: no such family, or a module without one.
    """
    if "." in name:
        return _own(name)
    if name not in FAMILIES:
        near = difflib.get_close_matches(name, FAMILIES, n=1)
        hint = f"did you mean '{near[0]}'? " if near else ""
        raise UserError(
            f"no family '{name}'",
            mend=f"{hint}one of: {', '.join(FAMILIES)}; or your own as package.module",
        )
    return import_module(f"finetune.families.{name}").Family


def _own(name: str) -> Any:
    try:
        return import_module(name).Family
    except ModuleNotFoundError as error:
        raise UserError(
            f"no module '{error.name}'", where=f"family {name}", mend="put its folder on PYTHONPATH"
        ) from None
    except AttributeError:
        raise UserError(
            "the module has no class Family", where=f"family {name}", mend="see docs/adding_a_family.md"
        ) from None
