"""The synchronized batch dispatcher: iterates over batches, one timestep of all of a rank's agents each."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor

from pretrain.corpus.shardset import ShardSet, Window
from pretrain.dispatch.batch import Batch
from pretrain.dispatch.faults import Fault, OnBadShard, Tolerance
from pretrain.dispatch.gather import Objective
from pretrain.dispatch.lanes import MixtureUnit
from pretrain.dispatch.layout import Layout
from pretrain.dispatch.producer import Order, Producer, Product
from pretrain.dispatch.workers import Workers
from pretrain.errors import CheckpointError, UserError
from pretrain.noise import NoiseConfig

STATE_VERSION = 1

Taken = tuple[Batch, dict[str, Any], list[Fault]]
"""A batch, the state after it, and what was left out for it."""

log = logging.getLogger(__name__)


class Dispatcher:
    """Batches of one rank; the rows of all ranks, in rank order, are the global batch.

    The sequence of global batches is a function of (shard set, seed, lanes, agents per lane) alone: not of
    the world size, nor of workers, prefetching or the machine. A context manager; `close()` ends the workers.
    """

    def __init__(
        self,
        shard_set: ShardSet,
        *,
        lanes: int,
        agents_per_lane: int,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
        split: str = "train",
        epochs: int | None = None,
        window: Window | None = None,
        noise: NoiseConfig | None = None,
        objective: Objective = "denoise",
        mixture: Mapping[str, float] | None = None,
        mixture_unit: MixtureUnit = "tokens",
        pad_multiple: int = 8,
        static_shapes: bool = False,
        workers: int = 0,
        prefetch: int = 4,
        on_bad_shard: OnBadShard = "stop",
        tolerance: Tolerance | None = None,
    ) -> None:
        """Lay out a rank's lanes; no shard is read and no worker started before the first batch.

        Args:
            epochs: how often a finite pass gives every document; it ends on all ranks at once, and agents
                that have run dry before give empty rows. None never ends.
            window: how documents are cut; the shard set's unless given.
            noise: of the source under `denoise`, `NoiseConfig()` unless given; `recall` reads clean segments.
            mixture: weight of each source, measured by `mixture_unit`; the sources' sizes unless given.
            pad_multiple: rows are padded to the longest of the timestep, rounded up to this.
            static_shapes: pad every batch to the window instead.
            workers: processes that build batches ahead; 0 builds them here, when they are asked for.
            prefetch: batches that each worker keeps ready, beside what fits into its pipe; 1 or more.
            on_bad_shard: `stop` at an unreadable document, or `skip` it within the `tolerance`.

        Raises:
            UserError: a layout, split, mixture or number of workers that cannot be.
        """
        for name, value, least in (("workers", workers, 0), ("prefetch", prefetch, 1)):
            if value < least:
                raise UserError(f"{name} must be at least {least}, got {value}", where="dispatcher")
        self.order = Order(
            shard_set=shard_set,
            lanes=lanes,
            agents_per_lane=agents_per_lane,
            seed=seed,
            rank=rank,
            world_size=world_size,
            split=split,
            epochs=epochs,
            window=window or shard_set.window,
            noise=noise or NoiseConfig(),
            objective=objective,
            mixture=mixture,
            mixture_unit=mixture_unit,
            on_bad_shard=on_bad_shard,
            tolerance=tolerance or Tolerance(),
        )
        """Everything that decides this rank's batches."""
        self._producer = Producer(self.order)
        self.plan = self._producer.plan
        """Lanes, sources and weights of this rank; where it stands is in `state_dict()` alone."""
        self._state = self.plan.state()
        self._layout = Layout(pad_multiple, self.order.window.size if static_shapes else None)
        self._workers_wanted, self._prefetch = workers, prefetch
        self._workers: Workers[Taken] | None = None
        self._reported: set[Fault] = set()
        self._broken: Exception | None = None
        self.agent = torch.arange(self.plan.rows) + self.plan.lanes.start * agents_per_lane
        self.lane = self.agent // agents_per_lane
        self._finish = partial(_finish, self._layout, self.lane, self.agent)

    def __enter__(self) -> Dispatcher:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        if self._broken is not None:
            raise self._broken
        try:
            taken = self._take()
        except Exception as error:  # kept: another try must not pass over the timestep that failed
            self._broken = error
            self.close()
            raise
        if taken is None:
            self.close()
            raise StopIteration
        batch, self._state, faults = taken
        self._report(faults)
        return batch

    def _take(self) -> Taken | None:
        if not self._workers_wanted:
            product = self._producer.produce()
            return None if product is None else self._finish(product)
        if self._workers is None:
            self._workers = Workers(
                self.order, self._state, self._workers_wanted, self._prefetch, self._finish
            )
        return self._workers.take()

    def _report(self, faults: list[Fault]) -> None:
        for fault in faults:
            if fault not in self._reported:
                self._reported.add(fault)
                log.warning("left out: %s", fault.what)

    @property
    def worker_pids(self) -> list[int]:
        """Process ids of the running workers."""
        return self._workers.pids if self._workers else []

    def state_dict(self) -> dict[str, Any]:
        """Where this rank's lanes stand after the last batch taken: small JSON, keyed by lane number.

        What workers have built ahead is not in it. States of several ranks are joined by `plan.merge_states`.
        """
        order = self.order
        identity = {
            "version": STATE_VERSION,
            "shard_set": order.shard_set.hash,
            "split": order.split,
            "seed": order.seed,
            "lanes": order.lanes,
            "agents_per_lane": order.agents_per_lane,
            "window": [order.window.size, order.window.overlap],
            "mixture": dict(order.mixture) if order.mixture else None,
            "mixture_unit": order.mixture_unit,
        }
        return {"identity": identity, **self._state}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where `state` was taken; it may be the merged state of any number of ranks.

        Raises CheckpointError where it belongs to other data, another seed or another layout.
        """
        for key, mine in self.state_dict()["identity"].items():
            theirs = state.get("identity", {}).get(key)
            if theirs != mine:
                raise CheckpointError(
                    f"the data position was saved with {key} {theirs}, this run has {mine}",
                    where="dispatcher state",
                    mend="resume with the recipe and shard set of the checkpoint, or start a new run",
                )
        self.close()
        self._broken = None
        self.plan.load(state)
        self._state = self.plan.state()

    def close(self) -> None:
        """End the workers; a later batch starts them again where the last one stood."""
        if self._workers is not None:
            self._workers.close()
            self._workers = None


def _finish(layout: Layout, lane: Tensor, agent: Tensor, product: Product) -> Taken:
    batch = Batch.of(product.rows, layout, lane, agent, product.timestep)
    return batch, product.state, product.faults
