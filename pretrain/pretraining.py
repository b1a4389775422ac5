"""Pretraining as a job: sequence denoising with memory over a shard set."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pretrain import build, flops
from pretrain.corpus.shardset import ShardSet
from pretrain.corpus.tokenizer import TOKENIZER_FOLDER
from pretrain.dispatch.batch import Batch
from pretrain.dispatch.dispatcher import Dispatcher
from pretrain.dispatch.faults import Tolerance
from pretrain.dispatch.plan import lost_documents, realised_mixture
from pretrain.distributed import World
from pretrain.files import write_atomically
from pretrain.model.loss import IGNORED
from pretrain.preflight import Plan
from pretrain.recipe import RECIPE_FILE, Recipe
from pretrain.rehearsal import full_batch
from pretrain.replay import Cell
from pretrain.validate import Validation, validate

PAD_MULTIPLE = 8
"""What the width of a batch is rounded up to."""


class Pretraining:
    """A checked plan as the trainer sees it; see `pretrain.job.Job`."""

    parts = ("loss",)
    parent_run = None

    def __init__(self, plan: Plan) -> None:
        self.plan = plan

    @property
    def recipe(self) -> Recipe:
        return self.plan.recipe

    @property
    def deepspeed(self) -> dict[str, Any]:
        return self.plan.deepspeed

    @property
    def data_hash(self) -> str:
        return self.shard_set.hash

    @cached_property
    def shard_set(self) -> ShardSet:
        """What it trains on."""
        assert self.plan.shard_set is not None, "a dry run's plan does not train"
        return self.plan.shard_set

    @property
    def memory_shape(self) -> tuple[int, int]:
        return self.plan.config.memory_len, self.plan.config.d_model

    def cell(self) -> Cell:
        return Cell(build.build_model(self.recipe, self.shard_set.vocab_size))

    def stream(self, split: str, world: World) -> Dispatcher:
        data = self.recipe.data
        training = split == "train"
        return Dispatcher(
            self.shard_set,
            lanes=data.lanes,
            agents_per_lane=data.agents_per_lane,
            seed=self.recipe.train.seed,
            rank=world.rank,
            world_size=world.size,
            split=split,
            epochs=None if training else 1,
            window=self.plan.window,
            noise=self.recipe.noise,
            objective=data.objective,
            mixture=data.mixture if training else None,
            mixture_unit=data.mixture_unit,
            pad_multiple=PAD_MULTIPLE,
            static_shapes=data.static_shapes,
            workers=data.workers if training else 0,
            on_bad_shard=data.on_bad_shard,
            tolerance=Tolerance(fraction=data.max_bad_documents),
        )

    def worst_batch(self, world: World) -> Batch:
        """Full windows on both sides; noise never makes a source longer than its window."""
        window = self.plan.window.size
        width = window if self.recipe.data.static_shapes else -(-window // PAD_MULTIPLE) * PAD_MULTIPLE
        return full_batch(self.recipe.agents // world.size, width)

    def count(self, batch: Batch) -> Tensor:
        return (batch.labels != IGNORED).sum()

    def part_weights(self, update: int) -> Tensor:
        return torch.ones(())

    def rates(self, update: int) -> Mapping[str, float]:
        return {}

    def validate(self, cell: Callable[..., Any], world: World) -> Validation:
        def initial(agents: int) -> Tensor:
            return torch.zeros(agents, *self.memory_shape, device=world.device)

        with self.stream("validation", world) as dispatcher:
            return validate(cell, dispatcher, initial, world, self.recipe.validation.max_timesteps)

    def segment_flops(self, model: Any) -> Callable[[float, float], float]:
        return flops.useful(model)

    def facts(self, position: Mapping[str, Any]) -> dict[str, Any]:
        return {
            "mixture": realised_mixture(position, self.shard_set.sources),
            "lost_documents": lost_documents(position),
        }

    def begin_folder(self) -> None:
        self.recipe.run_dir.mkdir(parents=True, exist_ok=True)
        # The run folder alone resumes a run, from any working directory.
        shards = tuple(str(Path(folder).resolve()) for folder in self.recipe.data.shards)
        data = self.recipe.data.model_copy(update={"shards": shards})
        stored = self.recipe.model_copy(update={"data": data})
        write_atomically(self.recipe.run_dir / RECIPE_FILE, stored.to_yaml())
        self.shard_set.tokenizer().save(self.recipe.run_dir / TOKENIZER_FOLDER)

    def tags(self) -> dict[str, str]:
        return {"shard_set_hash": self.data_hash}
