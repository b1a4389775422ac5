"""A run's moving parts to and from a checkpoint. Collective: every rank calls.

Nothing random is among them: training draws dropout, noise, the order of documents and fresh weights from
counters (`pretrain.counter`, `replay.seed`), which the update and the data position determine.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor

from pretrain import attempt, checkpoint, distributed, provenance
from pretrain.attempt import Attempt
from pretrain.checkpoint import Checkpoint
from pretrain.dispatch.plan import merge_states
from pretrain.distributed import World
from pretrain.engine import MOMENTS, Engine
from pretrain.errors import UserError
from pretrain.export.weights import GENERATION_FILE
from pretrain.job import Job, Stream
from pretrain.recipe import RECIPE_FILE
from pretrain.saver import Contents, Saver


class Moving(Protocol):
    """What moves in training, as far as a checkpoint holds it: `pretrain.train.Run`."""

    job: Job
    world: World
    engine: Engine
    saver: Saver
    stream: Stream
    lanes: list[int]
    """Of this rank, ascending."""
    memory: Tensor
    """`[len(lanes) * agents_per_lane, slots, d_model]` float32."""
    position: dict[str, Any]
    """State of `stream` that the next rollout begins at."""
    config: Any
    """The model's configuration."""
    origin: dict[str, Any]
    update: int
    skipped: int
    skipped_in_a_row: int
    tokens_seen: int
    best: dict[str, float] | None
    since_best: int


def claim(run_dir: Path) -> Attempt:
    """Become the newest attempt of a run, all ranks together.

    Raises:
        UserError: the run folder cannot be written, or not every rank sees the same one.
        SupersededError: another start claimed a higher number meanwhile.
    """
    mine = distributed.on_first(lambda: attempt.claim(run_dir))
    blind = [str(rank) for rank, sees in enumerate(distributed.gather(mine.staging.is_dir())) if not sees]
    if blind:
        raise UserError(
            f"rank {', '.join(blind)} does not see the run folder of rank 0",
            where=str(run_dir),
            mend="set root=FOLDER on a file system that all nodes share",
        )
    return mine


def contents(run: Moving, tracking_run: str | None) -> Contents:
    """This rank's share of a checkpoint of this moment; what is common to all is rank 0's."""
    recipe = run.job.recipe
    tensors = shard(run.engine, run.memory, run.lanes, run.world.rank)
    frozen = dict(run.engine.full_state(trainable=False))
    positions = distributed.gather(run.position)
    if not run.world.is_first:
        return Contents(tensors)
    position = merge_states(positions)
    state = {
        "update": run.update,
        "skipped": run.skipped,
        "skipped_in_a_row": run.skipped_in_a_row,
        "tokens_seen": run.tokens_seen,
        "best": run.best,
        "keep_best": recipe.validation.keep_best,
        "since_best": run.since_best,
        "dispatcher": position,
        "shard_set": run.job.data_hash,
        **run.job.facts(position),
        "world_size": run.world.size,
        "zero_stage": run.engine.stage,
        "attempt": run.saver.attempt.number,
        "tracking_run": tracking_run,
        **run.origin,
    }
    texts = {
        "state.json": json.dumps(state, indent=1),
        "config.json": json.dumps(run.config.to_dict(), indent=1),
        RECIPE_FILE: recipe.to_yaml(),
    }
    generation = getattr(run.engine.cell.model, "generation_config", None)
    if generation is not None:
        texts[GENERATION_FILE] = generation.to_json_string()
    best = run.best["update"] if recipe.validation.keep_best and run.best else None
    return Contents({**tensors, "frozen.safetensors": frozen}, texts, best)


def shard(engine: Engine, memory: Tensor, lanes: list[int], rank: int) -> dict[str, dict[str, Tensor]]:
    """The optimizer state and the agents' memory that live on this rank, by file and name.

    Args:
        memory: `[len(lanes) * agents_per_lane, slots, d_model]` float32.
    """
    fragments = {
        f"{key}/{fragment.name}@{fragment.start}": tensor
        for fragment in engine.fragments()
        for key, tensor in fragment.tensors.items()
    }
    agents = len(memory) // len(lanes)
    by_lane = {str(lane): memory[i * agents : (i + 1) * agents] for i, lane in enumerate(lanes)}
    return {f"optimizer-{rank:05d}.safetensors": fragments, f"memory-{rank:05d}.safetensors": by_lane}


def size(engine: Engine, memory: Tensor) -> int:
    """Bytes that `shard` will have on this rank, moments included that do not exist before the first step."""
    masters = sum(fragment.tensors["master"].nbytes for fragment in engine.fragments())
    return (1 + len(MOMENTS)) * masters + memory.nbytes


def origin() -> dict[str, Any]:
    """What program makes the checkpoints; asked once, when it starts."""
    return {"versions": provenance.versions(), "git": provenance.git_state()}


def find(mine: Attempt) -> Checkpoint | None:
    """The newest whole checkpoint of the run; None in a run that has saved nothing yet.

    Rank 0 reads every file of it, and tells which newer ones are damaged.

    Raises:
        CheckpointError: on every rank; there are checkpoints, but all are damaged.
    """

    def look() -> Checkpoint | None:
        found = checkpoint.newest_whole(mine.run_dir)
        found.tell()
        return found.checkpoint

    return distributed.on_first(look)


def restore(run: Moving, saved: Checkpoint) -> None:
    """Put counters, data position, agents' memory and optimizer back; the model has its weights already."""
    state: dict[str, Any] = saved.state
    run.update, run.tokens_seen = state["update"], state["tokens_seen"]
    run.skipped, run.skipped_in_a_row = state["skipped"], state["skipped_in_a_row"]
    run.best, run.since_best = state["best"], state["since_best"]
    run.stream.load_state_dict(state["dispatcher"])
    run.memory = saved.memory(run.lanes).to(run.world.device)
    run.engine.prepare_moments(run.update - run.skipped)
    for fragment in run.engine.fragments():
        for key, tensor in fragment.tensors.items():
            tensor.copy_(saved.slice(key, fragment.name, fragment.start, tensor.numel()))
