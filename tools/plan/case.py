"""A recipe on a cluster: what a plan is made of."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from math import gcd
from pathlib import Path

from pretrain import build, engine, preflight
from pretrain.corpus.shardset import ShardSet, Window
from pretrain.corpus.tokenizer import token_dtype
from pretrain.errors import UserError
from pretrain.model.configuration import MemBartConfig
from pretrain.planning import Memory, Rank, Sizes, Zero, memory
from pretrain.recipe import Recipe
from tools.plan import costs
from tools.plan.cluster import Cluster
from tools.plan.operations import Operations, count

STAGES = ("zero0", "zero1", "zero2", "zero3")
OFFLOADED = ("zero2_offload", "zero3_offload")


@dataclass(frozen=True)
class Case:
    """One way to run a recipe: the change to it, if any, and what follows."""

    rank: Rank
    operations: Operations
    cluster: Cluster
    deepspeed: str
    """Name of the configuration."""
    changes: tuple[str, ...] = ()
    """Overrides that make this case of the recipe."""

    @property
    def memory(self) -> Memory:
        """Of a rank, at every moment of a step."""
        return memory(self.rank)

    @property
    def fits(self) -> bool:
        """Whether the fullest moment leaves the headroom free."""
        return self.memory.peak <= self.cluster.room

    @property
    def step(self) -> costs.Step:
        """How long a step takes."""
        return costs.step(self.rank, self.operations, self.cluster)

    def placed(self, deepspeed: str) -> Case:
        """The same under another DeepSpeed configuration.

        Raises:
            UserError: no such configuration, or no such stage.
        """
        zero = _zero(deepspeed, self.cluster.world)
        return replace(self, rank=replace(self.rank, zero=zero), deepspeed=deepspeed)


@dataclass(frozen=True)
class Subject:
    """A recipe, its data as far as they are known, and the case that it asks for."""

    outline: preflight.Plan
    case: Case
    notes: tuple[str, ...]
    """What had to be assumed."""

    @property
    def recipe(self) -> Recipe:
        """What is trained."""
        return self.outline.recipe

    @property
    def token_bytes(self) -> float:
        """Bytes of storage that hold one token."""
        shard_set = self.outline.shard_set
        if shard_set is None:
            return token_dtype(self.case.rank.config.vocab_size).itemsize
        shards = [shard_set.shards[number] for number in shard_set.select("train")]
        return sum(shard.bytes for shard in shards) / max(sum(shard.tokens for shard in shards), 1)


def subject(recipe: Recipe, cluster: Cluster, deepspeed: str | None = None) -> Subject:
    """Size up `recipe` on `cluster`; the machine that plans need have neither its devices nor its data.

    Raises:
        UserError: ranks that do not share the lanes, a model that does not fit its window or itself, a field
            or a configuration that does not exist.
    """
    preflight.check_layout(recipe, cluster.world)
    shard_set, notes = _shard_set(recipe)
    base, data = shard_set.window if shard_set else Window(), recipe.data
    window = Window(
        base.size if data.window is None else data.window,
        base.overlap if data.overlap is None else data.overlap,
    )
    config = build.model_config(recipe.model, shard_set.vocab_size if shard_set else None)
    if shard_set is not None or data.window is not None:  # an assumed window is nobody's mistake
        preflight.check_model(recipe, config, shard_set, window)
    if shard_set is None and "vocab_size" not in recipe.model.fields:
        notes.append(f"a vocabulary of {config.vocab_size:,}")
    name = recipe.train.deepspeed if deepspeed is None else deepspeed
    sizes = Sizes.of(build.skeleton(config, recipe.model))
    zero = _zero(name, cluster.world)
    rank = Rank.of(recipe, config, sizes, zero, window.size, recipe.model.gradient_checkpointing)
    operations = count(config, rank.half)
    if recipe.train.compile:
        operations = Operations(0, 0, 0)
        notes.append("compiled layers keep what plain ones keep, and the host starts them in no time")
    outline = preflight.Plan(
        recipe,
        cluster.world,
        shard_set,
        window,
        config,
        engine.load_config(name),
        resume=None,
        parameters=sizes.parameters,
        trainable=sizes.trainable,
    )
    return Subject(outline, Case(rank, operations, cluster, name), tuple(notes))


def stages(case: Case) -> list[Case]:
    """The case at every ZeRO stage; its own configuration last where it is none of the plain ones."""
    names = [*STAGES] if case.deepspeed in STAGES else [*STAGES, case.deepspeed]
    return [case.placed(name) for name in names]


def remedy(case: Case, lanes: int) -> Case | None:
    """The smallest change with which `case` fits: the fewest settings, among these the fastest step.

    Only where no three settings are enough, more nodes, in a number that divides `lanes`.
    """
    per_node = case.cluster.gpus_per_node
    for nodes in range(case.cluster.nodes, lanes // per_node + 1):
        if lanes % (nodes * per_node):
            continue
        larger = case if nodes == case.cluster.nodes else _spread(case, nodes)
        for settings in range(4):
            fitting = [changed for changed in _changed(larger, settings) if changed.fits]
            if fitting:
                return min(fitting, key=lambda changed: changed.step.total)
    return None


def _spread(case: Case, nodes: int) -> Case:
    """The same agents on more nodes, in as many chunks as still divide a rank's."""
    agents = case.rank.agents * case.cluster.nodes // nodes
    rank = replace(case.rank, agents=agents, chunks=gcd(case.rank.chunks, agents))
    changes = (*case.changes, f"--nodes {nodes}")
    if rank.chunks != case.rank.chunks:
        changes = (*changes, f"replay.agent_chunks={rank.chunks}")
    larger = replace(case, rank=rank, cluster=replace(case.cluster, nodes=nodes), changes=changes)
    return larger.placed(case.deepspeed)


