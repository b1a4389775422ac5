"""Active units and divergences of constructed latents."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from finetune.metrics import latent


def test_active_units_are_dimensions_whose_mean_varies():
    # Unbiased variances: (0.2²·2)/1... of two examples ±a it is 2a²: .08, .0098, 0.
    means = np.array([[0.2, 0.07, 5.0], [-0.2, -0.07, 5.0]])
    assert latent.active_units(means) == 1
    assert latent.active_units(means, threshold=0.009) == 2
    assert latent.active_units(torch.tensor(means)) == 1


def test_relative_active_units_do_not_depend_on_the_scale():
    means = np.array([[0.02, 0.2], [-0.02, -0.2]])
    # Variances .0008 and .08 against posterior variances .01 and 100.
    log_variances = np.log(np.array([[0.01, 100.0]] * 2))
    assert latent.active_units_relative(means, log_variances) == 1
    assert latent.active_units(means) == 1
    assert latent.active_units_relative(means * 10, log_variances + np.log(100)) == 1


def test_kl_is_that_of_torch_and_zero_of_equals():
    rng = np.random.default_rng(0)
    mean, log_variance, prior_mean, prior_log_variance = rng.normal(size=(4, 5, 3))
    found = latent.kl(mean, log_variance, prior_mean, prior_log_variance)

    def normal(m, v):
        return torch.distributions.Normal(torch.tensor(m), torch.tensor(np.exp(v / 2)))

    prior = normal(prior_mean, prior_log_variance)
    expected = torch.distributions.kl_divergence(normal(mean, log_variance), prior).sum(-1)
    np.testing.assert_allclose(found, expected.numpy(), rtol=1e-12)
    np.testing.assert_allclose(latent.kl(mean, log_variance, mean, log_variance), 0, atol=1e-12)


def test_kl_to_the_standard_normal_by_hand():
    # Two dimensions N(1, 1) and N(0, e): ½·1 and ½(e - 1 - 1).
    assert latent.kl([[1.0, 0.0]], [[0.0, 1.0]])[0] == pytest.approx(0.5 + (np.e - 2) / 2)


def test_calibration_tells_order_from_proportion():
    pearson, spearman = latent.calibration([0.1, 0.2, 0.9], [1.0, 2.0, 3.0])
    assert spearman == pytest.approx(1)
    # Deviations (-.3, -.2, .5) and (-1, 0, 1): .8/sqrt(.38·2).
    assert pearson == pytest.approx(0.8 / np.sqrt(0.76))
