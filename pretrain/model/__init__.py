"""MemBART on today's transformers: configuration, model, variants, conversion from BART.

The names below are imported on first use, because torch and transformers take seconds to load.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pretrain.model.configuration import MemBartConfig
    from pretrain.model.encoder import MemBartEncoderOutput
    from pretrain.model.modeling import MemBartForConditionalGeneration, MemBartModel, freeze_as_authors
    from pretrain.model.options import VARIANTS

_HOMES = {
    "VARIANTS": "options",
    "MemBartConfig": "configuration",
    "MemBartEncoderOutput": "encoder",
    "MemBartForConditionalGeneration": "modeling",
    "MemBartModel": "modeling",
    "freeze_as_authors": "modeling",
}

__all__ = [
    "VARIANTS",
    "MemBartConfig",
    "MemBartEncoderOutput",
    "MemBartForConditionalGeneration",
    "MemBartModel",
    "freeze_as_authors",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
