"""A verified checkpoint as a Hugging Face folder."""

from __future__ import annotations

import gc
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer, GenerationConfig, PreTrainedConfig

from pretrain import checkpoint, modelcard
from pretrain.checkpoint import Checkpoint
from pretrain.corpus.tokenizer import TOKENIZER_FOLDER
from pretrain.errors import CheckpointError, UserError
from pretrain.export import weights
from pretrain.export.kind import DEFAULT, Kind
from pretrain.recipe import RECIPE_FILE

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def export(
    source: Path,
    out: Path,
    *,
    dtype: str = "fp32",
    shard_bytes: int = weights.SHARD_BYTES,
    kind: Kind = DEFAULT,
) -> Path:
    """Write a checkpoint as configuration, weights, generation settings, tokenizer, recipe and model card.

    The folder appears only when the model loaded from it gives the checkpoint's logits. At no time are there
    two copies of the model in memory.

    Args:
        source: a run folder (its newest checkpoint is taken) or a checkpoint folder.
        out: must not exist yet.
        dtype: `fp32` or `bf16`.
        shard_bytes: size past which the weights are split over files.
        kind: what is special about the model, if anything.

    Raises:
        UserError, CheckpointError: `out` exists, an unknown dtype, no room, or a damaged checkpoint.
    """
    as_dtype = known_dtype(dtype)
    with complete_or_absent(out) as aside:
        saved = checkpoint.resolve_whole(source)
        config = kind.config(saved)
        config.dtype = as_dtype
        with torch.device("meta"):
            skeleton = kind.build(config)
        shapes = {name: place.shape for name, place in weights.named_tensors(skeleton).items()}
        check_room(aside, sum(shape.numel() for shape in shapes.values()) * as_dtype.itemsize)
        save_settings(saved, config, getattr(skeleton, "generation_config", None), aside)
        weights.write(saved, shapes, aside, dtype=as_dtype, shard_bytes=shard_bytes)
        shutil.copyfile(saved.path / RECIPE_FILE, aside / RECIPE_FILE)
        kind.extras(saved, aside)
        (aside / "README.md").write_text(modelcard.render(saved, config), encoding="utf-8")
        _verify(saved, kind, type(skeleton), aside, as_dtype)
    return out


def known_dtype(name: str) -> torch.dtype:
    """Raises UserError for a name other than `fp32` and `bf16`."""
    if name not in DTYPES:
        raise UserError(f"unknown dtype '{name}'", mend=f"one of {', '.join(DTYPES)}")
    return DTYPES[name]


@contextmanager
def complete_or_absent(out: Path) -> Iterator[Path]:
    """A folder beside `out` that takes its name when the block ends, and is gone when it raises.

    Raises:
        UserError: `out` exists, or its place cannot be written.
    """
    if out.exists():
        raise UserError(
            "the output exists already", where=str(out), mend="choose another folder or move it away"
        )
    aside = out.with_name(out.name + ".writing")
    try:
        shutil.rmtree(aside, ignore_errors=True)
        aside.mkdir(parents=True)
    except OSError as error:
        raise UserError(
            f"cannot be written: {error.strerror}", where=str(out), mend="choose another place"
        ) from None
    try:
        yield aside
        os.replace(aside, out)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def check_room(folder: Path, needed: int) -> None:
    """Raises UserError when the disk has less than `needed` bytes."""
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise UserError(
            f"the weights need {needed / 1e9:.2f} GB, the disk has {free / 1e9:.2f} GB",
            where=str(folder.parent),
            mend="make room or choose another place",
        )


def save_settings(
    saved: Checkpoint, config: PreTrainedConfig, generation: GenerationConfig | None, folder: Path
) -> None:
    """Write configuration, generation settings (the checkpoint's own where it has them) and tokenizer.

    Raises:
        UserError: the run's tokenizer is missing or cannot be loaded.
    """
    config.save_pretrained(folder)
    if (saved.path / weights.GENERATION_FILE).is_file():
        shutil.copyfile(saved.path / weights.GENERATION_FILE, folder / weights.GENERATION_FILE)
    elif generation is not None:
        generation.save_pretrained(folder)
    copy_tokenizer(saved.path.parent.parent / TOKENIZER_FOLDER, folder)


def copy_tokenizer(source: Path, folder: Path) -> None:
    """Copy the files of a tokenizer folder; `folder` must load with `AutoTokenizer` afterwards.

    Raises:
        UserError: it does not.
    """
    mend = "a run folder keeps its tokenizer in tokenizer/"
    if not source.is_dir():
        raise UserError("no such tokenizer folder", where=str(source), mend=mend)
    shutil.copytree(source, folder, dirs_exist_ok=True)
    try:
        AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # the Rust tokenizers raise bare Exceptions
        reason = str(error).partition("\n")[0]
        raise UserError(f"the tokenizer cannot be loaded ({reason})", where=str(source), mend=mend) from None


def _verify(saved: Checkpoint, kind: Kind, model_class: Any, folder: Path, dtype: torch.dtype) -> None:
    """The checkpoint's model and the one loaded from the folder must give the same bits."""
    model = weights.load_model(saved, kind).to(dtype)
    expected = kind.probe(model)
    del model
    gc.collect()  # modules refer to each other in circles: the next model must find the room
    model = model_class.from_pretrained(folder, dtype=dtype, local_files_only=True).eval()
    found = kind.probe(model)
    if not torch.equal(expected, found):
        raise CheckpointError(
            f"the exported model differs from the checkpoint by {float((expected - found).abs().max()):.3g}",
            where=str(folder),
            mend="report this; nothing was exported",
        )
