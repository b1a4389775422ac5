"""Dialogues through the synchronized dispatcher: a dialogue is the document, its target turns the segments.

The plan is that of pretraining, so its promises hold: every target turn once per epoch, in order, by one
agent, on any number of ranks and through any interruption; and no rank needs to hear from another.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from finetune.batch import Example, TurnBatch, collate
from finetune.dialogue.dialogue import Dialogue
from finetune.family import Completing, Family
from finetune.recipe import DialogueSection
from pretrain.corpus.shardset import Window
from pretrain.dispatch.plan import Plan
from pretrain.distributed import World
from pretrain.errors import CheckpointError

TURN = Window(size=3, overlap=0)
"""A window of one unit: the plan then counts turns where it would count windows of tokens."""

ORDERS = ("last", "first", "both")
"""Values of `data.targets` that are no names of roles."""


@dataclass(frozen=True)
class Unit:
    """What an agent follows from a reset to the next: a dialogue, and the turns of it that it answers."""

    dialogue: Dialogue
    turns: tuple[int, ...]


def units(dialogues: Sequence[Dialogue], family: Family, data: DialogueSection) -> list[Unit]:
    """Whole dialogues where memory is carried, single replies elsewhere; only what has a target."""
    found = []
    for dialogue in dialogues:
        for speaker in speakers(dialogue, data):
            turns = tuple(family.targets(dialogue, speaker))
            if data.memory == "carry":
                found += [Unit(dialogue, turns)] if turns else []
            else:
                found += [Unit(dialogue, (turn,)) for turn in turns]
    return found


def speakers(dialogue: Dialogue, data: DialogueSection) -> list[int]:
    """The roles whose turns are targets; a dialogue is passed once for each, a text by its only one."""
    if not dialogue.turns:
        return []
    if data.targets not in ORDERS:
        return [number for number, role in enumerate(dialogue.roles) if role == data.targets]
    opening = dialogue.turns[0].speaker
    others = sorted({turn.speaker for turn in dialogue.turns} - {opening})
    if data.targets == "first" or not others:
        return [opening]
    return others if data.targets == "last" else [*others, opening]


def data_hash(dialogues: Sequence[Dialogue]) -> str:
    """sha256 of all that dialogues say."""
    digest = hashlib.sha256()
    for dialogue in dialogues:
        digest.update(json.dumps(asdict(dialogue), sort_keys=True, default=str).encode())
    return digest.hexdigest()


@dataclass(frozen=True)
class _Shelf:
    name: str
    source: str
    documents: int
    tokens: int


class _Shelves:
    """Units as the planner sees a shard set: one shard, a unit's length being its turns."""

    def __init__(self, lengths: np.ndarray) -> None:
        self._lengths = lengths
        self.shards = (_Shelf("dialogues", "dialogues", len(lengths), int(lengths.sum())),)

    def select(self, split: str) -> Sequence[int]:
        return (0,)

    def lengths(self, shard: int) -> np.ndarray:
        return self._lengths


class TurnStream:
    """Batches of one rank; implements `pretrain.job.Stream`."""

    def __init__(
        self,
        units: Sequence[Unit],
        family: Family,
        data: DialogueSection,
        *,
        identity: str,
        seed: int,
        world: World,
        epochs: int | None = None,
    ) -> None:
        """`identity` names the data; `epochs` None never ends.

        Raises:
            UserError: no unit, or ranks that do not divide the lanes.
        """
        self._units, self._family, self._identity, self._seed = units, family, identity, seed
        self._plan = Plan(
            _Shelves(np.array([len(unit.turns) for unit in units], np.int64)),
            lanes=data.lanes,
            agents_per_lane=data.agents_per_lane,
            seed=seed,
            window=TURN,
            epochs=epochs,
            rank=world.rank,
            world_size=world.size,
        )
        agents = torch.arange(self._plan.rows) + self._plan.lanes.start * data.agents_per_lane
        self.lane: Tensor = agents // data.agents_per_lane

    def __iter__(self) -> Iterator[TurnBatch]:
        return self

    def __next__(self) -> TurnBatch:
        step = self._plan.step()
        if step is None:
            raise StopIteration
        examples: list[Example | None] = []
        for document, segment in zip(step.document.tolist(), step.segment.tolist(), strict=True):
            if document < 0:
                examples.append(None)
                continue
            unit = self._units[document]
            examples.append(self._family.example(unit.dialogue, unit.turns[segment]))
        batch = collate(examples, step.resets.tolist(), self._family.pads, self._family.numbers)
        if not isinstance(self._family, Completing):
            return batch
        keys = [
            (self._seed, epoch, example.about.dialogue, example.about.turn) if example else ("dry",)
            for epoch, example in zip(step.epoch.tolist(), examples, strict=True)
        ]
        return self._family.complete(batch, self.lane, keys)

    def state_dict(self) -> dict[str, Any]:
        """Where this rank's lanes stand: small JSON; states of ranks are joined by `plan.merge_states`."""
        return {"identity": {"dialogues": self._identity}, **self._plan.state()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where `state` was taken, on any number of ranks.

        Raises:
            CheckpointError: it belongs to other dialogues.
        """
        if state["identity"] != {"dialogues": self._identity}:
            raise CheckpointError(
                "the data position belongs to other dialogues",
                where="dispatcher state",
                mend="give the same data.sources, or start a new run",
            )
        self._plan.load(state)

    def close(self) -> None:
        """Nothing is held."""
