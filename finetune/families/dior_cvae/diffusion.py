"""Gaussian diffusion of a latent vector with a network that predicts the clean vector (x0).

What is called alpha_t in the paper is the cumulative product; here `signal[t]`. Steps count from 1 to T;
index 0 of a table is the clean vector. Tables are float64: the differences of signal-to-noise ratios need it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from finetune.families.dior_cvae.configuration import DiorConfig, TimestepSampler, Weighting
from pretrain.errors import UserError

LOG_2PI = math.log(2 * math.pi)
PAPER_BETAS = (5e-6, 1e-3)
"""As printed in appendix A; with 50 steps the last one still is 98.7 % signal."""
LARGEST_BETA = 0.95
MOST_SIGNAL = 0.01
"""More than this left after the last step and pure noise is no place to start from."""


@dataclass(frozen=True)
class Schedule:
    """How much noise each step adds; `[T + 1]` float64 each."""

    betas: Tensor
    """Variance that step t adds; 0 at t = 0."""
    signal: Tensor
    """Share of the clean vector's variance that is left after step t; 1 at t = 0."""

    @property
    def steps(self) -> int:
        return len(self.betas) - 1

    @property
    def snr(self) -> Tensor:
        """Signal-to-noise ratio; infinite at t = 0."""
        return self.signal / (1 - self.signal)

    @property
    def posterior_variances(self) -> Tensor:
        """Variance of q(z_{t-1} | z_t, z), which DDPM's ancestral step uses; 0 at t = 0 and 1."""
        before = torch.cat([self.signal[:1], self.signal[:-1]])
        return self.betas * (1 - before) / (1 - self.signal).clamp(min=1e-300)

    @property
    def leaves_signal(self) -> bool:
        """Whether the last step is not noise, so that sampling starts from a wrong place."""
        return float(self.signal[-1]) > MOST_SIGNAL


def scaled_betas(steps: int) -> tuple[float, float]:
    """First and last variance of the linear schedule of Ho et al. for so many steps: 0.002 and 0.4 for 50.

    Whatever their number, nothing but noise is left after the last one.
    """
    return min(0.1 / steps, LARGEST_BETA), min(20.0 / steps, LARGEST_BETA)


def linear_schedule(steps: int, start: float, end: float) -> Schedule:
    """Step variances that grow linearly from `start` to `end`."""
    # The device is named: from_pretrained builds models on the meta device, where tables have no values.
    betas = torch.linspace(start, end, steps, dtype=torch.float64, device="cpu")
    betas = torch.cat([betas.new_zeros(1), betas])
    return Schedule(betas, torch.cumprod(1 - betas, 0))


def diffuse(schedule: Schedule, clean: Tensor, timestep: Tensor, noise: Tensor) -> Tensor:
    """Eq. 3: z_t of `clean` [B, D] at `timestep` [B] with `noise` [B, D]."""
    signal = schedule.signal.to(clean.device)[timestep, None]
    return signal.sqrt().to(clean.dtype) * clean + (1 - signal).sqrt().to(clean.dtype) * noise


def implied_noise(schedule: Schedule, noisy: Tensor, estimate: Tensor, timestep: int) -> Tensor:
    """Algorithm 1, line 14: the noise in z_t if the clean vector is `estimate`."""
    signal = float(schedule.signal[timestep])
    return (noisy - math.sqrt(signal) * estimate) / math.sqrt(1 - signal)