def _changed(case: Case, settings: int) -> Iterator[Case]:
    """Cases that differ in so many settings, each of them changed once."""
    if settings == 0:
        yield case
        return
    for before in _changed(case, settings - 1):
        yield from (
            after for after in _single(before) if _name(after.changes[-1]) not in map(_name, before.changes)
        )


def _name(change: str) -> str:
    return change.partition("=")[0]


def _single(case: Case) -> Iterator[Case]:
    """Every change of one setting that saves memory, those first that cost no time."""
    rank = case.rank

    def change(setting: str, changed: Rank) -> Case:
        return replace(case, rank=changed, changes=(*case.changes, setting))

    if rank.mode != "replay":
        yield change("replay.mode=replay", replace(rank, mode="replay"))
    if rank.config.loss_impl == "plain":
        config = MemBartConfig(**{**rank.config.to_dict(), "loss_impl": "chunked"})
        yield change("model.config.loss_impl=chunked", replace(rank, config=config))
    for chunks in range(rank.chunks + 1, rank.agents + 1):
        if rank.agents % chunks == 0:
            yield change(f"replay.agent_chunks={chunks}", replace(rank, chunks=chunks))
    if not rank.half:
        yield change("train.precision=bf16", replace(rank, half=True))
    for name in (*STAGES, *OFFLOADED):
        if name != case.deepspeed:
            placed = case.placed(name)
            yield replace(placed, changes=(*case.changes, f"train.deepspeed={name}"))
    if not rank.checkpointing:
        yield change("model.gradient_checkpointing=true", replace(rank, checkpointing=True))


@lru_cache
def _zero(name: str, world: int) -> Zero:
    config = engine.load_config(name)
    stage = engine.zero_stage(config)
    if stage not in range(4):
        raise UserError(
            f"there is no ZeRO stage {stage}", where=f"DeepSpeed configuration '{name}'", mend="give 0 to 3"
        )
    return Zero.of(config, world)


def _shard_set(recipe: Recipe) -> tuple[ShardSet | None, list[str]]:
    """The recipe's shards if they are on this machine, and what is assumed of them if they are not."""
    data = recipe.data
    missing = [folder for folder in data.shards if not Path(folder).is_dir()]
    if data.shards and not missing:
        return ShardSet.open(*data.shards), []
    notes = [f"{missing[0]} is not on this machine" if missing else "data.shards is not set"]
    if data.window is None:
        notes.append(f"segments of {Window().size} tokens")
    return None, notes
