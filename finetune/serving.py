"""Dialogues with an exported fine-tune, each with its own history and memory: what its MLflow model runs.

The same four names as `pretrain.serving`; the model folder, with the recipe in it, is all that is read.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from finetune import fitted
from finetune.chat import Chat
from finetune.fitted import Fitted
from finetune.recipe import FineTuneRecipe, GenerationSection
from pretrain import recipe
from pretrain.recipe import RECIPE_FILE
from pretrain.serving import COLUMNS as READING_COLUMNS
from pretrain.serving import REQUIREMENTS as READING_REQUIREMENTS
from pretrain.serving import Conversations

REQUIREMENTS = (*READING_REQUIREMENTS, "pydantic", "pyyaml", "zstandard")
COLUMNS = {**READING_COLUMNS, "persona": "string"}
"""`persona`: sentences about the model, a line each; heard where a conversation begins."""
OPTIONS = ("beams", "sample", "temperature", "top_k", "top_p", "max_new_tokens", "seed")


@dataclass(frozen=True)
class Talk:
    """What a dialogue carries: its chat, and who the model is in it."""

    chat: Chat
    persona: tuple[str, ...]


class Speaker:
    """Answers as `membart generate` does."""

    def __init__(self, model: Fitted) -> None:
        self.fitted = model

    def say(self, before: Talk | None, row: Mapping[str, Any], options: dict[str, Any]) -> tuple[Talk, str]:
        """See `pretrain.serving.Say`.

        Raises:
            ValueError: an option that the recipe's `generation` section would refuse.
        """
        how = self.fitted.recipe.generation
        how = GenerationSection.model_validate({**how.model_dump(), **options})
        asked = self.fitted.recipe.model_copy(update={"generation": how})
        told = row.get("persona")  # a missing cell is NaN
        persona = tuple(told.splitlines()) if isinstance(told, str) else ()
        if before is not None:
            persona = before.persona
        chat = Chat(dataclasses.replace(self.fitted, recipe=asked), persona, how.seed)
        if before is not None:
            chat.turns, chat.memory = list(before.chat.turns), before.chat.memory
        replies = chat.say(str(row["text"]))
        return Talk(chat, persona), replies[0] if replies else ""


def options(folder: Path) -> dict[str, int | float | bool]:
    """Options of a question and their defaults: those of the recipe's `generation` section."""
    how = recipe.load(str(folder / RECIPE_FILE), [], FineTuneRecipe).generation
    return {name: getattr(how, name) for name in OPTIONS}


def _load_pyfunc(path: str) -> Conversations[Talk]:
    """MLflow calls this with the model folder; a GPU is used where there is one."""
    model = fitted.load(Path(path))
    model.model.to("cuda" if torch.cuda.is_available() else "cpu")
    return Conversations(Speaker(model).say)
