"""Negatives: the fact sheet's tests 2 and 3, and that neither ranks, chunks nor epochs disturb them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import chisquare

from finetune.families.ki.layout import hashes_of
from finetune.families.ki.negatives import draw
from finetune.families.ki.objective import ALONE, ANCHOR, NEGATIVE, NO_ANCHOR, PAIRED, POSITIVE
from finetune.knowledge.annotations import annotated_turns
from finetune.stream import TurnStream, data_hash, units
from pretrain.distributed import World
from tests.support import annotated, ki

ITEMS = np.array([[1, 2, -1, 1], [3, -1, 4, 2], [5, 6, 7, -1]])
VALID = ITEMS >= 0
ONE_GROUP = np.zeros(3, np.int64)


def keys(rows: int, *more: int) -> list[tuple[int | str, ...]]:
    return [(*more, "row", row) for row in range(rows)]


@pytest.fixture(scope="module")
def drawn() -> list[np.ndarray]:
    return [draw(ITEMS, VALID, ONE_GROUP, keys(3, number)) for number in range(1000)]


def test_a_negative_is_of_another_row_has_another_item_and_is_valid(drawn):  # 2
    places = np.argwhere(VALID)
    for found in drawn:
        assert (found[~VALID] == -1).all()
        donors = found[VALID]
        assert (donors >= 0).all()
        assert (donors // 4 != places[:, 0]).all()
        assert VALID.ravel()[donors].all()
        assert (ITEMS.ravel()[donors] != ITEMS[VALID]).all()


def test_every_allowed_donor_is_as_likely(drawn):  # 2
    chosen = [int(found[0, 1]) for found in drawn]
    counts = [chosen.count(place) for place in (4, 6, 8, 9, 10)]  # not 7, whose item is the anchor's
    assert sum(counts) == 1000
    assert chisquare(counts).pvalue > 1e-3


def test_rejected_draws_end_in_an_exact_choice():
    items = np.full((2, 512), 5)
    items[1, -2:] = 6, 7
    found = draw(items, items >= 0, np.zeros(2, np.int64), keys(2))
    chosen, counts = np.unique(found[0], return_counts=True)
    assert chosen.tolist() == [1022, 1023]
    assert counts.min() > 150
    assert (found[1, :-2] == -1).all()
    assert all(donor in range(512) for donor in found[1, -2:])


def test_equal_keys_draw_equal_negatives_and_other_keys_others():
    items = np.arange(80).reshape(4, 20)
    group = np.zeros(4, np.int64)
    first, again, other = (draw(items, items >= 0, group, keys(4, n)) for n in (1, 1, 2))
    assert (first == again).all()
    assert (first != other).any()


def test_the_authors_pair_rows_half_a_batch_apart_at_one_place():
    items = np.array([[1, 2, 3], [4, 5, -1], [1, 7, 8], [9, -1, 6], [2, 2, 2]])
    found = draw(items, items >= 0, np.zeros(5, np.int64), keys(5), "halves")
    assert found.tolist() == [[-1, 7, 8], [9, -1, -1], [-1, 1, 2], [3, -1, -1], [-1, -1, -1]]


@pytest.mark.parametrize("rows", ["one", "equal"])
def test_without_a_negative_there_is_no_loss_and_it_is_counted(rows):  # 3
    which, model = ki.built()
    batch = ki.batch(which, 1 if rows == "one" else 4, complete=False)
    lanes = torch.zeros(len(batch.labels), dtype=torch.long)
    if rows == "equal":
        ids = batch.tensors["knowledge_ids"]
        ids[ids >= 0] = 0
    completed = which.complete(batch, lanes, keys(len(lanes)))
    anchors = int((completed.ki_anchor != NO_ANCHOR).sum())
    assert anchors > 0
    assert int((completed.ki_anchor == ALONE).sum()) == anchors
    losses, _, _ = which.cell(model)(completed, ki.memory(which, model, len(lanes)), (1,))
    losses.sum().backward()
    parts, counts = (
        dict(zip(which.parts, x.tolist(), strict=True)) for x in (losses, which.count(completed))
    )
    assert parts["ki"] == 0
    assert parts["ki_alone"] == anchors == counts["ki_alone"]
    assert all(bool(p.grad.isfinite().all()) for p in model.parameters() if p.grad is not None)
    assert not any(bool(p.grad.any()) for p in model.ki_head.parameters())


def test_items_of_one_sentence_are_no_negatives_of_each_other(tmp_path: Path):  # 2
    vocabulary: dict[str, int] = {}
    turns = [(one, turn) for one in ki.TALK for turn in annotated_turns(one)]
    rows = [(one, turn, ki.known(one.turns[turn].text, vocabulary)) for one, turn in turns]
    size = len(vocabulary)
    annotated.write(tmp_path / "known", rows, ki.unit(size), ["One sentence."] * size)
    which, _ = ki.built(knowledge=str(tmp_path / "known"))
    kind = ki.batch(which).ki_anchor
    assert bool((kind == ALONE).any())
    assert not bool((kind == PAIRED).any())


def test_padding_and_dry_rows_are_no_anchors():  # 4
    which, _ = ki.built()
    batch = ki.batch(which, 3, dry=1)
    padding = batch.attention_mask == 0
    assert bool(padding[:3].any())
    assert bool(padding[3].all())
    assert not bool(batch.ki_anchor[padding].any())


def test_keys_of_the_batch_are_those_of_its_items_and_of_other_ones():
    which, _ = ki.built()
    plain = ki.batch(which, complete=False)
    ids = plain.knowledge_ids.numpy()
    batch = ki.batch(which)
    assert "knowledge_ids" not in batch.tensors
    annotations = which.layout.annotations
    assert annotations is not None
    paired = batch.ki_anchor.numpy() == PAIRED
    assert (paired == (ids >= 0)).all()
    assert (batch.tensors[POSITIVE].numpy()[paired] == annotations.keys[ids[paired]]).all()
    wrong = batch.tensors[NEGATIVE].numpy()[paired]
    assert all((annotations.keys == row).all(axis=1).any() for row in wrong)
    assert not (wrong == batch.tensors[POSITIVE].numpy()[paired]).all(axis=1).any()
    assert (batch.tensors[POSITIVE].numpy()[~paired] == 0).all()
    assert len(set(hashes_of(annotations, ids)[paired].tolist())) > 2


def stream(which: Any, rank: int, size: int) -> TurnStream:
    found = units(ki.TALK, which, which.data)
    world = World(rank, size, rank, "localhost", 1)
    return TurnStream(found, which, which.data, identity=data_hash(ki.TALK), seed=5, world=world, epochs=None)


def test_ranks_do_not_change_negatives_and_epochs_do():
    which, _ = ki.built()
    alone, halves = stream(which, 0, 1), [stream(which, rank, 2) for rank in range(2)]
    seen: dict[str, list[Any]] = {}
    for _ in range(40):
        whole, parts = next(alone), [next(half) for half in halves]
        for rank, part in enumerate(parts):
            for row in range(2):
                mine = whole.tensors[NEGATIVE][2 * rank + row]
                width = min(len(mine), part.tensors[NEGATIVE].shape[1])
                assert torch.equal(mine[:width], part.tensors[NEGATIVE][row, :width])
        for row, example in enumerate(whole.examples):
            if example is not None:
                name = f"{example.about.dialogue} {example.about.turn}"
                seen.setdefault(name, []).append(whole.tensors[NEGATIVE][row])
    again = [tensors for tensors in seen.values() if len(tensors) > 1]
    assert again
    assert any(a.shape != b.shape or not torch.equal(a, b) for a, b, *_ in again)
    assert all(ANCHOR in next(half).tensors for half in halves)
