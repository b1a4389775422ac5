"""Decoding (number 17 of the fact sheet's tests)."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from finetune.batch import TurnBatch, collate
from finetune.dialogue.dialogue import Dialogue, Turn
from finetune.families.fusion import search
from finetune.families.fusion.writing import Writer
from finetune.recipe import GenerationSection
from pretrain.errors import UserError
from pretrain.model.loss import IGNORED
from tests.support import fusion
from tests.support.fusion import METHODS

END = 0


class Table:
    """A language whose next word depends on the last alone; row 0 of the table begins."""

    def __init__(self, table: list[list[float]], rows: int = 1) -> None:
        self.scores = torch.tensor(table).log()
        self.rows = rows

    def start(self) -> Tensor:
        return self.scores[0].expand(self.rows, -1)

    def step(self, rows: Tensor, tokens: Tensor) -> Tensor:
        return self.scores[tokens]


# After the start: 1 or 2. After 1: the end is unlikely, 2 likely. After 2: the end is likely.
WORDS = [[0.1, 0.5, 0.4], [0.3, 0.1, 0.6], [0.8, 0.1, 0.1]]
RANDOM = torch.softmax(3 * torch.randn(7, 7, generator=torch.Generator().manual_seed(4)), dim=1).tolist()


def best_by_hand(table: list[list[float]], most: int, alpha: float) -> tuple[tuple[int, ...], float]:
    """Every reply of at most `most` tokens, tried."""
    scores = torch.tensor(table).log()
    found: list[tuple[float, tuple[int, ...]]] = []

    def walk(ids: tuple[int, ...], total: float) -> None:
        last = ids[-1] if ids else 0
        if ids and (last == END or len(ids) == most):
            words = ids[:-1] if last == END else ids
            found.append((total / search.penalty(len(ids), alpha), words))
            return
        for token in range(len(table)):
            walk((*ids, token), total + float(scores[last, token]))

    walk((), 0.0)
    score, words = max(found)
    return words, score


def test_length_penalty_is_that_of_wu_et_al():
    assert [search.penalty(n, 0.6) for n in (1, 8, 32)] == pytest.approx([1, 1.590, 2.979], abs=5e-4)


@pytest.mark.parametrize("alpha", [0.0, 0.6, 2.0])
def test_beams_find_the_best_reply_there_is(alpha: float):
    found = search.beams(Table(WORDS), 3, 4, END, alpha)[0][0]
    words, score = best_by_hand(WORDS, 4, alpha)
    assert found == search.Hypothesis(words, pytest.approx(score, abs=1e-5))
    narrow = search.beams(Table(RANDOM), 3, 4, END, alpha)[0][0]
    assert narrow.score <= best_by_hand(RANDOM, 4, alpha)[1] + 1e-5


def test_beams_are_different_replies_in_order():
    found = search.beams(Table(RANDOM), 5, 6, END, 0.6, wanted=5)[0]
    assert len({one.ids for one in found}) == len(found) == 5
    assert [one.score for one in found] == sorted((one.score for one in found), reverse=True)


def test_one_beam_is_the_likeliest_word_each_time():
    for table in (WORDS, RANDOM):
        scores, said, last = torch.tensor(table), [], 0
        for _ in range(5):
            last = int(scores[last].argmax())
            if last == END:
                break
            said.append(last)
        assert search.beams(Table(table), 1, 5, END, 0.6)[0][0].ids == tuple(said)


def test_rows_do_not_wait_for_each_other():
    both = search.beams(Table(WORDS, rows=2), 3, 6, END, 0.6)
    assert both[0] == both[1] == search.beams(Table(WORDS), 3, 6, END, 0.6)[0]


def test_the_authors_beams_collapse_to_copies():
    found = search.authors_beams(Table(WORDS), 3, 8, END, 0.6)[0]
    assert len({one.ids for one in found}) == 1
    assert len(found) == 3


def test_what_the_authors_cut_loses_its_last_token():
    endless = [[0.0001, 0.9, 0.0999], [0.0001, 0.9, 0.0999], [0.0001, 0.9, 0.0999]]
    assert search.authors_beams(Table(endless), 2, 4, END, 0.6)[0][0].ids == (1, 1, 1)
    assert search.beams(Table(endless), 2, 4, END, 0.6)[0][0].ids == (1, 1, 1, 1)


def test_draws_end_at_the_end_and_stand_in_order():
    torch.manual_seed(0)

    def choose(written: Tensor, scores: Tensor) -> Tensor:
        return torch.multinomial(scores.exp(), 1)[:, 0]

    found = search.draws(Table(RANDOM, rows=2), 6, 5, END, 0.6, choose)
    for row in found:
        assert [one.score for one in row] == sorted((one.score for one in row), reverse=True)
        for one in row:
            assert END not in one.ids
            ids = [*one.ids, END][:5]
            scores = torch.tensor(RANDOM).log()
            total = sum(float(scores[a, b]) for a, b in zip([0, *ids], ids, strict=False))
            assert one.score == pytest.approx(total / search.penalty(len(ids), 0.6), abs=1e-4)


# --- on the model ---


@pytest.mark.parametrize("kind", ["gpt2", "membart"])
@pytest.mark.parametrize("method", [*METHODS, "single"])
def test_cached_scores_are_those_of_the_whole_reply(kind: str, method: str):
    settings = {"inputs": "single", "fusion": "none"} if method == "single" else {"fusion": method}
    which, model = fusion.built(kind, **settings)
    batch = fusion.batch(which)
    labels = batch.labels.masked_fill(batch.labels == IGNORED, 5)
    whole = TurnBatch({**batch.tensors, "labels": labels}, batch.examples)
    wanted = torch.log_softmax(fusion.logits(which, model, whole), dim=-1)
    writer = Writer(model, fusion.contexts(which, model, batch), batch)
    with torch.no_grad():
        found = [writer.start()]
        for place in range(labels.shape[1] - 1):
            found.append(writer.step(torch.arange(3), labels[:, place]))
        assert torch.allclose(torch.stack(found, dim=1), wanted, atol=1e-4)


@pytest.mark.parametrize("method", ["att", "sw"])
def test_beams_follow_the_rows_that_they_grew_from(method: str):
    which, model = fusion.built(fusion=method)
    batch = fusion.batch(which)
    writer = Writer(model, fusion.contexts(which, model, batch), batch)
    with torch.no_grad():
        writer.start()
        rows, tokens = [2, 0, 2], [5, 6, 7]
        first = writer.step(torch.tensor(rows), torch.tensor(tokens))
        # Places 0 and 2, beams of one row, change.
        then = writer.step(torch.tensor([2, 1, 0]), torch.tensor([8, 9, 10]))
        for place, (row, token) in enumerate(zip(rows, tokens, strict=True)):
            alone = Writer(model, fusion.contexts(which, model, batch), batch)
            alone.start()
            assert torch.allclose(
                first[place], alone.step(torch.tensor([row]), torch.tensor([token]))[0], atol=1e-5
            )
            here = 2 - place
            after = alone.step(torch.tensor([0]), torch.tensor([8 + here]))
            assert torch.allclose(then[here], after[0], atol=1e-5)


def how(**changes: Any) -> GenerationSection:
    return GenerationSection(**{"beams": 3, "length_penalty": 0.6, "max_new_tokens": 5, **changes})


@pytest.mark.parametrize("kind", ["gpt2", "membart"])
def test_replies_do_not_depend_on_the_batch_and_dry_rows_have_none(kind: str):
    which, model = fusion.built(kind)
    batch = fusion.batch(which, dry=1)
    for wanted in (how(), how(sample=True, replies=2), how(beams=2, replies=2)):
        texts = which.generate(model, batch, fusion.memory(which, model, 4), wanted, ("x",)).texts
        one = which.generate(
            model, batch.rows(slice(1, 2)), fusion.memory(which, model, 1), wanted, ("y",)
        ).texts
        assert texts[1] == one[0]
        assert texts[3] == []
        assert all(len(row) == wanted.replies for row in texts[:3])


def test_replies_are_never_longer_than_allowed_and_an_empty_history_is_answered():
    first = Dialogue("d", (Turn(0, "hello"),))
    for mode in ("standard", "authors"):
        which, model = fusion.built("gpt2", beam=mode)
        batch = collate([which.example(first, 0)], [1], which.pads, which.numbers)
        read = model.read(batch, fusion.memory(which, model, 1))
        found = which.search(model, read, batch, how())[0]
        assert all(len(one.ids) <= 5 for one in found)
        assert all(one.score < 0 for one in found)


def test_beam_search_with_a_penalty_of_repetitions_is_refused():
    which, model = fusion.built()
    batch = fusion.batch(which)
    with pytest.raises(UserError, match="no penalty of repetitions"):
        which.generate(model, batch, fusion.memory(which, model, 3), how(repetition_penalty=1.5), ("x",))