@dataclass(frozen=True)
class Sampler:
    """Algorithm 1's reverse steps with their noise."""

    schedule: Schedule
    variances: Tensor
    """`[T + 1]` sigma_t squared; index 0 and 1 are not used."""

    def __post_init__(self) -> None:
        room = (1 - self.schedule.signal)[1:-1] - self.variances[2:]
        if bool((room < -1e-12).any()):
            worst = int(room.argmin()) + 2
            raise UserError(
                f"the variance of reverse step {worst} is {float(self.variances[worst]):.3g}, "
                f"at most {float(1 - self.schedule.signal[worst - 1]):.3g} is possible",
                where="diffusion sampler",
                mend="eta from 0 to 1",
            )

    def back(self, noisy: Tensor, estimate: Tensor, noise: Tensor, timestep: int) -> Tensor:
        """Line 15: z_{t-1} from z_t, the estimate of the clean vector and fresh noise, `[B, D]` each."""
        before = float(self.schedule.signal[timestep - 1])
        variance = float(self.variances[timestep])
        direction = implied_noise(self.schedule, noisy, estimate, timestep)
        return (
            math.sqrt(before) * estimate
            + math.sqrt(max(1 - before - variance, 0.0)) * direction
            + math.sqrt(variance) * noise
        )


def sampler(schedule: Schedule, eta: float) -> Sampler:
    """Ancestral steps whose noise has `eta` times the standard deviation: 1 is DDPM, 0 DDIM."""
    return Sampler(schedule, eta**2 * schedule.posterior_variances)


Denoise = Callable[[Tensor, int], Tensor]
"""(z_t [B, D], t) -> estimate of the clean vector."""


@dataclass(frozen=True)
class ReverseStep:
    """Where sampling stands after one reverse step."""

    timestep: int
    """t of the step: the last one is 1."""
    state: Tensor
    """z_{t-1}; after the last step the clean vector itself."""
    estimate: Tensor
    """What the denoiser takes the clean vector for."""


def reverse(denoise: Denoise, noise: Tensor, steps: Sampler) -> Iterator[ReverseStep]:
    """Algorithm 1, lines 7 to 16, one step at a time.

    Args:
        noise: `[B, T, D]`: first z_T, then the fresh noise of the steps T, ..., 2.
    """
    state = noise[:, 0]
    for number, t in enumerate(range(steps.schedule.steps, 0, -1), 1):
        estimate = denoise(state, t)
        state = estimate if t == 1 else steps.back(state, estimate, noise[:, number], t)
        yield ReverseStep(t, state, estimate)


def sample(denoise: Denoise, noise: Tensor, steps: Sampler) -> Tensor:
    """The clean vector [B, D] at the end of all reverse steps."""
    *_, last = reverse(denoise, noise, steps)
    return last.state


@dataclass(frozen=True)
class Objective:
    """The weighted regression of the denoiser as an estimate of the cross-entropy E_q[-log p(z)] in nats.

    With the weighting `vlb` its expectation is the variational upper bound, term by term. `paper` (Eq. 16
    with sigma_t squared = beta_t and the norm squared) and `simple` are means over t, and no bounds.
    """

    schedule: Schedule
    weighting: Weighting
    weights: Tensor
    """`[T + 1]` factor of the squared error at step t."""
    probabilities: Tensor
    """`[T + 1]` how often t is drawn."""

    def draw(self, rows: int, device: torch.device) -> Tensor:
        """Steps for a batch [rows] int64, stratified: rows split the probability evenly among them."""
        edges = self.probabilities[1:].cumsum(0).to(device)
        places = torch.randperm(rows, device=device) + torch.rand(rows, dtype=torch.float64, device=device)
        found = torch.searchsorted(edges, places / rows * edges[-1], right=True)
        return found.clamp(max=self.schedule.steps - 1) + 1

    def constant(self, size: int) -> float:
        """What does not depend on the denoiser, for `size` dimensions."""
        if self.weighting == "vlb":
            return size / 2 * (LOG_2PI + math.log(float(self.schedule.betas[1])))
        return size / 2 * LOG_2PI if self.weighting == "simple" else 0.0

    def terminal(self, clean: Tensor) -> Tensor:
        """KL(q(z_T | z) || N(0, I)) [B] of `clean` [B, D], a part of the bound alone."""
        if self.weighting != "vlb":
            return torch.zeros_like(clean[:, 0])
        left = float(self.schedule.signal[-1])
        return 0.5 * (left * clean**2 - left - math.log1p(-left)).sum(dim=1)

    def estimate(self, clean: Tensor, predicted: Tensor, timestep: Tensor) -> Tensor:
        """From one step a row: [B], unbiased for what `exact` gives.

        Args:
            clean: `[B, D]` z.
            predicted: `[B, D]` the denoiser's estimate of it at `timestep` [B].
        """
        mean = 1.0 if self.weighting == "vlb" else 1.0 / self.schedule.steps
        factors = (mean * self.weights / self.probabilities).to(clean.device)[timestep].to(clean.dtype)
        error = (clean - predicted).square().sum(dim=1)
        return factors * error + self.terminal(clean) + self.constant(clean.shape[1])

    def exact(self, clean: Tensor, predict: Callable[[int], Tensor]) -> Tensor:
        """Over all steps: [B]. `predict` gives the denoiser's estimate [B, D] at a step."""
        total = self.terminal(clean) + self.constant(clean.shape[1])
        mean = 1.0 if self.weighting == "vlb" else 1.0 / self.schedule.steps
        for t in range(1, self.schedule.steps + 1):
            total = total + mean * float(self.weights[t]) * (clean - predict(t)).square().sum(dim=1)
        return total

    def slack(self, size: int) -> float:
        """How far above the entropy the bound is, in nats, for `size` standard normal dimensions.

        The best denoiser of N(0, 1) is sqrt(signal) z_t, whose squared error is 1 - signal.
        """
        schedule = self.schedule
        errors = (self.weights[1:] * (1 - schedule.signal[1:])).sum()
        mean = 1.0 if self.weighting == "vlb" else 1.0 / schedule.steps
        terminal = -0.5 * math.log1p(-float(schedule.signal[-1])) if self.weighting == "vlb" else 0.0
        entropy = 0.5 * (LOG_2PI + 1)
        return size * (mean * float(errors) + terminal + self.constant(1) - entropy)


