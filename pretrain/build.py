"""The model that a recipe describes, built from nothing or from a checkpoint."""

from __future__ import annotations

import difflib
from pathlib import Path

import torch
from torch import nn

from pretrain import replay
from pretrain.errors import UserError
from pretrain.model.configuration import MemBartConfig, make_config
from pretrain.model.convert import check_place
from pretrain.model.modeling import MemBartForConditionalGeneration
from pretrain.recipe import ModelSection, Recipe

SCRATCH = "scratch"


def model_config(section: ModelSection, vocab_size: int | None) -> MemBartConfig:
    """The configuration that `section` asks for; reads the checkpoint's own when it is a local folder.

    Args:
        vocab_size: entries of the shard set's tokenizer, used where the recipe names no size.

    Raises:
        UserError: no model in that folder; a field that `MemBartConfig` does not have, or cannot honour.
    """
    fields = section.fields
    base: dict[str, object] = {}
    if section.init != SCRATCH:
        check_place(section.init)
    if Path(section.init).is_dir():
        base = MemBartConfig.get_config_dict(section.init)[0]
    elif section.init == SCRATCH and vocab_size is not None:
        base = {"vocab_size": vocab_size}
    known = MemBartConfig().to_dict()
    unknown = sorted(set(fields) - set(known))
    if unknown:
        near = difflib.get_close_matches(unknown[0], known, n=1)
        raise UserError(
            f"model.config has no field {', '.join(unknown)}",
            where="recipe",
            mend=f"did you mean '{near[0]}'?" if near else "fields are those of MemBartConfig",
        )
    base = {
        key: value
        for key, value in base.items()
        if key not in ("model_type", "architectures", "transformers_version")
    }
    try:
        return make_config({**base, **fields})
    except UserError as error:
        raise UserError(f"model.config: {error.what}", where="recipe", mend=error.mend) from None


def skeleton(config: MemBartConfig, section: ModelSection) -> MemBartForConditionalGeneration:
    """The model on the meta device: shapes and counts without memory.

    Raises:
        UserError: sizes that do not go together.
    """
    try:
        with torch.device("meta"):
            model = MemBartForConditionalGeneration(config)
    except ValueError as error:
        raise UserError(f"model.config: {error}", where="recipe", mend="correct the field") from None
    freeze(model, section.frozen)
    return model


def build_model(recipe: Recipe, vocab_size: int) -> MemBartForConditionalGeneration:
    """The model to train, on the CPU, in float32; equal on every rank for an equal seed.

    Raises:
        UserError: the checkpoint is missing or does not fit.
    """
    section = recipe.model
    replay.seed(recipe.train.seed, "model")
    if section.init == SCRATCH:
        model = MemBartForConditionalGeneration.from_scratch(model_config(section, vocab_size))
    else:
        model = MemBartForConditionalGeneration.from_pretrained(
            section.init, dtype=torch.float32, **section.fields
        )
    freeze(model, section.frozen)
    if section.gradient_checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    if recipe.train.compile:
        # Layer by layer: ZeRO-3 gathers parameters around modules, which a graph of the whole could not see.
        for layer in (*model.model.encoder.layers, *model.model.decoder.layers):
            layer.compile()
    return model


def freeze(model: nn.Module, endings: tuple[str, ...]) -> None:
    """Stop training the modules whose dotted path ends in one of `endings`.

    Raises:
        UserError: an ending that no module has.
    """
    for ending in endings:
        found = [
            module for path, module in model.named_modules() if path == ending or path.endswith(f".{ending}")
        ]
        if not found:
            raise UserError(
                f"model.frozen: no module '{ending}'",
                where="recipe",
                mend="for example shared, embed_positions",
            )
        for module in found:
            module.requires_grad_(False)
