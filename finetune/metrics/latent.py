"""Does a latent variable carry anything? Active units, divergences, calibration, from plain arrays."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

ACTIVE = 0.01
"""A unit is active from this variance of its mean on (Burda et al. 2016)."""


def active_units(means: ArrayLike, threshold: float = ACTIVE) -> int:
    """Dimensions whose posterior mean varies over the data.

    Args:
        means: `[N, D]`, the posterior mean of each example, N at least 2.
    """
    return int((_variance(means) > threshold).sum())


def active_units_relative(means: ArrayLike, log_variances: ArrayLike, threshold: float = ACTIVE) -> int:
    """The same against each dimension's mean posterior variance, where a learnt prior leaves the scale free.

    Args:
        means, log_variances: `[N, D]` of the posterior of each example.
    """
    noise = np.exp(np.asarray(log_variances, dtype=np.float64)).mean(axis=0)
    return int((_variance(means) / noise > threshold).sum())


def kl(
    mean: ArrayLike, log_variance: ArrayLike, prior_mean: ArrayLike = 0.0, prior_log_variance: ArrayLike = 0.0
) -> NDArray[np.float64]:
    """KL divergence of diagonal Gaussians, `[N, D]` each, summed over D: `[N]` nats; the prior is N(0, I)
    unless given."""
    m, v, pm, pv = (
        np.asarray(x, dtype=np.float64) for x in (mean, log_variance, prior_mean, prior_log_variance)
    )
    each = 0.5 * (pv - v + (np.exp(v) + (m - pm) ** 2) / np.exp(pv) - 1.0)
    found: NDArray[np.float64] = each.sum(axis=-1)
    return found


def calibration(levels: ArrayLike, targets: ArrayLike) -> tuple[float, float]:
    """Pearson's and Spearman's correlation of the levels that a prior gives with those wanted, `[N]` each."""
    return float(stats.pearsonr(levels, targets).statistic), float(stats.spearmanr(levels, targets).statistic)


def _variance(means: ArrayLike) -> NDArray[np.float64]:
    found: NDArray[np.float64] = np.asarray(means, dtype=np.float64).var(axis=0, ddof=1)
    return found
