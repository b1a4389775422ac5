"""Perplexities from sums over target tokens; padding never gets into a sum, so it cannot move them."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import logsumexp

from pretrain.errors import UserError

_LIMIT = 700.0
"""exp of more is no float."""


def perplexity(nll: float, tokens: float) -> float:
    """exp of the summed negative log-likelihood (nats) of all target tokens over their number.

    Raises:
        UserError: no tokens.
    """
    if not tokens > 0:
        raise UserError("nothing to score: no target token", where="perplexity", mend="check the data")
    return math.exp(min(nll / tokens, _LIMIT))


def mean_of_batches(nll: ArrayLike, tokens: ArrayLike) -> float:
    """Mean over batches of each batch's perplexity: how the papers' authors often print it.

    Args:
        nll: `[batches]` summed negative log-likelihood.
        tokens: `[batches]` target tokens; batches without any are left out.
    """
    pairs = zip(np.atleast_1d(nll).tolist(), np.atleast_1d(tokens).tolist(), strict=True)
    return float(np.mean([perplexity(loss, count) for loss, count in pairs if count]))


def with_latent_cost(nll: float, kl: float, tokens: float) -> float:
    """Perplexity by the evidence lower bound: summed reconstruction loss plus summed divergence."""
    return perplexity(nll + kl, tokens)


def over_draws(log_likelihood: ArrayLike, tokens: ArrayLike) -> float:
    """Perplexity of references under a model with a latent: the likelihoods of S prior draws are averaged.

    Args:
        log_likelihood: `[references, S]` summed over each reference's tokens, nats.
        tokens: `[references]` their tokens.
    """
    scores = np.asarray(log_likelihood, dtype=np.float64)
    marginal = logsumexp(scores, axis=1) - math.log(scores.shape[1])
    return perplexity(-float(marginal.sum()), float(np.sum(tokens)))
