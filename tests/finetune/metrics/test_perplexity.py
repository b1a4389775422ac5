"""Perplexities from sums."""

from __future__ import annotations

import math

import numpy as np
import pytest

from finetune.metrics import perplexity
from pretrain.errors import UserError


def test_perplexity_weighs_tokens_not_batches():
    # 2 tokens of ln 4 and 6 of ln 2: exp((2 ln 4 + 6 ln 2)/8) = 2^(10/8); by batches (4 + 2)/2
    nll, tokens = [2 * math.log(4), 6 * math.log(2)], [2, 6]
    assert perplexity.perplexity(sum(nll), sum(tokens)) == pytest.approx(2**1.25)
    assert perplexity.mean_of_batches(nll, tokens) == pytest.approx(3)


def test_batches_without_tokens_do_not_count():
    assert perplexity.mean_of_batches([0.0, math.log(5)], [0, 1]) == pytest.approx(5)


def test_no_token_is_refused_and_hopeless_models_get_a_number():
    with pytest.raises(UserError, match="no target token"):
        perplexity.perplexity(1.0, 0)
    assert math.isfinite(perplexity.perplexity(1e9, 1))


def test_the_latents_cost_adds_to_the_loss():
    assert perplexity.with_latent_cost(3 * math.log(2), math.log(8), 3) == pytest.approx(4)


def test_draws_are_averaged_as_likelihoods():
    # One reference of 2 tokens: likelihoods 1/2 and 1/8 of two draws, mean 5/16; perplexity sqrt(16/5).
    scores = np.log([[1 / 2, 1 / 8]])
    assert perplexity.over_draws(scores, [2]) == pytest.approx(math.sqrt(16 / 5))
    # A second reference of 1 token with likelihood 1/4 in both draws: (16/5·4)^(1/3).
    scores = np.log([[1 / 2, 1 / 8], [1 / 4, 1 / 4]])
    assert perplexity.over_draws(scores, [2, 1]) == pytest.approx((64 / 5) ** (1 / 3))
