"""Want of memory as one line that says which settings take less."""

from __future__ import annotations

import re
from typing import Any

import torch

from pretrain import engine
from pretrain.distributed import World
from pretrain.errors import OutOfMemoryError
from pretrain.planning import Zero
from pretrain.pulse import Standing
from pretrain.recipe import RunRecipe

_ON_CPU = ("can't allocate memory", "not enough memory", "Cannot allocate memory")
_ASKED = re.compile(r"[Tt]ried to allocate ([\d.]+ ?[A-Za-z]+)")


def explain(error: Exception, recipe: RunRecipe, world: World, standing: Standing) -> OutOfMemoryError | None:
    """The error to tell in place of an allocator's; None when `error` is something else."""
    text = str(error)
    if not (
        isinstance(error, torch.OutOfMemoryError | MemoryError)
        or (isinstance(error, RuntimeError) and any(words in text for words in _ON_CPU))
    ):
        return None
    asked = _ASKED.search(text)
    where = f"{standing}, {recipe.agents // world.size} agents a rank"
    return OutOfMemoryError(
        f"out of memory on {world.device}" + (f" at an allocation of {asked[1]}" if asked else ""),
        where=where,
        mend=", or ".join(cures(recipe, world, activations=standing.phase != "start")),
    )


def cures(recipe: RunRecipe, world: World, *, activations: bool = True) -> list[str]:
    """Settings that take less memory than now, the cheapest in time first.

    Args:
        activations: whether it was a step that found no room, and not the model and its optimizer alone.
    """
    found = []
    agents, chunks = recipe.agents // world.size, recipe.replay.agent_chunks
    if activations and chunks < agents:
        more = next(n for n in range(chunks + 1, agents + 1) if agents % n == 0)
        found.append(f"set replay.agent_chunks={more} (now {chunks})")
    section: Any = getattr(recipe, "data", None)
    if activations and getattr(section, "agents_per_lane", 1) > 1:
        found.append(f"lower data.agents_per_lane (now {section.agents_per_lane})")
    zero = Zero.of(engine.load_config(recipe.train.deepspeed), world.size)
    if zero.stage == 0 and world.size > 1:  # stages 1 to 3 differ little here, see ds_configs/README.md
        found.append(f"set train.deepspeed=zero2 (now {recipe.train.deepspeed})")
    elif not zero.offload_optimizer and world.device.type == "cuda":
        found.append(f"set train.deepspeed=zero{3 if zero.stage == 3 else 2}_offload")
    if activations and getattr(getattr(recipe, "model", None), "gradient_checkpointing", None) is False:
        found.append("set model.gradient_checkpointing=true")
    if recipe.train.precision == "fp32" and world.device.type == "cuda":
        found.append("set train.precision=bf16")
    return found or ["run on more ranks"]
