"""The choices a recipe may make about the model, as types: light enough to import anywhere."""

from __future__ import annotations

from typing import Literal, get_args

Variant = Literal["membart", "shared", "memformer", "memformer_rezero"]
MemoryAttention = Literal["mask", "split"]
LossForm = Literal["chunked", "plain"]

VARIANTS: tuple[str, ...] = get_args(Variant)
