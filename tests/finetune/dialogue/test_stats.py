"""Counts against a hand count."""

from __future__ import annotations

from finetune.dialogue.dialogue import Dialogue, Session, Turn
from finetune.dialogue.stats import stats

DIALOGUES = [
    Dialogue(
        "a",
        (
            Turn(0, "one two"),
            Turn(1, "three", session=1, references=("three", "four"), candidates=("x", "y", "z")),
        ),
        personas=((), ("p q", "r")),
        sessions=(Session(), Session("1 days")),
    ),
    Dialogue(
        "b",
        (
            Turn(0, "a b c d", knowledge=("k",), negatives=("n",), adversarial=("m", "o")),
            Turn(1, "e", pieces=("e", "f"), vokens=(0, 5)),
            Turn(0, "f"),
        ),
        personas=(("r", "p q"), ("s",)),
    ),
]


def test_counts_and_lengths() -> None:
    found = stats(DIALOGUES, lambda texts: [len(text) for text in texts]).as_json()
    assert found == {
        "dialogues": 2,
        "utterances": 5,
        "sessions": 3,
        "persona_sentences": 5,
        "personas": 2,
        "references": 2,
        "negatives": 3,
        "candidates": 3,
        "knowledge": 1,
        "vokens": 1,
        "mean_turns": 2.5,
        "max_turns": 3,
        "mean_words": 4.5,
        "max_words": 6,
        "mean_utterance_words": 1.8,
        "max_utterance_words": 4,
        "mean_tokens": 15.5,
        "max_tokens": 16,
        "mean_persona_tokens": 3.0,
    }


def test_without_a_tokenizer_no_tokens() -> None:
    assert "mean_tokens" not in stats(DIALOGUES).as_json()
    assert stats([]).as_json()["max_turns"] == 0
