"""Overlap metrics against values worked by hand."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from finetune.metrics import overlap
from finetune.metrics.resources import wordnet
from tests.support import wordnet as made

CAT = ["the cat is on the mat", "hello my friend"]
CAT_REFERENCES = [["the cat sat on the mat"], ["hello there my friend"]]


@pytest.mark.parametrize(
    ("reply", "reference", "value"),
    [
        ("I don't like the cat!", "i don t like a cat", 1),
        # bags {i love dogs:2 and cats} (6 words) and {dogs love me} (3) share dogs, love: 2·2/9
        ("I love dogs, dogs and cats.", "dogs love me", 4 / 9),
        ("the a an", "the", 0),
        ("", "hello", 0),
        ("A-list actor", "list the actor", 1),
        # {i m fine} and {im fine} share one word: 2·1/5
        ("I'm fine", "im fine", 0.4),
        # precision 1/3, recall 1
        ("yes yes yes", "yes", 0.5),
        ("I’m fine", "i m fine", 0.4),
    ],
)
def test_f1_of_one_reply(reply: str, reference: str, value: float):
    assert overlap.f1([reply], [[reference]]) == pytest.approx(100 * value)


def test_f1_takes_the_best_reference_and_the_mean_over_examples():
    # best of 0 and 1; then 2·1/3
    assert overlap.f1(["yes", "no way"], [["no", "yes"], ["way"]]) == pytest.approx(100 * (1 + 2 / 3) / 2)


def test_bleu_by_hand():
    # 9 words against 10: brevity penalty exp(1 - 10/9). Unigrams 5/6 and 3/3: 8/9. Bigrams 3/5 and 1/2: 4/7.
    brevity = math.exp(1 - 10 / 9)
    assert overlap.bleu(CAT, CAT_REFERENCES, 1) == pytest.approx(100 * brevity * 8 / 9)
    assert overlap.bleu(CAT, CAT_REFERENCES, 2) == pytest.approx(100 * brevity * math.sqrt(8 / 9 * 4 / 7))
    assert overlap.bleu(CAT, CAT_REFERENCES, 4) == 0  # no 4-gram is shared, and nothing is smoothed


def test_bleu_of_uneven_numbers_of_references():
    # Example 1 finds a and b in different references (2/2, the nearest length is 2), example 2 nothing of 1:
    # 2/3; lengths 3 against 2 + 1.
    assert overlap.bleu(["a b", "c"], [["a x", "b y z"], ["d"]], 1) == pytest.approx(100 * 2 / 3)


def test_bleu_is_case_sensitive_and_splits_at_spaces_only():
    assert overlap.bleu(["Yes ."], [["yes."]], 1) == 0


def test_gold_scores_100_by_bleu_and_more_by_smoothing_7():
    gold = ["a b c d"]
    assert overlap.bleu(gold, [gold], 4) == pytest.approx(100)
    # All precisions are 1, of 5-grams 0; method 5 sets m(0) = 2, p1 = (2+1+1)/3, p2 = (4/3+1+1)/3.
    assert overlap.bleu_method7(gold, [gold], 1) == pytest.approx(100 * 4 / 3)
    assert overlap.bleu_method7(gold, [gold], 2) == pytest.approx(100 * math.sqrt(4 / 3 * 10 / 9))


def test_smoothing_7_of_a_partial_reply():
    # "a x" against "a b": p1 = 1/2; p2 = 0/1 becomes 1/(2·5/ln 2) = ln 2/10 (method 4), as p3 = 0/1 does with
    # 2² and p4 with 2³. Method 5 for n = 1: (p1 + 1 + p1 + p2 before smoothing)/3, where the neighbour p2 is
    # the one method 4 left; no brevity penalty.
    p2 = math.log(2) / 10
    assert overlap.bleu_method7(["a x"], [["a b"]], 1) == pytest.approx(100 * (1.5 + 0.5 + p2) / 3)


def test_smoothing_7_of_an_empty_reply_is_zero():
    assert overlap.bleu_method7(["", "  "], [["a"], ["b"]], 2) == 0


@pytest.mark.parametrize(
    ("reply", "reference", "value"),
    [
        # Each word tells log2(4/1) = 2 bits; a bigram tells nothing after its first word.
        ("a b c d", "a b c d", 2),
        # Words log2(4/2) = 1; bigrams ab 0, ba log2(2/1) = 1, ab 0: 1/3; trigrams aba 1, bab 0: 1/2; abab 0.
        ("a b a b", "a b a b", 1 + 1 / 3 + 1 / 2),
        # 2 bits a word, but half as long: exp(ln .5/ln² 1.5 · ln² .5). No reply has a trigram.
        ("A b", "a B c d", 2 * math.exp(math.log(0.5) ** 3 / math.log(1.5) ** 2)),
        ("", "a", 0),
    ],
)
def test_nist_by_hand(reply: str, reference: str, value: float):
    assert overlap.nist([reply], [[reference]], 4) == pytest.approx(value)


def test_nist_tokenizes_as_mteval_does():
    assert overlap.nist(["Yes, sir."], [["yes , sir ."]], 4) == pytest.approx(2)


def test_meteor_by_hand():
    none = overlap.NoSynonyms()
    # One match in one chunk: (1 - .6·1^.2) · 1.
    assert overlap.meteor(["Yes"], [["yes"]], none) == pytest.approx(40)
    # 3 matches (runs and running share a stem), P 1, R 3/4, one chunk of 3.
    mean = 0.75 / (0.85 + 0.15 * 0.75)
    found = overlap.meteor(["the cat runs"], [["nothing here", "the cat running fast"]], none)
    assert found == pytest.approx(100 * mean * (1 - 0.6 * (1 / 3) ** 0.2))
    assert overlap.meteor(["", "x"], [["a"], ["y"]], none) == 0


def test_meteor_finds_synonyms_only_with_wordnet(tmp_path: Path):
    found = wordnet(made.folder(tmp_path, ["car", "auto"]))
    reply, references = ["a car"], [["a auto"]]
    # Two matches in one chunk of 2, against one match of two words: F .5, one chunk of 1.
    assert overlap.meteor(reply, references, found) == pytest.approx(100 * (1 - 0.6 * 0.5**0.2))
    assert overlap.meteor(reply, references, overlap.NoSynonyms()) == pytest.approx(100 * 0.5 * 0.4)


def test_rouge_l_by_hand():
    # Stems without articles: police kill gunman, on both sides.
    assert overlap.rouge_l(["Police kill the gunman."], [["police killed a gunman"]]) == pytest.approx(100)
    # The longest common subsequence of (gunman, police, now, here) and (police, kill, gunman) is one word:
    # P 1/4, R 1/3.
    reply, references = ["gunman police now here"], [["police killed gunman"]]
    assert overlap.rouge_l(reply, references) == pytest.approx(100 * 2 / 7)
    assert overlap.rouge_l(reply, references, "recall") == pytest.approx(100 / 3)
    assert overlap.rouge_l(["", "x"], [["a b"], ["y", "x"]]) == pytest.approx(50)
