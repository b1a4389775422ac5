"""Diversity against values worked by hand."""

from __future__ import annotations

import math

import pytest

from finetune.metrics import diversity, text

REPLIES = ["a b a", "a b", ""]
"""5 words of 2 kinds; 3 bigrams (ab, ba, ab) of 2 kinds."""


def test_distinct_over_all_replies():
    assert diversity.distinct(REPLIES, 1) == pytest.approx(40)
    assert diversity.distinct(REPLIES, 2) == pytest.approx(100 * 2 / 3)
    assert diversity.distinct(REPLIES, 4) == 0


def test_distinct_per_word_divides_by_words():
    assert diversity.distinct_per_word(REPLIES, 2) == pytest.approx(100 * 2 / 5)
    assert diversity.distinct_per_word([""], 2) == 0


def test_articles_and_case_can_be_left_out():
    # "the dog", "a dog", "Dog ." -> dog, dog, dog . : kinds dog and full stop of 4 words
    replies = ["the dog", "a dog", "Dog ."]
    assert diversity.distinct(replies, 1, text.without_articles) == pytest.approx(50)
    assert diversity.distinct(replies, 1, text.normalized) == pytest.approx(100 / 3)
    assert diversity.length(replies, text.without_articles) == pytest.approx(4 / 3)
    assert diversity.length(replies) == 2


def test_entropy_of_all_words_in_nats():
    bigrams = -(2 / 3 * math.log(2 / 3) + 1 / 3 * math.log(1 / 3))
    assert diversity.entropy(REPLIES, 2) == pytest.approx(bigrams)
    assert diversity.entropy(["a a", "a"], 1) == 0
    assert diversity.entropy(["a"], 4) == 0


def test_entropy_of_characters_is_per_reply_in_bits():
    # "aab": a 2/3, b 1/3; "ab": 1 bit; nothing: 0
    first = -(2 / 3 * math.log2(2 / 3) + 1 / 3 * math.log2(1 / 3))
    replies = ["aab", "ab", ""]
    assert diversity.entropy_of_characters(replies, 1) == pytest.approx((first + 1) / 3)
    # bigrams aa ab: 1 bit; ab: 0; nothing: 0
    assert diversity.entropy_of_characters(replies, 2) == pytest.approx(1 / 3)
