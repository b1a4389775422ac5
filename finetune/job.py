"""A fine-tune as a job of the one trainer; see `pretrain.job.Job`."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from finetune import backbone, stream, validate
from finetune.backbone import Backbone
from finetune.batch import Example, TurnBatch, collate
from finetune.configuration import settings_of
from finetune.dialogue.dialogue import Dialogue
from finetune.dialogue.load import load
from finetune.families import family_class
from finetune.family import Checking, Family
from finetune.recipe import FineTuneRecipe
from finetune.stream import TurnStream, Unit
from pretrain import engine, preflight, replay
from pretrain.checkpoint import Checkpoint
from pretrain.corpus.documents import Reject
from pretrain.corpus.tokenizer import TOKENIZER_FOLDER
from pretrain.distributed import World
from pretrain.errors import UserError
from pretrain.files import write_atomically
from pretrain.page import Section
from pretrain.recipe import RECIPE_FILE
from pretrain.report import save_section


@dataclass(frozen=True)
class Data:
    """Dialogues of one split as units of training."""

    dialogues: tuple[Dialogue, ...]
    units: tuple[Unit, ...]
    rejected: tuple[Reject, ...]
    """Malformed records that were left out."""

    @property
    def turns(self) -> int:
        """Replies of one pass."""
        return sum(len(unit.turns) for unit in self.units)

    @property
    def left_out(self) -> str:
        """What a person should know of the malformed records; `membart data inspect` names more of them."""
        if not self.rejected:
            return ""
        first = self.rejected[0]
        return f"malformed records left out: {len(self.rejected):,}, the first {first.place}: {first.why}"

    def __str__(self) -> str:
        found = f"{len(self.dialogues):,} dialogues, {self.turns:,} replies"
        return f"{found}; {self.left_out}" if self.rejected else found


class FineTuning:
    """A checked recipe with its family, backbone and dialogues."""

    def __init__(self, recipe: FineTuneRecipe, world_size: int) -> None:
        """Check everything that can be checked before a model is built.

        Raises:
            UserError: the first thing that does not fit.
        """
        preflight.check_layout(recipe, world_size)
        self._resume = preflight.check_run_folder(recipe)
        self.tokenizer, self._backbone = _start(recipe, self._resume)
        self.family = make_family(recipe, self.tokenizer)
        if isinstance(self.family, Checking):
            self.family.check(recipe, world_size)
        self.train = read(recipe, self.family, "train")
        self.validation = read(recipe, self.family, "valid")
        self.recipe = _with_steps(recipe, self.train)
        if self.recipe.train.steps != recipe.train.steps:  # schedules of the family need them all
            self.family = make_family(self.recipe, self.tokenizer)
        self._deepspeed = engine.resolve_config(self.recipe, world_size)
        if self._resume is not None and self._resume.state["shard_set"] != self.data_hash:
            raise UserError(
                f"{self._resume.path.name} was trained on other dialogues",
                where=str(recipe.run_dir),
                mend="give the same data.sources, or another name",
            )
        self._weights: Any = None

    @property
    def deepspeed(self) -> dict[str, Any]:
        return self._deepspeed

    @cached_property
    def data_hash(self) -> str:
        return stream.data_hash(self.train.dialogues)

    @property
    def parts(self) -> tuple[str, ...]:
        return self.family.parts

    @property
    def parent_run(self) -> str | None:
        """MLflow run of the pretraining that the backbone came from."""
        return self._backbone.tracking_run if self._backbone else None

    @cached_property
    def model(self) -> Any:
        """The model as it starts, in float32 on the CPU; equal on every rank."""
        replay.seed(self.recipe.train.seed, "model")
        if self._resume is not None:
            model = empty_model(self.family, self._resume)
        else:
            assert self._backbone is not None
            model, self._weights = self.family.build(self._backbone)
        self.family.prepare(model)
        return model

    @property
    def opening(self) -> str:
        """What a person should know at the start: what of the data was left out, where weights came from."""
        pairs = (("train", self.train), ("validation", self.validation))
        left_out = [f"{split}: {data.left_out}" for split, data in pairs if data.rejected]
        return "\n".join([*left_out, self._weights_text])

    @property
    def _weights_text(self) -> str:
        return self._weights.text if self._weights else f"{self.recipe.name}: resumes its own weights"

    @property
    def memory_shape(self) -> tuple[int, int]:
        return self.family.memory_shape(self.model)

    def cell(self) -> nn.Module:
        return self.family.cell(self.model)

    def stream(self, split: str, world: World) -> TurnStream:
        training = split == "train"
        return TurnStream(
            (self.train if training else self.validation).units,
            self.family,
            self.recipe.data,
            identity=self.data_hash,
            seed=self.recipe.train.seed,
            world=world,
            epochs=None if training else 1,
        )

    def worst_batch(self, world: World) -> TurnBatch:
        """Every row the longest of the last turns of some dialogues, where histories are longest."""
        ends = [
            (unit.dialogue, unit.turns[-1]) for unit in self.train.units[:: len(self.train.units) // 200 + 1]
        ]
        longest = max(
            (self.family.example(dialogue, turn) for dialogue, turn in ends),
            key=_size,
        )
        agents = self.recipe.agents // world.size
        return collate([longest] * agents, [0] * agents, self.family.pads, self.family.numbers)

    def count(self, batch: TurnBatch) -> Tensor:
        return self.family.count(batch)

    def part_weights(self, update: int) -> Tensor:
        return self.family.part_weights(update)

    def rates(self, update: int) -> Mapping[str, float]:
        return self.family.rates(update)

    def validate(self, cell: Callable[..., Any], world: World) -> validate.Validation:
        return validate.validate(
            cell,
            self.stream("validation", world),
            self.family,
            self.part_weights(self.recipe.train.steps),
            world,
            memory_shape=self.memory_shape,
            carried=self.recipe.data.memory == "carry" and self.memory_shape[0] > 0,
            max_timesteps=self.recipe.validation.max_timesteps,
        )

    def segment_flops(self, model: Any) -> None:
        """Not counted: families differ too much for one formula."""

    def facts(self, position: Mapping[str, Any]) -> dict[str, Any]:
        return {"family": self.recipe.family, "backbone": self.recipe.backbone}

    def begin_folder(self) -> None:
        folder = self.recipe.run_dir
        folder.mkdir(parents=True, exist_ok=True)
        write_atomically(folder / RECIPE_FILE, self.recipe.settled().to_yaml())
        self.tokenizer.save_pretrained(folder / TOKENIZER_FOLDER)
        if self._weights is not None:
            self._weights.save(folder)
            save_section(folder, "weights", Section("Where the weights come from", self._weights.text))

    def tags(self) -> dict[str, str]:
        return {"family": self.recipe.family, "data_hash": self.data_hash, "backbone": self.recipe.backbone}

    def describe(self) -> str:
        """What a dry run prints: weights, sizes, data, steps."""
        model = self.model
        counts = [(p.numel(), p.requires_grad) for p in model.parameters()]
        data, recipe = self.recipe.data, self.recipe
        rows = [
            ("recipe", f"{recipe.name} ({recipe.hash()[:12]}), family {recipe.family}"),
            (
                "run folder",
                f"{recipe.run_dir}" + (f", resumes at {self._resume.update}" if self._resume else ""),
            ),
            ("parameters", f"{sum(n for n, _ in counts):,} ({sum(n for n, t in counts if t):,} train)"),
            ("memory", f"{data.memory}, {self.memory_shape[0]} slots"),
            ("agents", f"{recipe.agents} = {data.lanes} lanes x {data.agents_per_lane}"),
            ("train", str(self.train)),
            ("validation", str(self.validation)),
            ("steps", f"{recipe.train.steps:,} of {recipe.replay.horizon} timesteps"),
        ]
        table = "\n".join(f"{label:>12}  {value}" for label, value in rows)
        return f"{table}\n{self._weights_text}"


def _size(example: Example) -> int:
    """Tokens of all its sequences."""
    return sum(len(field) for field in example.fields.values() if isinstance(field, Sequence))


def make_family(recipe: FineTuneRecipe, tokenizer: PreTrainedTokenizerBase) -> Family:
    """The family of a recipe with its settings checked.

    Raises:
        UserError: no such family, or settings it does not have.
    """
    found = family_class(recipe.family)
    settings = settings_of(found.Settings, recipe.model, "model", f"family {recipe.family}")
    family: Family = found(settings, recipe.data, tokenizer, recipe.train.steps)
    return family


def read(recipe: FineTuneRecipe, family: Family, split: str) -> Data:
    """The dialogues of a split and the units that training makes of them.

    Raises:
        UserError: nothing there, or too much of it malformed.
    """
    data = recipe.data
    if not data.sources:
        raise UserError("no dialogues to learn from", where=recipe.name, mend="--data NAME:PATH")
    limit = data.max_dialogues
    if split != "train" and data.validation_dialogues:
        limit = data.validation_dialogues
    dialogues: list[Dialogue] = []
    rejected: list[Reject] = []
    for source in data.sources:
        found = load(source, split, max_rejected=data.max_rejected)
        dialogues += list(found)[:limit]
        rejected += found.rejected
    made = stream.units(dialogues, family, data)
    if not made:
        raise _nothing_to_learn(recipe, dialogues, split)
    return Data(tuple(dialogues), tuple(made), tuple(rejected))


def _nothing_to_learn(recipe: FineTuneRecipe, dialogues: Sequence[Dialogue], split: str) -> UserError:
    where, targets = ", ".join(recipe.data.sources), recipe.data.targets
    roles = sorted({role for dialogue in dialogues for role in dialogue.roles})
    if targets not in (*stream.ORDERS, *roles):
        return UserError(
            f"nobody is called '{targets}' in the {split} split",
            where=where,
            mend=f"data.targets: one of {', '.join((*stream.ORDERS, *roles))}",
        )
    return UserError(
        f"no reply to learn in the {split} split",
        where=where,
        mend=f"check data.targets, and what the family {recipe.family} asks of a reply",
    )


def empty_model(family: Family, saved: Checkpoint) -> Any:
    """The model of a checkpoint with weights of no meaning."""
    content = json.loads((saved.path / "config.json").read_text(encoding="utf-8"))
    return family.model_class(family.model_class.config_class.from_dict(content))


def _start(
    recipe: FineTuneRecipe, resume: Checkpoint | None
) -> tuple[PreTrainedTokenizerBase, Backbone | None]:
    """Tokenizer and backbone; a resumed run needs neither its backbone nor the place it was."""
    if resume is None:
        found = backbone.find(recipe.backbone, recipe.tokenizer)
        return found.tokenizer, found
    kept = backbone.tokenizer_of(str(recipe.run_dir / TOKENIZER_FOLDER))
    try:
        return kept, backbone.find(recipe.backbone, recipe.tokenizer)
    except UserError:
        return kept, None


def _with_steps(recipe: FineTuneRecipe, data: Data) -> FineTuneRecipe:
    if recipe.data.epochs is None:
        return recipe
    steps = math.ceil(recipe.data.epochs * data.turns / (recipe.agents * recipe.replay.horizon))
    return recipe.model_copy(update={"train": recipe.train.model_copy(update={"steps": steps})})


__all__: Sequence[str] = ("Data", "FineTuning", "empty_model", "make_family", "read")
