"""Made-up dialogues: what is told is asked for at the set distance, once, and an answer can be checked."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from finetune.dialogue import synthetic
from finetune.dialogue.dialogue import Dialogue, flaw
from finetune.dialogue.load import load
from finetune.dialogue.synthetic import KINDS, Grammar, answered, generate


def _recalls(dialogue: Dialogue) -> list[int]:
    return [number for number, turn in enumerate(dialogue.turns) if "recall" in turn.tags]


@settings(max_examples=40, deadline=None)
@given(
    st.integers(1, 4),
    st.integers(3, 40),
    st.integers(0, 30),
    st.integers(2, 12),
    st.integers(0, 8),
    st.integers(),
)
def test_each_fact_is_told_once_and_asked_for_at_a_distance_within_bounds(
    facts: int, near: int, more: int, values: int, persona: int, seed: int
) -> None:
    far = near + more
    assume(far // 2 >= (near + 2) // 2 and (far - 1) // 2 >= facts)
    options = {"facts": facts, "near": near, "far": far, "values": values, "persona": persona, "seed": seed}
    for dialogue in generate(Grammar.make(options | {"dialogues": 2}), "train"):
        assert flaw(dialogue) == ""
        assert [turn.speaker for turn in dialogue.turns] == [0, 1] * (len(dialogue.turns) // 2)
        recalls = _recalls(dialogue)
        assert len(recalls) == facts
        assert recalls[-1] == len(dialogue.turns) - 1
        for number in recalls:
            turn = dialogue.turns[number]
            told = int(turn.tags["told"])
            assert number - told == int(turn.tags["distance"])
            assert near <= number - told <= far
            assert dialogue.turns[told].tags["tells"] == turn.tags["recall"]
            said = [at for at in range(number) if turn.tags["recall"] in dialogue.turns[at].text.split()]
            assert said == [told]  # nothing between repeats the fact
            assert turn.tags["recall"] in KINDS[turn.tags["kind"]].values[:values]


def test_answers_are_checked_by_the_word_and_no_other_of_its_kind() -> None:
    (dialogue, *_) = generate(Grammar(dialogues=1), "train")
    turn = dialogue.turns[_recalls(dialogue)[0]]
    right = turn.tags["recall"]
    wrong = next(value for value in KINDS[turn.tags["kind"]].values if value != right)
    assert all(answered(turn, reply) for reply in turn.references)
    assert not answered(turn, turn.text.replace(right, wrong))
    assert not answered(turn, f"{right} or {wrong} .")
    assert not answered(turn, "i forgot .")


def test_a_larger_set_begins_with_a_smaller_and_seeds_and_splits_differ() -> None:
    few, many = generate(Grammar(dialogues=3), "train"), generate(Grammar(dialogues=6), "train")
    assert many[:3] == few
    assert generate(Grammar(dialogues=3, seed=2), "train") != few
    held_out = generate(Grammar(dialogues=30), "test")
    assert len(held_out) == 3
    assert not {_words(dialogue) for dialogue in held_out} & {_words(dialogue) for dialogue in few}


def _words(dialogue: Dialogue) -> tuple[str, ...]:
    return tuple(turn.text for turn in dialogue.turns)


def test_no_value_is_a_word_of_anything_else() -> None:
    values = [value for kind in KINDS.values() for value in kind.values]
    assert len(set(values)) == len(values) == len(KINDS) * synthetic.VALUES
    spoken = repr(
        (synthetic.SMALL_TALK, synthetic.ANIMALS, synthetic.FACTS, synthetic.GREETINGS, synthetic.HEARD)
    )
    wordings = repr([kind[1:] for kind in KINDS.values()])
    assert not set(values) & set(re.findall(r"[a-z]+", spoken + wordings))


def test_it_serves_persona_knowledge_and_latent_families() -> None:
    turns = [turn for dialogue in generate(Grammar(dialogues=30), "train") for turn in dialogue.turns]
    replies = [turn for turn in turns if turn.speaker == 1]
    assert all(len(turn.references) > 1 and turn.text in turn.references for turn in replies)
    grounded = [turn for turn in replies if turn.knowledge]
    assert grounded
    for turn in grounded:
        assert turn.chosen is not None
        assert turn.knowledge[turn.chosen].split()[-2] in turn.text.split()
    personal = [
        (d, turn)
        for d in generate(Grammar(dialogues=30), "train")
        for turn in d.turns
        if "persona" in turn.tags
    ]
    assert personal
    assert all(any(turn.tags["persona"] in line.split() for line in d.personas[1]) for d, turn in personal)
    assert len({word for turn in turns for word in turn.text.split()}) < 300


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("near=9,far=7", "no odd number of turns from near=9 to far=7"),
        ("near=10,far=10", "no odd number"),
        ("facts=8,near=3,far=9", "far must be at least 17"),
        ("values=99", "values: "),
        ("seed", "neither a path nor options"),
    ],
)
def test_options_that_do_not_fit_are_refused(options: str, message: str) -> None:
    with pytest.raises(synthetic.UserError) as error:
        load(f"synthetic:{options}")
    assert message in str(error.value)


def test_written_and_made_on_the_fly_are_the_same(tmp_path: Path) -> None:
    counts = synthetic.write(tmp_path / "made", Grammar(dialogues=20, seed=4))
    assert counts == {"train": 20, "valid": 2, "test": 2}
    direct = load("synthetic:dialogues=20,seed=4")
    assert dict(direct.splits) == counts
    for source in (f"jsonl:{tmp_path}/made", f"synthetic:{tmp_path}/made"):
        assert list(load(source)) == list(direct)
    # A recipe makes paths absolute without knowing that this is none.
    assert list(load(f"synthetic:{tmp_path}/dialogues=20,seed=4", "test")) == list(
        load("synthetic:dialogues=20,seed=4", "test")
    )


def test_with_one_wording_only_facts_and_small_talk_are_left_to_chance() -> None:
    grammar = Grammar(dialogues=200, facts=3, near=3, far=7, persona=0, wordings=1)
    made = generate(grammar, "train")
    assert {dialogue.turns[0].text for dialogue in made} == {"hello !"}
    heard = {dialogue.turns[turn].text for dialogue in made for turn in (3, 5, 7)}
    assert heard == {"i will remember that ."}
    asked = [turn for dialogue in made for turn in dialogue.turns if "recall" in turn.tags]
    assert {turn.references for turn in asked} == {(turn.text,) for turn in asked}
    assert len({turn.text.replace(turn.tags["recall"], "") for turn in asked}) == len(KINDS)
