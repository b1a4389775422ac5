"""Dialogues through the dispatcher: every target turn once, in order, by one agent, on any world."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import pytest
import torch

from finetune.families.membart import Family, MemBartSettings
from finetune.recipe import DialogueSection
from finetune.stream import TurnStream, data_hash, speakers, units
from pretrain.dispatch.plan import merge_states
from pretrain.distributed import World
from pretrain.errors import CheckpointError
from tests.support import dialogues as made

DIALOGUES = made.dialogues(17, seed=3)


def section(**changes: Any) -> DialogueSection:
    return DialogueSection(**{"lanes": 4, "agents_per_lane": 2, "context_tokens": 32, **changes})


def family(data: DialogueSection) -> Family:
    from transformers import AutoTokenizer

    return Family(MemBartSettings(), data, AutoTokenizer.from_pretrained(made.tokenizer_folder()), 10)


def stream(
    rank: int = 0, size: int = 1, epochs: int | None = 1, data: DialogueSection | None = None
) -> TurnStream:
    data = data or section()
    which = family(data)
    return TurnStream(
        units(DIALOGUES, which, data),
        which,
        data,
        identity=data_hash(DIALOGUES),
        seed=5,
        world=World(rank, size, rank, "localhost", 1),
        epochs=epochs,
    )


Row = tuple[str, int, int]


def rows(batch: Any) -> list[Row | None]:
    """(dialogue, turn, reset) of each row."""
    resets = batch.memory_resets.tolist()
    return [
        (e.about.dialogue, e.about.turn, reset) if e else None
        for e, reset in zip(batch.examples, resets, strict=True)
    ]


def together(batches: Iterable[Any]) -> list[Row | None]:
    """Rows of all ranks, in rank order."""
    return [row for batch in batches for row in rows(batch)]


def test_an_epoch_gives_every_target_turn_once_in_order_to_one_agent() -> None:
    followed: dict[str, list[tuple[int, int, int]]] = defaultdict(list)
    for batch in stream():
        for agent, row in enumerate(rows(batch)):
            if row is not None:
                followed[row[0]].append((row[1], row[2], agent))
    assert set(followed) == {dialogue.id for dialogue in DIALOGUES}
    for dialogue in DIALOGUES:
        turns = followed[dialogue.id]
        assert [turn for turn, _, _ in turns] == list(range(1, len(dialogue.turns), 2))
        assert [reset for _, reset, _ in turns] == [1] + [0] * (len(turns) - 1)
        assert len({agent for _, _, agent in turns}) == 1


@pytest.mark.parametrize("size", [2, 4])
def test_the_ranks_rows_together_are_the_rows_of_one(size: int) -> None:
    alone = [rows(batch) for batch in stream()]
    ranks = [list(stream(rank, size)) for rank in range(size)]
    assert [together(step) for step in zip(*ranks, strict=True)] == alone


def test_a_stopped_stream_goes_on_at_another_world_size() -> None:
    whole = stream(epochs=None)
    expected = [rows(next(whole)) for _ in range(20)]
    pair = [stream(rank, 2, epochs=None) for rank in range(2)]
    for _ in range(7):
        for part in pair:
            next(part)
    state = json.loads(json.dumps(merge_states([part.state_dict() for part in pair])))
    resumed = [stream(rank, 4, epochs=None) for rank in range(4)]
    for part in resumed:
        part.load_state_dict(state)
    for number in range(7, 20):
        assert together(next(part) for part in resumed) == expected[number]


def test_without_carried_memory_every_reply_stands_alone() -> None:
    data = section(memory="reset")
    seen = [row for batch in stream(data=data) for row in rows(batch) if row]
    assert all(reset == 1 for _, _, reset in seen)
    assert len(seen) == len(set(seen)) == sum(len(d.turns) // 2 for d in DIALOGUES)


def test_both_roles_pass_a_dialogue_twice() -> None:
    data = section(targets="both")
    turns = {(row[0], row[1]) for batch in stream(data=data) for row in rows(batch) if row}
    assert turns == {(d.id, turn) for d in DIALOGUES for turn in range(len(d.turns))}


def test_a_role_that_the_dialogues_name_can_be_the_target() -> None:
    talk = replace(DIALOGUES[0], roles=("apprentice", "wizard"))
    assert speakers(talk, section(targets="wizard")) == [1]
    assert speakers(talk, section(targets="apprentice")) == [0]
    assert speakers(talk, section(targets="guide")) == []


def test_a_dry_row_is_padding_without_loss() -> None:
    batches = list(stream())
    batch, row = next((batch, row) for batch in batches for row, e in enumerate(batch.examples) if e is None)
    assert batch.attention_mask[row].sum() == 0
    assert torch.all(batch.labels[row] == -100)
    assert batch.memory_resets[row] == 1


def test_the_position_of_other_dialogues_is_refused() -> None:
    state = stream().state_dict()
    state["identity"] = {"dialogues": data_hash(DIALOGUES[:-1])}
    with pytest.raises(CheckpointError, match="other dialogues"):
        stream().load_state_dict(state)
