"""What a run trains: everything in which pretraining and the fine-tunes differ from one another.

The trainer, checkpoints, resume, tracking and reports know a run only through this; `pretrain.pretraining` is
the first implementation.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, Protocol, Self

import torch
from torch import Tensor, nn

from pretrain.distributed import World
from pretrain.recipe import RunRecipe


class Batch(Protocol):
    """One timestep of A agents: `pretrain.dispatch.batch.Batch` or a family's own; tensors are `[A, ...]`."""

    @property
    def memory_resets(self) -> Tensor:
        """`[A]` 1 where memory starts afresh."""

    @property
    def attention_mask(self) -> Tensor:
        """`[A, S]` 1 on the tokens that the encoder reads."""

    def to(self, device: torch.device | str) -> Self:
        """The same batch on another device."""

    def rows(self, rows: slice) -> Self:
        """Some of the agents."""


class Stream(Protocol):
    """Batches of one rank in order, with a bookmark; see `pretrain.dispatch.dispatcher.Dispatcher`."""

    @property
    def lane(self) -> Tensor:
        """`[A]` lane of each row, ascending."""

    def __iter__(self) -> Iterator[Any]: ...
    def __next__(self) -> Any: ...
    def state_dict(self) -> dict[str, Any]:
        """The bookmark after the last batch taken: small JSON; `merge_states` joins those of the ranks."""

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where `state`, of this rank or merged, was taken."""

    def close(self) -> None:
        """Let go of workers and files."""


class Validation(Protocol):
    """What one validation found."""

    @property
    def loss(self) -> float:
        """Nats per target token: what the best checkpoint is chosen by, and early stopping watches."""

    def metrics(self) -> dict[str, float]:
        """The tracked figures, by name."""

    def summary(self) -> str:
        """The figures for a person, in half a line."""


class Job(Protocol):
    """A checked recipe with its data and model, ready to be trained on some world."""

    @property
    def recipe(self) -> RunRecipe:
        """Checked; its run folder is where the run is or goes on."""

    @property
    def deepspeed(self) -> dict[str, Any]:
        """The resolved DeepSpeed configuration."""

    @property
    def data_hash(self) -> str:
        """Identity of the data; a checkpoint of other data is refused."""

    @property
    def parts(self) -> tuple[str, ...]:
        """Names of the loss parts, K of them; the first is the cross-entropy of the target tokens."""

    @property
    def memory_shape(self) -> tuple[int, int]:
        """(slots, d_model) of what an agent carries; zero slots where nothing is."""

    @property
    def parent_run(self) -> str | None:
        """MLflow run that this one is shown under: a fine-tune's pretraining."""

    def cell(self) -> nn.Module:
        """A fresh module with the forward of `replay.Cell`, on the CPU in float32, equal on every rank.

        It holds the model as its attribute `model`; the model's `config` goes into every checkpoint.
        """

    def stream(self, split: str, world: World) -> Stream:
        """`train` (endless) or `validation` (one pass)."""

    def worst_batch(self, world: World) -> Any | None:
        """A made-up batch of a rank's agents as large as any that may come, on the CPU; None where unknown.

        It is trained on before any data are read, without a trace, so that want of memory shows at once.
        """

    def count(self, batch: Any) -> Tensor:
        """How many things each loss part of a batch is summed over: 0-d where K is 1, else `[K]`."""

    def part_weights(self, update: int) -> Tensor:
        """Weight of each loss part at an update: 0-d where K is 1, else `[K]` float32."""

    def rates(self, update: int) -> Mapping[str, float]:
        """Factors on the learning rate by the name of a parameter group; absent ones are 1."""

    def validate(self, cell: Callable[..., Any], world: World) -> Validation:
        """Run the held-out pass through a cell in eval mode. Collective."""

    def segment_flops(self, model: Any) -> Callable[[float, float], float] | None:
        """Useful training FLOPs of a segment of so many (source, target) tokens; None where not counted."""

    def facts(self, position: Mapping[str, Any]) -> dict[str, Any]:
        """What a checkpoint's `state.json` also says; `position` is the state of the whole stream."""

    def begin_folder(self) -> None:
        """Make the run folder resumable by itself: recipe, tokenizer."""

    def tags(self) -> dict[str, str]:
        """What the tracker shows of the data."""
