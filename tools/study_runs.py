"""Runs that a study trains side by side, and what it writes about them."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pretrain.errors import EXIT_OK, UserError
from pretrain.files import write_atomically
from tools.models import check_folder

if TYPE_CHECKING:
    from finetune.evaluate import Evaluation

Start = Annotated[str, typer.Option("--from", help="Backbone, as of membart finetune.")]
Data = Annotated[list[str], typer.Option(help="Dialogues as NAME:PATH; may be given more than once.")]
Out = Annotated[Path, typer.Option(help="Folder for runs and results.")]
Changes = Annotated[
    list[str] | None,
    typer.Argument(metavar="[KEY=VALUE]...", help="Changes to every variant's recipe, e.g. train.steps=500."),
]
Split = Annotated[str, typer.Option(help="train, valid or test.")]
Dialogues = Annotated[int | None, typer.Option(min=1, help="Evaluate only so many of each source.")]


@dataclass(frozen=True)
class Variant:
    """One run."""

    recipe: str
    """A family or a shipped recipe."""
    start: str
    """Its backbone."""
    switches: tuple[str, ...] = ()
    """What sets it apart, as `key=value`."""


def sweep(
    variants: Mapping[str, Variant],
    data: Sequence[str],
    changes: Sequence[str],
    out: Path,
    split: str,
    dialogues: int | None,
    metrics: Sequence[str],
) -> dict[str, Evaluation]:
    """Train each variant, unless its run is finished, and evaluate it.

    Args:
        changes: to the recipe of all; a variant's own switches come after them.

    Raises:
        UserError: no such dialogues, backbone or recipe, no place for the runs, or a run did not end well;
            what it said stands above.
    """
    from finetune import backbone
    from finetune.__main__ import resolve
    from finetune.dialogue.load import load as read
    from finetune.evaluate import evaluate
    from finetune.fitted import load
    from finetune.metrics import check_names

    check_names(metrics)
    check_folder(out)
    for source in data:
        read(source, split)  # what is only asked for after hours of training
    for variant in variants.values():
        resolve(variant.recipe, [*changes, *variant.switches], variant.start, list(data))
    for place in {variant.start for variant in variants.values()} - {backbone.SCRATCH}:
        backbone.find(place)
    found = {}
    for name, variant in variants.items():
        run = "".join(letter if letter.isalnum() or letter == "." else "-" for letter in name)
        sources = [word for source in data for word in ("--data", source)]
        words = [variant.recipe, "--from", variant.start, *sources, *changes, *variant.switches]
        typer.echo(f"{name}: {out / run}", err=True)
        command = [sys.executable, "-m", "finetune", *words, f"root={out}", f"name={run}"]
        ended = subprocess.run(command, check=False)
        if ended.returncode != EXIT_OK:
            raise UserError(
                f"training ended with exit code {ended.returncode}",
                where=str(out / run),
                mend="see above; the same command goes on",
            )
        # Settings of the generation may differ from those that a finished run was trained with.
        generation = [change for change in changes if change.startswith("generation.")]
        found[name] = evaluate(
            load(out / run, generation), split, max_dialogues=dialogues, metrics=metrics, generate=True
        )
    return found


def figures(one: Evaluation, *names: str) -> dict[str, float]:
    """Those of an evaluation's figures that it has."""
    return {name: one.figures[name] for name in names if name in one.figures}


def as_json(one: Evaluation) -> dict[str, Any]:
    """An evaluation as JSON, with ten replies to read."""
    return {
        "facts": one.facts,
        "figures": one.figures,
        "metrics": asdict(one.metrics),
        "replies": [
            {"context": sample.context[-2:], "replies": sample.replies, "references": sample.references}
            for sample in one.predictions[:10]
        ],
    }


def write(path: Path, found: Mapping[str, Any]) -> None:
    """A JSON file, complete or absent."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, json.dumps(found, indent=1) + "\n")
    typer.echo(str(path))
