"""What commands that open models have in common: their arguments, the device, and quiet."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pretrain.errors import UserError

if TYPE_CHECKING:
    import torch

Model = Annotated[Path, typer.Argument(help="A fine-tune's run, one of its checkpoints, or its export.")]
Overrides = Annotated[
    list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Changes, e.g. generation.beams=1.")
]
Device = Annotated[str, typer.Option(help="cpu, cuda or cuda:N; the best there is unless given.")]


def find_device(name: str) -> torch.device:
    """The device of that name; of none a GPU where there is one, else the CPU.

    Raises:
        UserError: there is no such device, or not on this machine.
    """
    import torch

    try:
        found = torch.device(name or ("cuda" if torch.cuda.is_available() else "cpu"))
    except RuntimeError:
        found = torch.device("meta")
    if found.type not in ("cpu", "cuda"):
        raise UserError(f"no device '{name}'", where="--device", mend="cpu, cuda or cuda:N")
    there = torch.cuda.device_count()
    if found.type == "cuda" and not there:
        raise UserError("no CUDA device on this machine", mend="--device cpu")
    if found.type == "cuda" and (found.index or 0) >= there:
        raise UserError(f"no device '{name}'", where="--device", mend=f"cuda:0 to cuda:{there - 1}")
    return found


def check_file(path: Path) -> None:
    """That a file can be made there, before there is anything to write.

    Raises:
        UserError: it exists, or its place is no folder that can be written.
    """
    if path.exists():
        raise UserError(
            "the output exists already", where=str(path), mend="choose another file or move it away"
        )
    check_folder(path.parent)


def check_folder(path: Path) -> None:
    """That files can be made in this folder, or that it can be made itself.

    Raises:
        UserError: it, or the folder that it would lie in, is a file or cannot be written.
    """
    there = next(place for place in (path, *path.absolute().parents) if place.exists())
    if not there.is_dir():
        raise UserError("a file, not a folder", where=str(there), mend="choose another place for the output")
    if not os.access(there, os.W_OK):
        raise UserError("cannot be written", where=str(there), mend="choose another place for the output")


def quiet_transformers() -> None:
    """Its bars and its lists of fresh tensors say less than what commands print themselves."""
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
