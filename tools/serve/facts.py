"""What the page says of the model before anyone has spoken."""

from __future__ import annotations

from typing import Any

from finetune.chat import Chat
from finetune.fitted import Fitted
from finetune.serving import OPTIONS

MOST_TOKENS = 512
"""Longest reply that can be asked for, where the model's positions allow it."""


def facts(fitted: Fitted) -> dict[str, Any]:
    """Which checkpoint, of what family and size, what it remembers, and what cannot be shown; as JSON."""
    recipe, config = fitted.recipe, fitted.model.config
    slots, width = fitted.family.memory_shape(fitted.model)
    return {
        "place": str(fitted.place),
        "name": recipe.name,
        "family": recipe.family,
        "kind": config.model_type,
        "parameters": sum(parameter.numel() for parameter in fitted.model.parameters()),
        "slots": slots,
        "width": width,
        "memory": recipe.data.memory,
        "carries": Chat(fitted).carries,
        "window": recipe.data.context_tokens,
        "device": str(fitted.model.device),
        "persona": hears_persona(fitted),
        "generation": {name: getattr(recipe.generation, name) for name in OPTIONS},
        "most_tokens": most_tokens(fitted),
        "remarks": remarks(fitted, slots),
    }


def remarks(fitted: Fitted, slots: int) -> list[str]:
    """What this model does not have, so that there is nothing to show."""
    memory = fitted.recipe.data.memory
    if not slots:
        return [
            f"This {fitted.recipe.family} has no memory slots: what has left its window is forgotten. "
            "There is no gate, no attention to slots and no reply with memory reset to show."
        ]
    found = []
    if memory != "carry":
        found.append(
            f"Memory is reset for each reply (data.memory={memory}): what has left the context window is "
            "forgotten, and the reply with memory reset would be the same."
        )
    if getattr(fitted.model.config, "variant", "membart").startswith("memformer"):
        found.append(
            "A Memformer's writer has no gate (every slot is new at each turn, shown as 1), and its decoder "
            "is not given the slots."
        )
    return found


def hears_persona(fitted: Fitted) -> bool:
    """Whether a persona of the model's own changes what the model reads."""
    chat = Chat(fitted, ("x",))
    chat.hear("x")
    return chat.window().persona != ("none",)


def most_tokens(fitted: Fitted) -> int:
    """The longest reply that the page asks for; past its positions BART's decoder fails."""
    positions = getattr(fitted.model.config, "max_position_embeddings", None)
    return MOST_TOKENS if positions is None else min(MOST_TOKENS, positions - 2)
