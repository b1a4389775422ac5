"""Fine-tuned models of any family that nobody trained: seeded weights, ready to answer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import yaml
from transformers import AutoTokenizer

from finetune.backbone import SCRATCH, Backbone
from finetune.fitted import Fitted
from finetune.job import make_family
from finetune.recipe import FineTuneRecipe
from tests.support import dialogues as made
from tests.support.families import TINY


def fitted(family: str = "membart", **changes: Any) -> Fitted:
    """A small model of a family; `changes` as in `tests.support.dialogues.recipe`."""
    content = made.recipe(family, "jsonl:none", Path("runs"), **{**TINY[family], **changes})
    recipe = FineTuneRecipe.model_validate(content)
    tokenizer = AutoTokenizer.from_pretrained(made.tokenizer_folder())
    which = make_family(recipe, tokenizer)
    torch.manual_seed(0)
    model, _ = which.build(Backbone(SCRATCH, None, tokenizer))
    return Fitted(recipe, which, model.eval(), tokenizer, Path("runs/run/step-6"), None)


def export(found: Fitted, folder: Path) -> Path:
    """The model as an exported folder."""
    folder.mkdir(parents=True, exist_ok=True)
    found.tokenizer.save_pretrained(folder)
    found.model.save_pretrained(folder)
    (folder / "recipe.yaml").write_text(
        yaml.safe_dump(found.recipe.model_dump(mode="json")), encoding="utf-8"
    )
    return folder
