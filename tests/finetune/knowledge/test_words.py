"""Words with offsets, and the stop list."""

from __future__ import annotations

from pathlib import Path

import pytest

from finetune.knowledge.words import StopWords, Word, pieces, words
from pretrain.errors import UserError


def test_words_are_slices_of_the_text() -> None:
    text = "Don't  panic, J.K. Rowling's café (caf\u0065\u0301) 3.5 🦉 日本!"
    found = words(text)
    assert [word.text for word in found] == [
        *("Don", "t", "panic", "J", "K", "Rowling", "s", "café", "cafe\u0301", "3", "5", "日本"),
    ]
    assert all(text[word.start : word.end] == word.text for word in found)


@pytest.mark.parametrize("text", ["", "  ", "?! ...", "🦉🦉", "\u0301"])
def test_what_has_no_letter_or_digit_is_no_word(text: str) -> None:
    assert words(text) == []


def test_pieces_are_the_letters_of_tokens_and_know_whether_they_begin_a_word() -> None:
    text = "Bathe, the \u00e9l-3 !"
    #       a space before, a mark after, one letter in two tokens, marks alone
    tokens = [(0, 2), (2, 5), (5, 6), (6, 10), (10, 12), (11, 12), (12, 13), (13, 15), (15, 18)]
    assert pieces(text, tokens) == [
        Word("Ba", 0, 2),
        Word("the", 2, 5, inside=True),
        Word("the", 7, 10),
        Word("\u00e9", 11, 12),
        Word("l", 12, 13, inside=True),
        Word("3", 14, 15),
    ]


def test_function_words_stop_and_content_words_do_not() -> None:
    stop = StopWords()
    assert all(word in stop for word in ("The", "i", "DON", "s", "with"))
    assert not any(word in stop for word in ("one", "would", "could", "yes", "know", "really", "wizard"))


def test_a_file_replaces_the_list(tmp_path: Path) -> None:
    (tmp_path / "words").write_text("Wizard\n", encoding="utf-8")
    stop = StopWords(tmp_path / "words")
    assert "wizard" in stop
    assert "the" not in stop
    with pytest.raises(UserError, match="absent"):
        _ = "x" in StopWords(tmp_path / "absent")
