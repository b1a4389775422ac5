"""Plan, reading and noise of one rank as one object: the same in the training and in workers."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pretrain.corpus.shardset import ShardSet, Window
from pretrain.dispatch.faults import Fault, OnBadShard, Tolerance
from pretrain.dispatch.gather import Gatherer, Objective, Rows
from pretrain.dispatch.lanes import MixtureUnit
from pretrain.dispatch.plan import Plan
from pretrain.errors import ShardError
from pretrain.noise import Noise, NoiseConfig, Vocabulary


@dataclass(frozen=True)
class Order:
    """Everything that decides a rank's batches; pickled to workers as it is."""

    shard_set: ShardSet
    lanes: int
    agents_per_lane: int
    seed: int
    rank: int
    world_size: int
    split: str
    epochs: int | None
    window: Window
    noise: NoiseConfig
    objective: Objective
    mixture: Mapping[str, float] | None
    mixture_unit: MixtureUnit
    on_bad_shard: OnBadShard
    tolerance: Tolerance


@dataclass(frozen=True)
class Product:
    """One timestep: its number, its rows, the state after it, and what had to be left out for it."""

    timestep: int
    rows: Rows
    state: dict[str, Any]
    faults: list[Fault]


class Producer:
    """Makes the timesteps of one rank in order."""

    def __init__(self, order: Order) -> None:
        """Raises UserError for a layout, split or mixture that cannot be."""
        skip = order.on_bad_shard == "skip"
        self._shard_set = order.shard_set
        self.plan = Plan(
            order.shard_set,
            lanes=order.lanes,
            agents_per_lane=order.agents_per_lane,
            seed=order.seed,
            window=order.window,
            split=order.split,
            epochs=order.epochs,
            mixture=order.mixture,
            mixture_unit=order.mixture_unit,
            rank=order.rank,
            world_size=order.world_size,
            tolerance=order.tolerance if skip else None,
            inspect=self._inspect if skip else None,
        )
        noise = None
        if order.objective == "denoise":
            vocabulary = Vocabulary.of(order.shard_set.tokenizer())
            noise = Noise(order.noise, vocabulary, order.seed, order.window.body)
        self._gather = Gatherer(order.shard_set, self.plan.rows, order.window, noise, order.objective)

    def produce(self) -> Product | None:
        """The next timestep; None after a finite pass. Raises ShardError for what is not tolerated."""
        timestep, step = self.plan.timestep, self.plan.step()
        if step is None:
            return None
        return Product(timestep, self._gather(step), self.plan.state(), self.plan.faults())

    def advance(self) -> bool:
        """Pass over the next timestep, which another worker makes; False at the end of a finite pass."""
        step = self.plan.step()
        self.plan.faults()
        return step is not None

    def _inspect(self, shard: int, document: int) -> Fault | None:
        try:
            self._shard_set.tokens(shard, document)
        except ShardError as error:
            whole = not os.path.isfile(self._shard_set.path(shard))
            return Fault(shard, -1 if whole else document, str(error))
        return None
