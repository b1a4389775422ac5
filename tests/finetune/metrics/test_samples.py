"""N replies to one context."""

from __future__ import annotations

import math

import pytest

from finetune.metrics import samples

SAME, OTHER = "a b c d", "w x y z"


def test_precision_asks_of_replies_and_recall_of_references():
    # One of two replies is the reference, the other shares no word.
    assert samples.bleu_precision([[SAME, OTHER]], [[SAME]]) == pytest.approx(50)
    assert samples.bleu_recall([[SAME, OTHER]], [[SAME]]) == pytest.approx(100)
    assert samples.bleu_precision([[SAME]], [[SAME, OTHER]]) == pytest.approx(100)
    assert samples.bleu_recall([[SAME]], [[SAME, OTHER]]) == pytest.approx(50)


def test_sentence_bleu_leaves_out_orders_that_a_short_reply_lacks():
    # "a b" in "a b c": orders 1 and 2 are 1, length 2 against 3
    assert samples.bleu_precision([["a b"]], [["a b c"]]) == pytest.approx(100 * math.exp(1 - 3 / 2))


def test_self_bleu_is_the_mean_over_replies_and_contexts():
    assert samples.self_bleu([[SAME, SAME]]) == pytest.approx(100)
    # The two equal ones score 100 each, the third 0; the second context 0.
    assert samples.self_bleu([[SAME, SAME, OTHER], [SAME, OTHER]]) == pytest.approx((200 / 3 + 0) / 2)
