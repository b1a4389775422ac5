"""A fine-tuned model ready to answer, from its run, one of its checkpoints or its exported folder."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from finetune import backbone
from finetune.family import Family
from finetune.job import empty_model, make_family
from finetune.recipe import FineTuneRecipe
from pretrain import checkpoint, recipe
from pretrain.corpus.tokenizer import TOKENIZER_FOLDER
from pretrain.errors import CheckpointError, UserError
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
    if not source.is_dir():
        what = "a file, not a folder" if source.exists() else "no such folder"
        raise UserError(
            what, where=str(source), mend="a fine-tune's run, one of its checkpoints, or its export"
        )
    if (source / "config.json").is_file() and not (source / "state.json").is_file():
        wanted = _recipe(source / RECIPE_FILE, overrides, source)
        tokenizer = backbone.tokenizer_of(str(source))
        family = make_family(wanted, tokenizer)
        return Fitted(wanted, family, _exported(family, source), tokenizer, source, None)
    saved = checkpoint.resolve_whole(source)
    wanted = _recipe(saved.path / RECIPE_FILE, overrides, source)
    folder = saved.path.parent.parent / TOKENIZER_FOLDER
    tokenizer = backbone.tokenizer_of(str(folder))
    family = make_family(wanted, tokenizer)
    model = empty_model(family, saved)
    restore_weights(model, saved)
    return Fitted(wanted, family, model.eval(), tokenizer, saved.path, saved.state.get("tracking_run"))


def _exported(family: Family, folder: Path) -> Any:
    """The model of an exported folder.

    Raises:
        CheckpointError: a file is missing or damaged.
    """
    try:
        model: Any = family.model_class.from_pretrained(folder, dtype=torch.float32)
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        reason = str(error).splitlines()[0]
        raise CheckpointError(
            f"cannot be loaded ({reason})", where=str(folder), mend="export the run again"
        ) from None
    return model.eval()


def _recipe(file: Path, overrides: list[str] | tuple[str, ...], source: Path) -> FineTuneRecipe:
    if not file.is_file() or "family" not in recipe.read(str(file)):
        raise UserError(
            "not a fine-tuned model", where=str(source), mend="membart finetune FAMILY --from ..."
        )
    return recipe.load(str(file), overrides, FineTuneRecipe)
