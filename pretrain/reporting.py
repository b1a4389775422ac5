"""What tells people of a run while it goes on: the tracker, the samplers of the nodes, the console."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from typing import Any

from pretrain import provenance
from pretrain.checkpoint import Checkpoint
from pretrain.console import Console
from pretrain.distributed import World
from pretrain.job import Job
from pretrain.tracking import NodeSampler, NullTracker, Status, Tracker


def start_tracker(job: Job, update: int) -> Tracker:
    """The tracker of a run that stands at `update`."""
    recipe = job.recipe
    params: dict[str, Any] = {**recipe.model_dump(mode="json"), "deepspeed": job.deepspeed}
    return Tracker.start(
        recipe.run_dir,
        experiment=recipe.tracking.experiment,
        run_name=recipe.name,
        params=params,
        tags={"recipe_hash": recipe.hash(), **job.tags(), **provenance.tags()},
        parent_run_id=job.parent_run,
        resume_step=update,
        upload=recipe.tracking.mlflow,
    )


@contextlib.contextmanager
def node_sampler(job: Job, world: World) -> Iterator[None]:
    """System figures of every other node; rank 0's tracker samples its own."""
    if world.local_rank or world.is_first:
        yield
        return
    sampler = NodeSampler(job.recipe.run_dir)
    try:
        yield
    finally:
        sampler.stop()


def console(job: Job, update: int, world: World) -> Console:
    """The progress of the run; ranks other than the first show their warnings only."""
    return Console(
        job.recipe.train.steps,
        step=update,
        label=job.recipe.name if world.is_first else f"rank {world.rank}",
        stream=sys.stderr,
        progress=world.is_first,
    )


def keep_artifacts(job: Job, tracker: Tracker | NullTracker, saved: Checkpoint) -> None:
    """Queue for MLflow what the recipe wants to be kept of a finished run: plots, and its last checkpoint."""
    recipe = job.recipe
    policy = recipe.tracking.artifacts
    if isinstance(tracker, NullTracker) or not recipe.tracking.mlflow or policy == "none":
        return
    from pretrain.plots import write_plots
    from pretrain.tracking.history import History

    history = History.read(recipe.run_dir)
    if history is not None:
        plots = write_plots(history, recipe.run_dir / "plots")
        for path in plots.panels.values():
            tracker.artifact(path, "plots")
    if policy == "checkpoints":
        tracker.artifact(saved.path, "checkpoints")
        return
    for path in sorted(saved.path.iterdir()):
        if path.suffix != ".safetensors":
            tracker.artifact(path, f"checkpoints/{saved.path.name}")


def upload_seconds(job: Job, status: Status) -> float:
    """Seconds for the tracker's last upload: the next attempt, or `membart sync`, sends what is left."""
    if status != "FINISHED":
        return 5.0  # a node that is being taken away has no minute to spare
    return 600.0 if job.recipe.tracking.artifacts == "checkpoints" else 60.0
