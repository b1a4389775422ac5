"""`membart export` and `membart import`: models out of runs, and foreign models in."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tools.models import quiet_transformers

if TYPE_CHECKING:
    from pretrain.export import Kind


class Form(StrEnum):
    """What an export makes."""

    FOLDER = "folder"
    MLFLOW = "mlflow"
    BART = "bart"


def export(
    source: Annotated[
        Path, typer.Argument(help="A run folder, or one of its checkpoints.", show_default=False)
    ],
    out: Annotated[Path, typer.Argument(help="The folder to make; must not exist.", show_default=False)],
    dtype: Annotated[str, typer.Option(help="fp32 or bf16.")] = "fp32",
    to: Annotated[
        Form,
        typer.Option(
            help="folder: for transformers. mlflow: that, logged and registered. bart: without the memory."
        ),
    ] = Form.FOLDER,
    name: Annotated[
        str | None, typer.Option(help="With --to mlflow: the registered model; by default the run's name.")
    ] = None,
    tracking_uri: Annotated[
        str | None,
        typer.Option(help="With --to mlflow: the store; by default MLFLOW_TRACKING_URI, else the run's own."),
    ] = None,
) -> None:
    """Turn a checkpoint of any ZeRO stage and world size into a verified model folder; needs no GPU."""
    from pretrain.errors import UserError

    if to is not Form.MLFLOW and (name or tracking_uri):
        raise UserError("--name and --tracking-uri belong to --to mlflow", mend="add --to mlflow")
    quiet_transformers()
    source, kind = _found(source)
    if to is Form.BART:
        from pretrain.export.bart import to_bart

        made = to_bart(source, out, dtype=dtype)
        typer.echo(f"{out}: a plain BART. {made.text}")
        return
    from pretrain.export import export as write

    write(source, out, dtype=dtype, kind=kind)
    typer.echo(f"{out}: reloaded, logits equal to the checkpoint's")
    if to is Form.MLFLOW:
        from pretrain.export.registry import register
        from pretrain.tracking import view_hint

        version = register(out, source, name=name, tracking_uri=tracking_uri, kind=kind)
        typer.echo(f"{version.uri}: registered, fetched back and asked; {view_hint(version.tracking_uri)}")


def _found(source: Path) -> tuple[Path, Kind]:
    """What to export, and its kind."""
    from pretrain import checkpoint, recipe
    from pretrain.export import Kind
    from pretrain.preflight import RECIPE_FILE

    saved = checkpoint.resolve(source)
    family = recipe.read(str(saved.path / RECIPE_FILE)).get("family")
    if family is None:
        return source, Kind()
    from finetune.exporting import kind_of

    return source, kind_of(family)


def import_(
    source: Annotated[
        str, typer.Argument(metavar="SRC", help="A model folder, or a name on the hub.", show_default=False)
    ],
    out: Annotated[Path, typer.Argument(help="The folder to make; must not exist.", show_default=False)],
    fields: Annotated[
        list[str] | None,
        typer.Argument(metavar="[FIELD=VALUE]...", help="Fields of MemBartConfig, e.g. memory_len=64."),
    ] = None,
    tokenizer: Annotated[
        Path | None, typer.Option(help="Folder of the tokenizer; by default the source's own.")
    ] = None,
    dtype: Annotated[str, typer.Option(help="fp32 or bf16.")] = "fp32",
    seed: Annotated[int, typer.Option(help="Of the tensors that plain BART does not have.")] = 0,
) -> None:
    """Turn the MemBART authors' published layout, or a plain BART, into a model folder of ours."""
    from pretrain.importing import import_model
    from pretrain.model.origins import WEIGHTS_FILE
    from pretrain.recipe import apply

    changes: dict[str, object] = {}
    for field in fields or []:
        apply(changes, field)
    quiet_transformers()
    made = import_model(source, out, fields=changes, tokenizer=tokenizer, dtype=dtype, seed=seed)
    typer.echo(f"{out}: reloaded, every tensor equal. Where each came from ({WEIGHTS_FILE}):")
    typer.echo(made.weights.text)
    if made.no_tokenizer:
        typer.echo(f"no tokenizer: {made.no_tokenizer}; give one with --tokenizer to train from this folder")
