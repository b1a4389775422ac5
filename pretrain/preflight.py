"""Everything about a run that can be checked and counted before it begins; writes nothing."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pretrain import attempt, build, checkpoint, engine, flops, planning, recipe
from pretrain.corpus.shardset import ShardSet, Window
from pretrain.dispatch import plan as dispatch
from pretrain.errors import UserError
from pretrain.model.configuration import MemBartConfig
from pretrain.recipe import RECIPE_FILE, Recipe, RunRecipe


@dataclass(frozen=True)
class Plan:
    """A recipe that fits its data, its model and the world it will run in."""

    recipe: Recipe
    world_size: int
    shard_set: ShardSet | None
    """None only in a dry run of a recipe that names no shards yet."""
    window: Window
    config: MemBartConfig
    deepspeed: dict[str, Any]
    resume: checkpoint.Checkpoint | None
    parameters: int
    trainable: int


def check(wanted: Recipe, world_size: int, *, dry: bool = False) -> Plan:
    """Check a recipe against files, shapes and world size.

    Raises:
        UserError: the first thing that does not fit.
    """
    data = wanted.data
    check_layout(wanted, world_size)
    if not data.shards and not dry:
        raise UserError("data.shards names no shard set", where=wanted.name, mend="data.shards=[FOLDER,...]")
    shard_set = ShardSet.open(*data.shards) if data.shards else None
    base = shard_set.window if shard_set else Window()
    window = Window(
        base.size if data.window is None else data.window,
        base.overlap if data.overlap is None else data.overlap,
    )
    if shard_set is not None:
        for split, epochs, mixture in (("train", None, data.mixture), ("validation", 1, None)):
            dispatch.Plan(
                shard_set,
                lanes=data.lanes,
                agents_per_lane=data.agents_per_lane,
                seed=wanted.train.seed,
                window=window,
                split=split,
                epochs=epochs,
                mixture=mixture,
                mixture_unit=data.mixture_unit,
                rank=0,
                world_size=world_size,
            )
    config = build.model_config(wanted.model, shard_set.vocab_size if shard_set else None)
    check_model(wanted, config, shard_set, window)
    ds_config = engine.resolve_config(wanted, world_size)
    resume = check_run_folder(wanted)
    if resume is not None and shard_set is not None and resume.state["shard_set"] != shard_set.hash:
        raise UserError(
            f"{resume.path.name} was trained on another shard set",
            where=str(wanted.run_dir),
            mend="give the same data.shards, or another name",
        )
    model = build.skeleton(config, wanted.model)
    counts = [(p.numel(), p.requires_grad) for p in model.parameters()]
    plan = Plan(
        wanted,
        world_size,
        shard_set,
        window,
        config,
        ds_config,
        resume,
        parameters=sum(n for n, _ in counts),
        trainable=sum(n for n, trains in counts if trains),
    )
    _check_room(plan)
    return plan


def describe(plan: Plan) -> str:
    """What a dry run prints: sizes, memory of a rank, tokens and steps."""
    wanted, memory = plan.recipe, rank_memory(plan)
    stage = engine.zero_stage(plan.deepspeed)
    rows = [
        ("recipe", f"{wanted.name} ({wanted.hash()[:12]})"),
        (
            "run folder",
            f"{wanted.run_dir}" + (f", resumes at update {plan.resume.update}" if plan.resume else ""),
        ),
        ("parameters", f"{plan.parameters:,} ({plan.trainable:,} train)"),
        ("agents", f"{wanted.agents} = {wanted.data.lanes} lanes x {wanted.data.agents_per_lane}"),
        ("world", f"{plan.world_size} ranks, {wanted.agents // plan.world_size} agents each, ZeRO-{stage}"),
        ("segment", f"{plan.window.size} tokens, {plan.window.overlap} shared with the one before"),
        ("tokens per step", f"up to {wanted.agents * wanted.replay.horizon * plan.window.size:,}"),
        ("FLOPs per step", _flops(plan)),
        ("steps", f"{wanted.train.steps:,}"),
        ("steps per epoch", _steps_per_epoch(plan)),
        (
            "memory per rank",
            ", ".join(f"{part} {size / 2**30:.2f} GiB" for part, size in memory.parts.items() if size),
        ),
        ("", f"{memory.peak / 2**30:.2f} GiB at its fullest, without libraries (docs/planning.md)"),
    ]
    return "\n".join(f"{label:>16}  {value}" for label, value in rows)


def rank_memory(plan: Plan) -> planning.Memory:
    """What one rank's device is predicted to hold."""
    recipe = plan.recipe
    return planning.memory(
        planning.Rank.of(
            recipe,
            plan.config,
            planning.Sizes.of(build.skeleton(plan.config, recipe.model)),
            planning.Zero.of(plan.deepspeed, plan.world_size),
            plan.window.size,
            recipe.model.gradient_checkpointing,
        )
    )


def checkpoint_bytes(plan: Plan) -> int:
    """Bytes of one checkpoint: weights and two moments of what trains, the rest, the agents' memory."""
    memory = plan.recipe.agents * plan.config.memory_len * plan.config.d_model
    return 4 * (3 * plan.trainable + (plan.parameters - plan.trainable) + memory)


