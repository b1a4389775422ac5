"""The body that selects knowledge: what it scores, what it writes from, what evaluation gets to see."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from finetune.batch import TurnBatch, collate
from finetune.dialogue import jsonl
from finetune.dialogue.dialogue import Dialogue, Turn
from finetune.evaluate import evaluate
from finetune.fitted import Fitted
from finetune.metrics.catalogue import METRICS
from finetune.metrics.prediction import Prediction
from finetune.metrics.resources import Resources
from finetune.recipe import FineTuneRecipe, GenerationSection
from finetune.results import table
from pretrain import recipe as recipes
from tests.support import dialogues as made
from tests.support import ki

TALK = ki.grounded()
ONE = GenerationSection(beams=1, max_new_tokens=4)


@pytest.fixture(scope="module")
def selector() -> tuple[Any, Any]:
    return ki.built("diffks", knowledge=None)


def read(selector: tuple[Any, Any], batch: TurnBatch) -> Any:
    which, model = selector
    return model.read(batch, ki.memory(which, model, len(batch.labels)))


def batch_of(which: Any, *dialogues: Dialogue) -> TurnBatch:
    examples = [which.example(one, len(one.turns) - 1) for one in dialogues]
    return collate(examples, [1] * len(examples), which.pads, which.numbers)


def test_candidates_begin_with_none_of_them(selector):
    which, _ = selector
    fields = which.example(TALK[0], len(TALK[0].turns) - 1).fields
    rows = torch.tensor(fields["sentence_ids"]).view(-1, 8)
    eos, pad = which.text.eos, which.text.pad
    assert rows[0].tolist() == [eos, *[pad] * 7]
    sentences = TALK[0].turns[-1].knowledge
    assert [which.text.clean(row[row != pad].tolist()) for row in rows[1:]] == [
        which.text.clean(list(which.text.ids(sentence))[:8]) for sentence in sentences
    ]
    assert fields["chosen"] == TALK[0].turns[-1].chosen + 1


def test_what_was_said_from_before_comes_latest_first(selector):
    which, _ = selector
    dialogue = next(one for one in TALK if len(one.turns) >= 6)
    before = torch.tensor(which.example(dialogue, 5).fields["before_ids"]).view(2, 8)
    for row, turn in zip(before, (dialogue.turns[3], dialogue.turns[1]), strict=True):
        assert row[row != which.text.pad].tolist() == list(which.text.ids(turn.knowledge[turn.chosen]))[:8]
    first = torch.tensor(which.example(dialogue, 1).fields["before_ids"])
    assert (first == which.text.pad).all()


def test_a_reply_from_nothing_known_has_none_of_them_as_answer(selector):
    which, _ = selector
    turns = TALK[0].turns
    for change in ({"chosen": None}, {"knowledge": (), "chosen": None}):
        blank = replace(TALK[0], turns=(*turns[:-1], replace(turns[-1], **change)))
        assert which.example(blank, len(turns) - 1).fields["chosen"] == 0


def test_sentences_that_do_not_fit_are_left_out():
    which = ki.family("diffks", knowledge=None, config={**ki.SHAPES["diffks"], "sentences": 3})
    turns = TALK[0].turns
    found = {
        chosen: which.example(
            replace(TALK[0], turns=(*turns[:-1], replace(turns[-1], chosen=chosen))), len(turns) - 1
        )
        for chosen in range(3)
    }
    assert [one.fields["chosen"] for one in found.values()] == [1, 2, 0]
    assert len(found[0].fields["sentence_ids"]) == 3 * 8


def test_scores_do_not_see_padding_nor_neighbours(selector):
    which, _ = selector
    fewer = replace(
        TALK[0], turns=(*TALK[0].turns[:-1], replace(TALK[0].turns[-1], knowledge=("i sing.",), chosen=0))
    )
    alone, both = (
        read(selector, batch_of(which, fewer)).scores,
        read(selector, batch_of(which, fewer, TALK[1])).scores,
    )
    assert alone.shape[1] < both.shape[1] == 4
    assert torch.allclose(alone[0], both[0, : alone.shape[1]], rtol=1e-4, atol=1e-5)
    assert (both[0, 2:] == torch.finfo(both.dtype).min).all()


def test_scores_of_sentences_follow_them_when_they_change_places(selector):
    which, _ = selector
    turns = TALK[0].turns
    first = replace(turns[1], knowledge=(), chosen=None)
    plain = Dialogue("p", (turns[0], first))
    sentences = ("i sing.", "coffee is a drink.", "a band plays.")
    orders = (sentences, sentences[::-1])
    scores = [
        read(
            selector, batch_of(which, replace(plain, turns=(turns[0], replace(first, knowledge=order))))
        ).scores[0, 1:]
        for order in orders
    ]
    assert torch.allclose(
        scores[0], scores[1].flip(0), rtol=1e-4, atol=1e-5
    )  # without history no order counts


def test_what_was_selected_before_changes_the_scores(selector):
    which, _ = selector
    dialogue = next(one for one in TALK if len(one.turns) >= 4)
    turn = len(dialogue.turns) - 1
    batch = batch_of(which, dialogue)
    without = TurnBatch(
        {**batch.tensors, "before_ids": torch.full_like(batch.before_ids, which.text.pad)}, batch.examples
    )
    swapped = TurnBatch(
        {**batch.tensors, "before_ids": batch.before_ids.view(1, 2, 8).flip(1).flatten(1)}, batch.examples
    )
    assert dialogue.turns[turn - 2].chosen != dialogue.turns[turn - 4].chosen or turn < 5
    scores = [read(selector, one).scores for one in (batch, without, swapped)]
    assert not torch.allclose(scores[0], scores[1])
    assert not torch.allclose(scores[0], scores[2])


def test_vocabulary_and_copies_share_one_distribution(selector):
    which, model = selector
    batch = batch_of(which, *TALK[:2])
    told = model.body.select(read(selector, batch), batch.chosen)
    states = torch.randn(2, 3, 16, generator=torch.Generator().manual_seed(0))
    scores = torch.randn(2, 3, len(which.text.tokenizer), generator=torch.Generator().manual_seed(1))
    mixed = model.body.with_copies(scores, states, told).softmax(dim=-1)
    copies = states @ torch.tanh(model.body.copy(told.sentence_states)).transpose(1, 2)
    for row, step in ((0, 0), (1, 2)):
        weights = scores[row, step].exp()
        for place, token in enumerate(told.sentence_ids[row].tolist()):
            if token != which.text.pad:
                weights[token] += copies[row, step, place].exp()
        assert torch.allclose(mixed[row, step], weights / weights.sum(), rtol=1e-3, atol=1e-7)


def test_training_writes_from_the_right_sentence_and_answering_from_the_best(selector):
    which, model = selector
    batch = batch_of(which, *TALK[:3])
    found = read(selector, batch)
    best = found.scores.argmax(dim=1)
    replies = which.generate(model, batch, ki.memory(which, model, 3), ONE, ("a",))
    assert replies.selected == (best - 1).tolist()
    losses = []
    for chosen in (batch.chosen, (batch.chosen + 1) % 4):
        other = TurnBatch({**batch.tensors, "chosen": chosen}, batch.examples)
        losses.append(model.losses(found, other))
    assert not torch.allclose(losses[0][0], losses[1][0])
    wanted = torch.nn.functional.cross_entropy(found.scores, batch.chosen, reduction="sum")
    assert torch.allclose(losses[0][2], wanted)
    answers = which.generate(
        model,
        TurnBatch({**batch.tensors, "chosen": (batch.chosen + 1) % 4}, batch.examples),
        ki.memory(which, model, 3),
        ONE,
        ("a",),
    )
    assert answers.texts == replies.texts


def test_accuracy_is_of_the_selected_sentence():
    about = Prediction(
        "d", 1, ("hello",), ("i sing.",), ("i sing.",), knowledge=("i sing.", "a band."), chosen=0
    )
    some = [replace(about, selected=number) for number in (0, 1, -1)]
    assert METRICS["knowledge_accuracy"].compute(some, Resources()) == pytest.approx(100 / 3)
    assert METRICS["wiki_f1_selected"].compute(some[:1], Resources()) == pytest.approx(100)


def test_evaluation_sees_what_was_selected(selector, tmp_path):
    which, model = selector
    talk = TALK[:2]
    jsonl.write(tmp_path / "test.jsonl", talk)
    content = made.recipe("ki", f"jsonl:{tmp_path}", tmp_path, data__memory="reset", data__targets="both")
    wanted = recipes.parse({**content, "model": {"body": "diffks"}}, "test", FineTuneRecipe)
    fitted = Fitted(wanted, which, model, which.text.tokenizer, tmp_path, None)
    found = evaluate(fitted, "test", agents=2, metrics=("knowledge_accuracy", "wiki_f1_selected"))
    right = [one.selected == one.chosen for one in found.predictions]
    assert len(right) == sum(len(one.turns) - 1 for one in talk)
    assert all(one.selected in range(-1, 3) for one in found.predictions)
    assert found.metrics.values["knowledge_accuracy"] == pytest.approx(100 * sum(right) / len(right))
    assert "DiffKS+KI" in table("ki", replace(found, facts={**found.facts, "sources": ["wow:x"]}))


def test_it_learns_to_select_while_it_internalizes(tmp_path):
    sentences, heard = ("tea is hot.", "coffee is black."), ("do you like coffee?", "do you like tea?")
    talk = [
        Dialogue(text, (Turn(0, text), Turn(1, "yes.", knowledge=sentences, chosen=1 - number)))
        for number, text in enumerate(heard)
    ]
    ki.write(tmp_path / "knowledge", talk)
    config = {**ki.SHAPES["diffks"], "dropout": 0.0}
    which, model = ki.built("diffks", knowledge=str(tmp_path / "knowledge"), config=config, head_dropout=0.0)
    batch = which.complete(batch_of(which, *talk), torch.zeros(2), [(1,), (2,)])
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-2)
    seen = []
    for update in range(40):
        losses, _, _ = which.cell(model)(batch, ki.memory(which, model, 2), (update,))
        optimizer.zero_grad()
        (losses * which.part_weights(0) / which.count(batch).clamp(min=1)).sum().backward()
        optimizer.step()
        seen.append(dict(zip(which.parts, losses.tolist(), strict=True)))
    assert all(seen[-1][name] < 0.5 * seen[0][name] for name in ("nll", "selection", "ki"))
    assert which.generate(model, batch, ki.memory(which, model, 2), ONE, ("a",)).selected == [1, 0]
