"""Knowledge, entities and safe replies against values worked by hand."""

from __future__ import annotations

import pytest

from finetune.metrics import knowledge
from finetune.metrics.stopwords import FUNCTION_WORDS, read_words
from pretrain.errors import UserError


def test_knowledge_f1_is_that_of_normalized_words():
    # {cats sleep} in {cats sleep lot}: 2·2/5; nothing shared: 0
    found = knowledge.knowledge_f1(["The cats sleep.", "hm"], ["cats sleep a lot", "dogs"])
    assert found == pytest.approx(100 * 0.8 / 2)


def test_entities_are_counted_once_and_function_words_never():
    # baseball (twice) and team are entities; "the" and "it" are function words; nothing in the second reply
    replies = ["The baseball team, baseball it is", "no idea"]
    known = [("Baseball", "team", "it", "sport"), ("sport",)]
    assert knowledge.entities(replies, known) == pytest.approx((2 + 0) / 2)


@pytest.mark.parametrize(
    ("reply", "safe", "official"),
    [
        ("I'm not sure about that", True, True),
        ("i don ' t know .", True, False),
        ("well , i don’t know", True, False),
        ("I’M NOT SURE", True, True),
        ("but i do know that", False, True),
        ("i am not sure", False, False),
        ("", False, False),
    ],
)
def test_safe_replies_however_apostrophes_are_written(reply: str, safe: bool, official: bool):
    assert knowledge.safe([reply]) == 100 * safe
    assert knowledge.safe([reply], knowledge.SAFE_OFFICIAL) == 100 * official


def test_safe_is_a_share_of_replies():
    assert knowledge.safe(["i don't know", "i don't know, i'm not sure", "yes", "no"]) == 50


def test_accuracy_counts_picking_none_where_none_is_right():
    assert knowledge.accuracy([2, 0, -1, -1], [2, 1, None, 0]) == 50


def test_coverage_is_the_share_of_reference_words_that_were_told():
    # cats and sleep of (cats, sleep, all, day)
    assert knowledge.coverage("The cats sleep all day", ["cats are animals", "They sleep."]) == 50
    assert knowledge.coverage("", ["a"]) == 0


def test_function_words_hold_no_content():
    assert {"the", "because", "we", "t", "didn", "not"} <= FUNCTION_WORDS
    assert not FUNCTION_WORDS & {"one", "would", "could", "also", "yes", "oh", "know", "really", "system"}


def test_word_lists_are_read_in_lower_case(tmp_path):
    path = tmp_path / "words.txt"
    path.write_text("The\n\n of \n")
    assert read_words(path) == {"the", "of"}
    with pytest.raises(UserError, match="none"):
        read_words(tmp_path / "none")
