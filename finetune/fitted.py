"""A fine-tuned model ready to answer, from its run, one of its checkpoints or its exported folder."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from finetune import backbone
from finetune.family import Family
from finetune.job import empty_model, make_family
from finetune.recipe import FineTuneRecipe
from pretrain import checkpoint, recipe
from pretrain.corpus.tokenizer import TOKENIZER_FOLDER
from pretrain.errors import UserError
from pretrain.export import restore_weights
from pretrain.recipe import RECIPE_FILE


@dataclass(frozen=True)
class Fitted:
    """A family with its trained model, float32 in eval mode."""

    recipe: FineTuneRecipe
    family: Family
    model: Any
    tokenizer: PreTrainedTokenizerBase
    place: Path
    tracking_run: str | None
    """MLflow run that trained it."""

    def memory(self, agents: int) -> Tensor:
        """The memory before the first turn, `[agents, slots, d_model]` float32."""
        return torch.zeros(agents, *self.family.memory_shape(self.model), device=self.model.device)


def load(source: Path, overrides: list[str] | tuple[str, ...] = ()) -> Fitted:
    """The model at `source`; of a run that kept its best checkpoint, the best, else the newest.

    Args:
        overrides: `key.sub=value` changes to the recipe, such as `generation.beams=1`.

    Raises:
        UserError, CheckpointError: nothing fine-tuned there, or it is damaged.
    """
    if (source / "config.json").is_file() and not (source / "state.json").is_file():
        wanted = _recipe(source / RECIPE_FILE, overrides, source)
        tokenizer = AutoTokenizer.from_pretrained(source)
        family = make_family(wanted, tokenizer)
        model: Any = family.model_class.from_pretrained(source, dtype=torch.float32)
        return Fitted(wanted, family, model.eval(), tokenizer, source, None)
    saved = checkpoint.resolve_whole(source)
    wanted = _recipe(saved.path / RECIPE_FILE, overrides, source)
    folder = saved.path.parent.parent / TOKENIZER_FOLDER
    tokenizer = backbone.find(backbone.SCRATCH, str(folder)).tokenizer
    family = make_family(wanted, tokenizer)
    model = empty_model(family, saved)
    restore_weights(model, saved)
    return Fitted(wanted, family, model.eval(), tokenizer, saved.path, saved.state.get("tracking_run"))


def _recipe(file: Path, overrides: list[str] | tuple[str, ...], source: Path) -> FineTuneRecipe:
    if not file.is_file() or "family" not in recipe.read(str(file)):
        raise UserError(
            "not a fine-tuned model", where=str(source), mend="membart finetune FAMILY --from ..."
        )
    return recipe.load(str(file), overrides, FineTuneRecipe)
