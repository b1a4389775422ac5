"""What a family is: all that the trainer, the evaluation and the chat know of one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol, runtime_checkable

from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from finetune.backbone import Backbone
from finetune.batch import Example, TurnBatch
from finetune.dialogue.dialogue import Dialogue
from finetune.recipe import DialogueSection, FineTuneRecipe, GenerationSection
from finetune.weights import WeightMap
from pretrain.recipe import Section


@dataclass(frozen=True)
class Replies:
    """What a family answered to one timestep."""

    texts: list[list[str]]
    """Per row the replies, best first, without role marks and special tokens; empty for a dry row."""
    memory: Tensor
    """`[A, slots, d_model]`: what the agents carry on."""
    selected: list[int] | None = None
    """Per row the number of the knowledge sentence that the reply was written from, -1 for none of them; None
    in families that do not select."""


class Family(Protocol):
    """One family for one recipe. A module `finetune.families.NAME` has it as its class `Family`.

    Its model is a `transformers.PreTrainedModel` with a configuration class of its own, registered with the
    Auto classes, which holds everything that the forward pass needs: a folder alone rebuilds it.
    """

    Settings: ClassVar[type[Section]]
    """Schema of the recipe's `model` section; unknown keys are refused."""
    model_class: ClassVar[type[PreTrainedModel]]
    metrics: ClassVar[tuple[str, ...]]
    """Names in `finetune.metrics` that evaluation reports beside the perplexity."""

    parts: tuple[str, ...]
    """Names of the K loss parts; the first is the cross-entropy of the target tokens, in nats."""
    pads: Mapping[str, int]
    """Token sequences of an example, with their padding."""
    numbers: Mapping[str, int | float]
    """Single numbers of an example, with what a dry row has."""

    def __init__(
        self, settings: Any, data: DialogueSection, tokenizer: PreTrainedTokenizerBase, steps: int
    ) -> None:
        """`settings` is an instance of `Settings`; `steps` the updates of the whole run, for schedules.

        Raises:
            UserError: settings that contradict each other or the data section.
        """

    def build(self, backbone: Backbone) -> tuple[PreTrainedModel, WeightMap]:
        """The model with the backbone's weights, on the CPU in float32, and where each tensor came from.

        Raises:
            UserError: a backbone that this family cannot start from.
        """

    def prepare(self, model: Any) -> None:
        """Settle what trains and what is frozen; called before every training, resumed ones too."""

    def cell(self, model: Any) -> nn.Module:
        """`model` as a module with the forward of `pretrain.replay.Cell` over `TurnBatch`; see `TurnCell`."""

    def memory_shape(self, model: Any) -> tuple[int, int]:
        """(slots, d_model) of what an agent carries; zero slots where nothing is."""

    def targets(self, dialogue: Dialogue, speaker: int) -> list[int]:
        """Turns (their indexes) of `speaker` that are replies to learn, in order."""

    def example(self, dialogue: Dialogue, turn: int) -> Example:
        """One target turn with everything before it."""

    def count(self, batch: TurnBatch, per_row: bool = False) -> Tensor:
        """What each loss part is summed over: 0-d where K is 1, else `[K]`; `per_row` with `A` columns."""

    def part_weights(self, update: int) -> Tensor:
        """Weight of each part at an update: 0-d where K is 1, else `[K]` float32."""

    def rates(self, update: int) -> Mapping[str, float]:
        """Factors on the learning rate by name of a parameter group; {} unless a schedule needs them."""

    def generate(
        self, model: Any, batch: TurnBatch, memory: Tensor, how: GenerationSection, key: tuple[int | str, ...]
    ) -> Replies:
        """Answer every row of `batch`, whose `labels` are not looked at.

        All randomness is drawn from `key` and `how.seed`: equal keys, equal replies.
        """

    def figures(self, model: Any, batch: TurnBatch, memory: Tensor) -> Mapping[str, Tensor]:
        """What evaluation gathers beside the losses, `[A, ...]` by name (latent means, divergences)."""

    def summary(self, gathered: Mapping[str, Tensor]) -> Mapping[str, float]:
        """Evaluation figures from what `figures` gave for all examples, `[N, ...]`."""


@runtime_checkable
class Completing(Protocol):
    """A family whose examples need their neighbours, for negatives; others do without this method."""

    def complete(self, batch: TurnBatch, lanes: Tensor, keys: Sequence[tuple[int | str, ...]]) -> TurnBatch:
        """A timestep of the dispatcher with what can only be known of all rows together, on the CPU.

        It is done once, before the batch is cut into chunks or replayed.

        Args:
            lanes: `[A]` lane of each row.
            keys: per row what its randomness is drawn from: the same on any number of ranks, another in each
                epoch.
        """


@runtime_checkable
class Checking(Protocol):
    """A family that looks at the whole recipe of a training; others do without this method."""

    def check(self, recipe: FineTuneRecipe, world_size: int) -> None:
        """Called once before a training.

        Raises:
            UserError: something outside the family's own settings would undo them in silence.
        """


class TurnModel(Protocol):
    """What `TurnCell` asks of a model."""

    def read(self, batch: TurnBatch, memory: Tensor) -> Any:
        """Encode a turn: an output with `memory_states` `[A, slots, d_model]` float32 and `gate`."""

    def losses(self, read: Any, batch: TurnBatch, per_row: bool) -> Tensor:
        """Summed loss parts, `[K]`, or `[K, A]` `per_row`; 0-d or `[A]` where K is 1."""
