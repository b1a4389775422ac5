"""From a job to an exit code: process group, training, one line at the end, everything closed behind it.

`python -m pretrain` and `python -m finetune` differ only in how they make the job.
"""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

from pretrain.errors import EXIT_OK, PreemptedError, UserError

if TYPE_CHECKING:
    from pretrain.distributed import World
    from pretrain.job import Job
    from pretrain.pulse import Pulse

_NEXT = {
    "preempted": "run the same command to go on",
    "stopped": "it stays stopped until somebody runs the same command",
}


def refuse(error: UserError) -> int:
    """Tell a mistake that was found before the process group was joined; returns its exit code.

    Every rank of a node finds the same mistake: one of them says it.
    """
    if os.environ.get("LOCAL_RANK", os.environ.get("SLURM_LOCALID", "0")) == "0":
        print(f"error: {error}", file=sys.stderr)
    return error.exit_code


def run_job(job: Job, world: World) -> int:
    """Train a checked job to its end, every rank of `world` calling; returns the process's exit code.

    Whatever makes the job (`Pretraining(plan)`, `FineTuning(recipe, world.size)`) runs before, and its
    UserErrors go to `refuse`. Nothing is raised that a user could mend. Where a rank of several fails, all
    end with its code, without returning; see `pretrain.guard`.
    """
    from pretrain.guard import guarded

    return guarded(job.recipe, world, lambda pulse: _train(job, world, pulse))


def _train(job: Job, world: World, pulse: Pulse) -> int:
    from pretrain import status
    from pretrain.account import account
    from pretrain.train import train

    recipe = job.recipe
    try:
        outcome = train(job, world, pulse)
    except PreemptedError as stopped:
        if world.is_first:
            status.remember(pulse.attempt, stopped.status, str(stopped))
            print(
                f"{recipe.name}: {stopped}; {_NEXT[stopped.status]} (exit {stopped.exit_code})",
                file=sys.stderr,
            )
        return stopped.exit_code
    if world.is_first:
        status.remember(pulse.attempt, "finished")
        print(
            f"{recipe.name}: {outcome.updates} updates"
            + (f" ({skipped:,} skipped)" if (skipped := outcome.checkpoint.state["skipped"]) else "")
            + f", {outcome.validation.summary()}; {outcome.checkpoint.path}"
        )
        for label, text in account(outcome.checkpoint.state).items():
            print(f"  {label}: {text}")
    return EXIT_OK
