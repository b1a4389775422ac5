"""`python -m pretrain RECIPE key=value ...`: the same program under torchrun, deepspeed, srun or alone."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from pretrain import launch
from pretrain import recipe as recipes
from pretrain.errors import EXIT_OK, UserError


def pretrain(
    recipe: Annotated[str, typer.Argument(help="A shipped recipe, a YAML file, or a run folder to resume.")],
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Changes, e.g. train.steps=500.")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check everything, print sizes and memory, train nothing.")
    ] = False,
    print_recipe: Annotated[bool, typer.Option("--print-recipe", help="Print the resolved recipe.")] = False,
    ranks: Annotated[int | None, typer.Option(help="World size that a dry run plans for.", min=1)] = None,
    local_rank: Annotated[int, typer.Option("--local_rank", "--local-rank", hidden=True)] = 0,
) -> None:
    """Pretrain MemBART by sequence denoising with memory replay.

    An interrupted run goes on when the same command is given again, or its run folder. Exit codes: 0 done,
    1 failure, 2 a mistake in the input, 3 diverged, 4 a rank died or hung: run it again, 5 a newer start owns
    the run, 75 saved after SIGTERM, SIGUSR1 or control/stop: run it again.
    """
    sys.exit(run(recipe, overrides or [], dry_run=dry_run, print_recipe=print_recipe, ranks=ranks))


def run(
    name: str,
    overrides: list[str],
    *,
    dry_run: bool = False,
    print_recipe: bool = False,
    ranks: int | None = None,
) -> int:
    """Resolve, check and train; returns the process's exit code."""
    try:
        found, place = recipes.locate(name)
        resolved = recipes.load(found, [*place, *overrides])
        if print_recipe:
            print(resolved.to_yaml(), end="")
            return EXIT_OK
        from pretrain import distributed, preflight
        from pretrain.pretraining import Pretraining

        world = distributed.detect()
        if ranks and not dry_run:
            raise UserError("--ranks plans a dry run", mend="add --dry-run, or start that many ranks")
        plan = preflight.check(resolved, ranks or world.size, dry=dry_run)
        if dry_run:
            if world.is_first:
                print(preflight.describe(plan))
            return EXIT_OK
    except UserError as error:
        return launch.refuse(error)
    return launch.run_job(Pretraining(plan), world)


if __name__ == "__main__":
    typer.run(pretrain)
