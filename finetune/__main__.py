"""`python -m finetune FAMILY --from CKPT --data NAME:PATH key=value ...`, under any launcher or alone."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pretrain import launch
from pretrain import recipe as recipes
from pretrain.errors import EXIT_OK, UserError

if TYPE_CHECKING:
    from finetune.recipe import FineTuneRecipe


def finetune(
    family: Annotated[
        str, typer.Argument(help="A family, a YAML file, or the run folder of a fine-tune to resume.")
    ],
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Changes, e.g. data.memory=reset.")
    ] = None,
    start: Annotated[
        str | None,
        typer.Option("--from", help="A run or checkpoint, an exported folder, hf:NAME, or scratch."),
    ] = None,
    data: Annotated[
        list[str] | None, typer.Option(help="Dialogues as NAME:PATH; may be given more than once.")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check everything, print sizes and weights, train nothing.")
    ] = False,
    print_recipe: Annotated[bool, typer.Option("--print-recipe", help="Print the resolved recipe.")] = False,
    local_rank: Annotated[int, typer.Option("--local_rank", "--local-rank", hidden=True)] = 0,
) -> None:
    """Fine-tune one of the families: membart, fusion, persona_cvae, ki, dior_cvae; or a control: baseline.

    An interrupted fine-tune goes on when the same command is given again, or its run folder. Exit codes as
    those of `membart pretrain`.
    """
    sys.exit(run(family, overrides or [], start, data or [], dry_run=dry_run, print_recipe=print_recipe))


def run(
    name: str,
    overrides: list[str],
    start: str | None = None,
    data: list[str] | None = None,
    *,
    dry_run: bool = False,
    print_recipe: bool = False,
) -> int:
    """Resolve, check and train; returns the process's exit code."""
    try:
        recipe = resolve(name, overrides, start, data or [])
        if print_recipe:
            print(recipe.to_yaml(), end="")
            return EXIT_OK
        from finetune.job import FineTuning
        from pretrain import distributed

        world = distributed.detect()
        job = FineTuning(recipe, world.size)
        if dry_run:
            if world.is_first:
                print(job.describe())
            return EXIT_OK
        job.model  # noqa: B018 -- what the backbone cannot give is told before the ranks meet
        if world.is_first:
            print(job.opening, file=sys.stderr)
    except UserError as error:
        return launch.refuse(error)
    return launch.run_job(job, world)


def resolve(name: str, overrides: list[str], start: str | None, data: list[str]) -> FineTuneRecipe:
    """The recipe of a family, a file or a run folder, with the command line's changes.

    Raises:
        UserError: no such recipe, or a change it does not take.
    """
    from finetune.recipe import FineTuneRecipe

    name, changes = recipes.locate(name)
    content = recipes.read(name, "finetune")
    for change in [*changes, *overrides]:
        recipes.apply(content, change)
    given: dict[str, Any] = {} if start is None else {"backbone": start}
    if data:
        recipes.apply(content, f"data.sources={json.dumps(data)}")
    return recipes.parse({**content, **given}, name, FineTuneRecipe)


if __name__ == "__main__":
    typer.run(finetune)
