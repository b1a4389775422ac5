"""The normalizations."""

from __future__ import annotations

from finetune.metrics import text
from finetune.metrics.prediction import Prediction


def test_normalized_words_are_lower_case_without_punctuation_and_articles():
    assert text.normalized("The cat's A-list, an Apple!") == ["cat", "s", "list", "apple"]
    assert text.normalized("the a an") == []
    assert text.normalized("than another theatre") == ["than", "another", "theatre"]
    assert text.normalized("I’m") == ["i’m"]  # a typographic apostrophe is no ASCII punctuation


def test_without_articles_keeps_punctuation():
    assert text.without_articles("I saw The cat , an owl .") == ["i", "saw", "cat", ",", "owl", "."]


def test_split_punctuation_makes_every_mark_a_word():
    assert text.split_punctuation("Don't stop... ok_1?") == [
        "Don",
        "'",
        "t",
        "stop",
        ".",
        ".",
        ".",
        "ok_1",
        "?",
    ]
    assert text.split_punctuation("don ' t") == ["don", "'", "t"]


def test_letters_are_runs_of_letters():
    assert text.letters("R2D2 isn't über-cool_9") == ["r", "d", "isn", "t", "über", "cool"]


def test_apostrophes_are_closed_and_straight():
    for written in ("I don ' t", "I don’t", "i DON ‘t", "i don`t"):
        assert text.with_closed_apostrophes(written) == "i don't"


def test_respaced_changes_what_is_scored_and_nothing_else():
    before = Prediction("d", 1, ("Hi!",), ("Yes, I do.",), ("No.", "No!"), knowledge=("A b.",), chosen=0)
    (after,) = text.respaced([before], lower=True)
    assert after == Prediction(
        "d", 1, ("Hi!",), ("yes , i do .",), ("no .", "no !"), knowledge=("a b .",), chosen=0
    )
    assert text.respaced([before])[0].replies == ("Yes , I do .",)