def objective(schedule: Schedule, weighting: Weighting, sampling: TimestepSampler) -> Objective:
    """The denoiser's objective; see `Objective`."""
    betas = schedule.betas.clone()
    betas[0] = 1.0  # never used; keeps the tables finite
    if weighting == "vlb":
        weights = torch.zeros_like(betas)
        weights[2:] = 0.5 * (schedule.snr[1:-1] - schedule.snr[2:])
        weights[1] = 0.5 / betas[1]
    else:
        weights = 0.5 / betas if weighting == "paper" else torch.full_like(betas, 0.5)
    likely = torch.ones_like(betas)
    if sampling == "importance" and weighting != "simple":
        # The error at t is about that of standard normal latents: draws then count about equally. Not where
        # they count the same to begin with: the first steps would hardly be drawn, the denoiser would ignore
        # the latents there, and sampling, which ends with them, would return the latents' mean.
        likely = weights * (1 - schedule.signal)
    likely[0] = 0.0
    probabilities = likely / likely.sum()
    probabilities[0] = 1.0  # never drawn; never divides by zero
    return Objective(schedule, weighting, weights, probabilities)


def of_config(config: DiorConfig) -> Schedule:
    """The schedule of a model."""
    return objective_of(config).schedule


def objective_of(config: DiorConfig) -> Objective:
    """The objective of a model's denoiser."""
    return _objective(
        config.diffusion_steps,
        config.beta_start,
        config.beta_end,
        config.prior_weighting,
        config.timestep_sampler,
    )


@lru_cache(maxsize=8)
def _objective(steps: int, start: float, end: float, weighting: str, sampling: str) -> Objective:
    # DiorConfig has checked the words.
    return objective(linear_schedule(steps, start, end), weighting, sampling)  # type: ignore[arg-type]


def timestep_embedding(timestep: Tensor, width: int) -> Tensor:
    """Sinusoids of Vaswani et al.: [B] integers -> [B, width] float32, sine and cosine in turn."""
    half = -(-width // 2)
    rates = torch.exp(
        torch.arange(half, dtype=torch.float32, device=timestep.device) * (-2 * math.log(10000.0) / width)
    )
    angles = timestep[:, None].to(torch.float32) * rates
    return torch.stack([angles.sin(), angles.cos()], dim=-1).flatten(1)[:, :width]
