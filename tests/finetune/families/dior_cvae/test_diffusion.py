"""The diffusion itself: schedule, forward process, reverse steps, guidance, the bound and its gradients."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from finetune.families.dior_cvae import diffusion
from finetune.families.dior_cvae.latents import Gaussians
from finetune.families.dior_cvae.prior import DiffusionPrior, PriorDraws
from pretrain.errors import UserError
from tests.support import dior

SCHEDULE = diffusion.linear_schedule(50, *diffusion.scaled_betas(50))
PAPER = diffusion.linear_schedule(50, *diffusion.PAPER_BETAS)


def prior(**changes: object) -> DiffusionPrior:
    found = dior.model(**changes).latent.prior
    assert isinstance(found, DiffusionPrior)
    return found


# --- schedule and forward process ---


def test_default_schedule_ends_in_noise_and_the_printed_one_does_not():
    for schedule, end in ((SCHEDULE, 7.7448e-6), (PAPER, 0.97518)):
        assert torch.all(schedule.signal[1:] < schedule.signal[:-1])
        assert float(schedule.signal[1]) == pytest.approx(1 - float(schedule.betas[1]), rel=1e-12)
        assert float(schedule.signal[-1]) == pytest.approx(end, rel=1e-4)
    assert PAPER.leaves_signal
    assert not SCHEDULE.leaves_signal


def test_a_scaled_schedule_of_any_length_ends_in_noise():
    assert diffusion.scaled_betas(50) == (0.002, 0.4)
    for steps in (10, 20, 50, 100, 200):
        assert not diffusion.linear_schedule(steps, *diffusion.scaled_betas(steps)).leaves_signal


@pytest.mark.parametrize("t", [1, 25, 50])
def test_diffused_latents_have_the_mean_and_variance_of_the_forward_process(t):
    torch.manual_seed(0)
    rows, clean = 200_000, 1.7
    noise = torch.randn(rows, 1, dtype=torch.float64)
    drawn = diffusion.diffuse(
        SCHEDULE, torch.full((rows, 1), clean, dtype=torch.float64), torch.full((rows,), t), noise
    )
    signal = float(SCHEDULE.signal[t])
    assert float(drawn.mean()) == pytest.approx(math.sqrt(signal) * clean, abs=0.01)
    assert float(drawn.var()) == pytest.approx(1 - signal, rel=0.01)


def test_the_last_step_is_standard_normal_to_a_percent():
    assert math.sqrt(float(SCHEDULE.signal[-1])) < 0.01
    assert 1 - float(SCHEDULE.signal[-1]) == pytest.approx(1, abs=0.01)


def test_a_right_estimate_gives_the_noise_back():
    torch.manual_seed(0)
    clean, noise = torch.randn(2, 8, 5, dtype=torch.float64)
    for t in (1, 7, 50):
        noisy = diffusion.diffuse(SCHEDULE, clean, torch.full((8,), t), noise)
        assert torch.allclose(diffusion.implied_noise(SCHEDULE, noisy, clean, t), noise, atol=1e-6)


# --- reverse steps ---


@pytest.mark.parametrize("t", [2, 3, 25, 50])
def test_an_ancestral_step_has_the_mean_and_variance_of_ddpm(t):
    torch.manual_seed(0)
    noisy, clean = torch.randn(2, 4, 6, dtype=torch.float64)
    steps = diffusion.sampler(SCHEDULE, 1.0)
    beta, now, before = (float(x) for x in (SCHEDULE.betas[t], SCHEDULE.signal[t], SCHEDULE.signal[t - 1]))
    mean = (
        math.sqrt(before) * beta / (1 - now) * clean + math.sqrt(1 - beta) * (1 - before) / (1 - now) * noisy
    )
    found = steps.back(noisy, clean, torch.zeros_like(noisy), t)
    assert torch.allclose(found, mean, atol=1e-10, rtol=0)
    spread = steps.back(noisy, clean, torch.ones_like(noisy), t) - found
    assert torch.allclose(
        spread**2, torch.full_like(spread, beta * (1 - before) / (1 - now)), atol=1e-10, rtol=0
    )


@pytest.mark.parametrize("schedule", [SCHEDULE, PAPER])
def test_the_variance_of_the_forward_step_is_refused(schedule):
    with pytest.raises(UserError, match="reverse step"):
        diffusion.Sampler(schedule, schedule.betas)


def perfect(schedule: diffusion.Schedule, mean: float, variance: float) -> diffusion.Denoise:
    """The best denoiser of N(mean, variance): the posterior mean."""

    def denoise(noisy: Tensor, t: int) -> Tensor:
        signal = float(schedule.signal[t])
        gain = math.sqrt(signal) * variance / (signal * variance + 1 - signal)
        return mean + gain * (noisy - math.sqrt(signal) * mean)

    return denoise


def test_sampling_with_a_perfect_denoiser_recovers_the_distribution():
    torch.manual_seed(0)
    noise = torch.randn(4000, 50, 2, dtype=torch.float64)
    drawn = diffusion.sample(perfect(SCHEDULE, 1.5, 0.09), noise, diffusion.sampler(SCHEDULE, 1.0))
    assert float(drawn.mean()) == pytest.approx(1.5, abs=0.02)
    assert float(drawn.std()) == pytest.approx(0.3, rel=0.2)


def test_sampling_with_the_printed_schedule_does_not():
    torch.manual_seed(0)
    noise = torch.randn(2000, 50, 2, dtype=torch.float64)
    drawn = diffusion.sample(perfect(PAPER, 1.5, 0.09), noise, diffusion.sampler(PAPER, 1.0))
    assert float(drawn.mean()) < 0.5


def test_a_row_is_the_same_whatever_else_is_sampled():
    torch.manual_seed(0)
    model = prior()
    context = torch.randn(3, 2, model.config.d_model)
    noise = torch.randn(3, 10, model.config.latent_total)
    together = model.sample(context, noise)
    assert torch.equal(together, model.sample(context, noise))
    assert torch.allclose(together[1:2], model.sample(context[1:2], noise[1:2]), atol=1e-6)


def test_without_sampler_noise_only_the_start_decides():
    torch.manual_seed(0)
    model = prior(sampler_eta=0.0)
    context = torch.randn(2, 2, model.config.d_model)
    noise = torch.randn(2, 10, model.config.latent_total)
    other = torch.cat([noise[:, :1], torch.randn_like(noise[:, 1:])], dim=1)
    assert torch.equal(model.sample(context, noise), model.sample(context, other))


# --- guidance ---


def calls(model: DiffusionPrior, context: Tensor, noise: Tensor, guidance: float) -> list[Tensor]:
    """The conditions of every call of the denoiser in one sampling."""
    seen: list[Tensor] = []
    hook = model.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    list(model.reverse(context, noise, guidance=guidance))
    hook.remove()
    return seen


def test_every_reverse_step_sees_the_condition():
    torch.manual_seed(0)
    model = prior()
    context = torch.randn(3, 2, model.config.d_model)
    noise = torch.randn(3, 10, model.config.latent_total)
    alone, guided = calls(model, context, noise, 0.0), calls(model, context, noise, 0.1)
    assert len(alone) == len(guided) == 10
    assert all(torch.equal(seen, context.flatten(1)) for seen in alone)
    assert all(torch.equal(seen[:3], context.flatten(1)) and not seen[3:].any() for seen in guided)


def test_the_denoiser_knows_its_step_whether_it_sees_the_condition_or_not():
    torch.manual_seed(0)
    model = prior()
    noisy = torch.randn(3, model.config.latent_total)
    for condition in (torch.randn(3, 2 * model.config.d_model), torch.zeros(3, 2 * model.config.d_model)):
        early, late = (model(condition, torch.full((3,), t), noisy) for t in (1, 9))
        assert not torch.allclose(early, late, atol=1e-3)


def test_guidance_weights_mix_the_two_estimates():
    torch.manual_seed(0)
    model = prior()
    condition = torch.randn(3, 2 * model.config.d_model)
    noisy, t = torch.randn(3, model.config.latent_total), torch.full((3,), 4)
    seen, blind = model(condition, t, noisy), model(torch.zeros_like(condition), t, noisy)
    assert torch.allclose(model.guided(condition, 0.0, noisy, 4), seen, atol=1e-6)
    assert torch.allclose(model.guided(condition, -1.0, noisy, 4), blind, atol=1e-6)
    assert torch.allclose(model.guided(condition, 0.5, noisy, 4), 1.5 * seen - 0.5 * blind, atol=1e-5)


def test_conditions_are_hidden_row_by_row_and_in_training_only():
    torch.manual_seed(0)
    for share, wanted in ((0.0, 0.0), (1.0, 1.0), (0.3, 0.3)):
        model = prior(guidance_dropout=share).train()
        hidden = model.draw(4000, torch.device("cpu")).unconditional.float()
        assert float(hidden.mean()) == pytest.approx(wanted, abs=0.03)
        assert not model.eval().draw(50, torch.device("cpu")).unconditional.any()


# --- the objective ---


def test_weights_of_the_bound_are_those_of_the_exact_divergence():
    objective = diffusion.objective(SCHEDULE, "vlb", "importance")
    for t in range(2, 51):
        before, now = float(SCHEDULE.signal[t - 1]), float(SCHEDULE.signal[t])
        coefficient = math.sqrt(before) * float(SCHEDULE.betas[t]) / (1 - now)
        wanted = coefficient**2 / (2 * float(SCHEDULE.posterior_variances[t]))
        assert float(objective.weights[t]) == pytest.approx(wanted, rel=1e-9)
    whole = 0.5 * float(SCHEDULE.snr[1] - SCHEDULE.snr[-1])
    assert float(objective.weights[2:].sum()) == pytest.approx(whole, rel=1e-12)


def test_bound_of_standard_normal_latents_lies_above_their_entropy_by_the_slack():
    objective = diffusion.objective(SCHEDULE, "vlb", "importance")
    torch.manual_seed(0)
    clean = torch.randn(20_000, 8, dtype=torch.float64)
    noise = torch.randn_like(clean)

    def predict(timestep: Tensor) -> Tensor:
        noisy = diffusion.diffuse(SCHEDULE, clean, timestep, noise)
        return SCHEDULE.signal[timestep, None].sqrt() * noisy

    exact = objective.exact(clean, lambda t: predict(torch.full((20_000,), t)))
    assert float(exact.mean()) / 8 == pytest.approx(3.639, abs=0.03)
    assert objective.slack(8) / 8 == pytest.approx(3.639 - 1.4189, abs=0.002)
    spreads = {}
    for kind in ("importance", "uniform"):
        drawn = diffusion.objective(SCHEDULE, "vlb", kind)
        timestep = drawn.draw(20_000, clean.device)
        found = drawn.estimate(clean, predict(timestep), timestep)
        spreads[kind] = float(found.std())
        assert float(found.mean()) == pytest.approx(float(exact.mean()), abs=5 * spreads[kind] / 141)
    assert spreads["importance"] < spreads["uniform"] / 5


def test_the_bound_counts_what_the_last_step_leaves_of_the_latents():
    clean = torch.tensor([[0.3, -2.0]], dtype=torch.float64)
    for schedule in (SCHEDULE, PAPER):
        left = schedule.signal[-1]
        last = torch.distributions.Normal(left.sqrt() * clean, (1 - left).sqrt())
        unit = torch.distributions.Normal(torch.zeros_like(clean), 1.0)
        wanted = torch.distributions.kl_divergence(last, unit).sum(dim=1)
        found = diffusion.objective(schedule, "vlb", "importance")
        assert torch.allclose(found.terminal(clean), wanted, rtol=1e-6, atol=1e-12)
        exact = found.exact(clean, lambda t: clean)
        assert torch.allclose(exact, wanted + found.constant(2), rtol=1e-9)


@pytest.mark.parametrize("weighting", ["paper", "simple"])
def test_other_weightings_are_means_over_the_steps(weighting):
    schedule = diffusion.linear_schedule(5, 0.1, 0.5)
    clean, wrong = torch.zeros(1, 3, dtype=torch.float64), torch.ones(1, 3, dtype=torch.float64)
    objective = diffusion.objective(schedule, weighting, "uniform")
    each = torch.stack([objective.estimate(clean, wrong, torch.tensor([t])) for t in range(1, 6)])
    assert float(objective.exact(clean, lambda t: wrong)) == pytest.approx(float(each.mean()), rel=1e-12)
    if weighting == "paper":
        assert float(each[0]) == pytest.approx(3 / (2 * 0.1))
    else:
        assert float(each[0]) == pytest.approx(3 / 2 * (1 + math.log(2 * math.pi)))


def test_steps_are_stratified_over_the_batch():
    torch.manual_seed(0)
    drawn = diffusion.objective(SCHEDULE, "vlb", "uniform").draw(50, torch.device("cpu"))
    assert sorted(drawn.tolist()) == list(range(1, 51))
    objective = diffusion.objective(SCHEDULE, "vlb", "importance")
    counts = torch.bincount(objective.draw(10_000, torch.device("cpu")), minlength=51)[1:]
    assert torch.allclose(counts / 10_000, objective.probabilities[1:].float(), atol=2e-4)


# --- the two halves of the divergence together ---


def toy(seed: int) -> tuple[torch.nn.Parameter, torch.nn.Parameter]:
    """Free posterior parameters of 16 examples."""
    generator = torch.Generator().manual_seed(seed)
    mean = torch.randn(16, 2, 4, generator=generator)
    return torch.nn.Parameter(mean), torch.nn.Parameter(torch.zeros(16, 2, 4))


def settle(detach: bool) -> Tensor:
    """Log variances after 300 steps on the divergence alone."""
    model = prior(detach_latent_in_prior=detach, diffusion_steps=50).train()
    mean, log_variance = toy(0)
    context = torch.zeros(16, 2, model.config.d_model)
    optimizer = torch.optim.Adam([mean, log_variance, *model.parameters()], lr=0.05)
    torch.manual_seed(1)
    for _ in range(300):
        held = log_variance.clamp(-5, 5)
        drawn = Gaussians(mean, held, mean + (held / 2).exp() * torch.randn_like(mean))
        loss = drawn.negative_entropy() + model.cross_entropy(drawn, context, model.draw(16, mean.device))
        optimizer.zero_grad()
        loss.mean().backward()
        optimizer.step()
    return log_variance.detach()


def test_variances_run_away_when_the_prior_cannot_pull_on_the_posterior():
    assert float(settle(detach=True).mean()) > 5
    assert float(settle(detach=False).mean()) < 0


def test_the_prior_reaches_posterior_and_context_unless_it_is_detached():
    for detach in (False, True):
        model = prior(detach_latent_in_prior=detach)
        mean, log_variance = toy(0)
        context = torch.randn(16, 2, model.config.d_model, requires_grad=True)
        drawn = Gaussians(mean, log_variance, mean + log_variance)
        torch.manual_seed(0)
        model.cross_entropy(drawn, context, model.draw(16, mean.device)).sum().backward()
        assert context.grad is not None
        assert bool(context.grad.any())
        assert (mean.grad is None) == detach


@pytest.mark.parametrize("weighting", ["vlb", "paper", "simple"])
def test_the_whole_loss_has_its_whole_gradient(weighting):
    model = prior(prior_weighting=weighting).double()
    torch.manual_seed(0)
    mean, log_variance, context = (torch.randn(2, 2, size, dtype=torch.float64) for size in (4, 4, 16))
    noise, draws = torch.randn_like(mean), model.draw(2, mean.device)

    def loss(mean: Tensor, log_variance: Tensor, context: Tensor) -> Tensor:
        drawn = Gaussians(mean, log_variance, mean + (log_variance / 2).exp() * noise)
        return model.cross_entropy(drawn, context, draws)

    inputs = tuple(one.requires_grad_() for one in (mean, log_variance, context))
    assert torch.autograd.gradcheck(loss, inputs, fast_mode=True)


def test_importance_of_a_hidden_condition_is_only_the_denoisers():
    model = prior()
    torch.manual_seed(0)
    drawn = Gaussians(*(torch.randn(2, 2, 4) for _ in range(3)))
    context = torch.randn(2, 2, model.config.d_model, requires_grad=True)
    draws = model.draw(2, context.device)
    hidden = PriorDraws(draws.timestep, draws.noise, torch.tensor([True, False]))
    model.cross_entropy(drawn, context, hidden).sum().backward()
    assert context.grad is not None
    assert not context.grad[0].any()
    assert bool(context.grad[1].any())


@pytest.mark.parametrize("weighting", ["vlb", "simple"])
def test_a_trained_denoiser_keeps_what_is_nearly_clean_and_samples_latents_that_vary(weighting):
    torch.manual_seed(1)
    spread, rows = 0.8, 32
    model = dior.model(
        prior_weighting=weighting, diffusion_steps=50, beta_start=0.002, beta_end=0.4, denoiser_width=64
    )
    prior = model.latent.prior
    context = torch.zeros(rows, model.config.latent_groups, model.config.d_model)
    optimizer = torch.optim.Adam(prior.parameters(), 3e-3)
    for _ in range(300):
        drawn = spread * torch.randn(rows, model.config.latent_groups, model.config.latent_size)
        clean = Gaussians(drawn, torch.full_like(drawn, -5.0), drawn)
        loss = prior.cross_entropy(clean, context, prior.draw(rows, context.device)).mean()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(prior.parameters(), 1.0)
        optimizer.step()
    latents = spread * torch.randn(8 * rows, model.config.latent_total)
    first = torch.ones(len(latents), dtype=torch.long)
    noisy = diffusion.diffuse(diffusion.of_config(model.config), latents, first, torch.randn_like(latents))
    with torch.no_grad():
        error = (prior(context.flatten(1).repeat(8, 1), first, noisy) - latents).square().mean()
        sampled = prior.sample(context.repeat(8, 1, 1), torch.randn(8 * rows, *model.noise_shape()))
    assert error < 0.15 * spread**2, "the step that sampling ends with sees nearly clean latents"
    assert 0.7 * spread < sampled.std() < 1.5 * spread