def _check_room(plan: Plan) -> None:
    """While one checkpoint is written, `keep_last` others stay."""
    folder = plan.recipe.run_dir
    missing = plan.recipe.checkpoint.keep_last + 1 - len(checkpoint.committed(folder))
    needed, free = max(missing, 1) * checkpoint_bytes(plan), shutil.disk_usage(_existing(folder)).free
    if needed > free:
        raise UserError(
            f"{max(missing, 1)} checkpoints need {needed / 2**30:.2f} GiB, there are {free / 2**30:.2f} left",
            where=str(folder),
            mend="make room, set root=FOLDER, or lower checkpoint.keep_last",
        )


def _flops(plan: Plan) -> str:
    """Of full segments; what noise and short documents leave out is less."""
    size = plan.window.size
    segment = flops.useful(build.skeleton(plan.config, plan.recipe.model))(size, size)
    segments = plan.recipe.agents * plan.recipe.replay.horizon
    return f"up to {segments * segment:.3g} useful, {segment / size:.3g} per target token"


def _steps_per_epoch(plan: Plan) -> str:
    if plan.shard_set is None:
        return "unknown until data.shards is set"
    segments = sum(
        int(plan.window.segments(plan.shard_set.lengths(shard).astype(np.int64)).sum())
        for shard in plan.shard_set.select("train")
    )
    steps = segments / (plan.recipe.agents * plan.recipe.replay.horizon)
    return f"{steps:,.1f} ({segments:,} segments of {len(plan.shard_set.select('train'))} shards)"


def check_model(wanted: Recipe, config: MemBartConfig, shard_set: ShardSet | None, window: Window) -> None:
    """Whether the model fits the data, as far as these are known.

    Raises:
        UserError: fewer positions than a segment has tokens, or another vocabulary.
    """
    if window.size > config.max_position_embeddings:
        raise UserError(
            f"segments of {window.size} tokens do not fit {config.max_position_embeddings} positions",
            where=wanted.name,
            mend="lower data.window or raise model.config.max_position_embeddings",
        )
    if shard_set is None:
        return
    if shard_set.vocab_size != config.vocab_size:
        raise UserError(
            f"the shard set's tokenizer has {shard_set.vocab_size} entries, the model {config.vocab_size}",
            where=wanted.name,
            mend="build the shards with the model's tokenizer",
        )
    tokenizer_files = [Path(wanted.model.init) / name for name in ("tokenizer.json", "vocab.json")]
    if any(file.is_file() for file in tokenizer_files):
        from pretrain.corpus.tokenizer import load_tokenizer

        if load_tokenizer(wanted.model.init).fingerprint != shard_set.tokenizer_hash:
            raise UserError(
                f"the tokenizer of {wanted.model.init} is not the one the shard set was built with",
                where=wanted.name,
                mend="build the shards with the model's tokenizer",
            )


def check_layout(wanted: RunRecipe, world_size: int) -> None:
    """Check that ranks share the lanes evenly, and chunks a rank's agents.

    Raises:
        UserError: they do not.
    """
    if wanted.lanes % world_size:
        sizes = [n for n in range(1, wanted.lanes + 1) if wanted.lanes % n == 0]
        raise UserError(
            f"{world_size} ranks do not divide data.lanes={wanted.lanes}",
            where=wanted.name,
            mend=f"run with one of {', '.join(map(str, sizes))} ranks, or choose other lanes in a new run",
        )
    per_rank = wanted.agents // world_size
    if per_rank % wanted.replay.agent_chunks:
        raise UserError(
            f"replay.agent_chunks={wanted.replay.agent_chunks} does not divide a rank's {per_rank} agents",
            where=wanted.name,
            mend="choose a divisor",
        )


def check_run_folder(wanted: RunRecipe) -> checkpoint.Checkpoint | None:
    """The checkpoint to resume from, as far as a look at its files can tell, if the run folder has one.

    Raises:
        UserError: the folder cannot be written, is not of this recipe, or has only damaged checkpoints.
    """
    folder = wanted.run_dir
    existing = _existing(folder)
    if not existing.is_dir() or not os.access(existing, os.W_OK):
        raise UserError("the run folder cannot be written", where=str(folder), mend="set root=FOLDER")
    earlier_file = folder / RECIPE_FILE
    if earlier_file.is_file():
        if recipe.read(str(earlier_file)).get("family") != getattr(wanted, "family", None):
            raise UserError(
                "the run folder belongs to another kind of run",
                where=str(folder),
                mend="choose another name=...",
            )
        earlier = recipe.load(str(earlier_file), (), type(wanted))
        if earlier.hash() != wanted.hash():
            changed = ", ".join(_differences(earlier.model_dump(), wanted.model_dump()))
            raise UserError(
                f"the run folder belongs to another recipe (it differs in {changed})",
                where=str(folder),
                mend="choose another name=..., or give the old values",
            )
    elif folder.is_dir() and any(folder.iterdir()) and not attempt.newest(folder):
        raise UserError("the folder exists and is no run", where=str(folder), mend="choose another name=...")
    return checkpoint.newest_whole(folder, thorough=False).checkpoint


def _existing(folder: Path) -> Path:
    return next(parent for parent in (folder, *folder.parents) if parent.exists())


def _differences(old: Any, new: Any, path: str = "") -> list[str]:
    if isinstance(old, dict) and isinstance(new, dict):
        keys = dict.fromkeys([*old, *new])
        return [
            d for key in keys for d in _differences(old.get(key), new.get(key), f"{path}.{key}".lstrip("."))
        ]
    return [] if old == new else [path]
