"""The prior of the latents given the context: diffusion, and the Gaussians it is compared with (Table 3)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from finetune.families.dior_cvae import diffusion
from finetune.families.dior_cvae.configuration import DiorConfig
from finetune.families.dior_cvae.latents import Gaussians, Hierarchy, WideLinear


@dataclass(frozen=True)
class PriorDraws:
    """The randomness of one training step in the prior; made before anything that may be computed twice."""

    timestep: Tensor
    """`[B]` int64 diffusion step of each row."""
    noise: Tensor
    """`[B, Dz]` what the latents are diffused with."""
    unconditional: Tensor
    """`[B]` bool: rows whose condition is hidden."""


class DiffusionPrior(nn.Module):
    """All groups jointly by a diffusion model (section 3.4); its denoiser predicts the clean latents."""

    def __init__(self, config: DiorConfig) -> None:
        super().__init__()
        self.config = config
        condition, hidden = config.latent_groups * config.d_model, config.denoiser_width
        self.enter = WideLinear(condition + config.latent_total, hidden)
        self.hidden = WideLinear(hidden, hidden)
        self.leave = WideLinear(hidden, config.latent_total)

    @property
    def noise_rows(self) -> int:
        """Vectors of noise that one sample takes."""
        return self.config.diffusion_steps

    @property
    def objective(self) -> diffusion.Objective:
        return diffusion.objective_of(self.config)

    def forward(self, condition: Tensor, timestep: Tensor, noisy: Tensor) -> Tensor:
        """Eq. 15: condition [B, L·d] (zeros: none), timestep [B], noisy [B, Dz] -> clean latents [B, Dz]."""
        time = diffusion.timestep_embedding(timestep, condition.shape[1]).to(condition.dtype)
        entered = self.enter(torch.cat([time + condition, noisy], dim=-1))
        found: Tensor = self.leave(torch.tanh(self.hidden(entered)))
        return found

    def draw(self, rows: int, device: torch.device) -> PriorDraws:
        """Fresh randomness for a batch; conditions are hidden in training only."""
        hidden = self.config.guidance_dropout if self.training else 0.0
        return PriorDraws(
            self.objective.draw(rows, device),
            torch.randn(rows, self.config.latent_total, device=device),
            torch.rand(rows, device=device) < hidden,
        )

    def cross_entropy(self, drawn: Gaussians, context: Tensor, draws: PriorDraws | None) -> Tensor:
        """L_reg: an estimate from one step a row of the bound of E_q[-log p(z | c)], [B] nats.

        context: `[B, L, d]`, Eq. 14 before it is flattened.
        """
        assert draws is not None
        clean, condition = self._inputs(drawn, context)
        noisy = diffusion.diffuse(
            diffusion.of_config(self.config), clean, draws.timestep, draws.noise.to(clean.dtype)
        )
        seen = condition.masked_fill(draws.unconditional[:, None], 0.0)
        return self.objective.estimate(clean, self(seen, draws.timestep, noisy), draws.timestep)

    def exact_cross_entropy(self, drawn: Gaussians, context: Tensor, noise: Tensor) -> Tensor:
        """The same bound with every step of the schedule, one `noise` [B, Dz] for all of them."""
        clean, condition = self._inputs(drawn, context)

        def predict(t: int) -> Tensor:
            timestep = torch.full((len(clean),), t, device=clean.device)
            noisy = diffusion.diffuse(
                diffusion.of_config(self.config), clean, timestep, noise.to(clean.dtype)
            )
            return self(condition, timestep, noisy)

        return self.objective.exact(clean, predict)

    def reverse(
        self, context: Tensor, noise: Tensor, guidance: float | None = None, eta: float | None = None
    ) -> Iterator[diffusion.ReverseStep]:
        """Algorithm 1, lines 7 to 16: context [B, L, d], noise [B, T, Dz]; each step's `[B, Dz]`."""
        weight = self.config.guidance_weight if guidance is None else guidance
        share = self.config.sampler_eta if eta is None else eta
        steps = diffusion.sampler(diffusion.of_config(self.config), share)
        condition = context.flatten(1)
        denoise = partial(self.guided, condition, weight)
        return diffusion.reverse(denoise, noise.to(condition.dtype), steps)

    def guided(self, condition: Tensor, weight: float, noisy: Tensor, t: int) -> Tensor:
        """Line 9: (1 + w) f(e_c) - w f(0), both in one call; without guidance (w = 0) only the first."""
        timestep = torch.full((len(noisy),), t, device=noisy.device)
        if weight == 0:
            return self(condition, timestep, noisy)
        both = torch.cat([condition, torch.zeros_like(condition)])
        seen, blind = self(both, timestep.repeat(2), noisy.repeat(2, 1)).chunk(2)
        return (1 + weight) * seen - weight * blind

    def sample(self, context: Tensor, noise: Tensor) -> Tensor:
        """Latents [B, L, z] for context [B, L, d]; noise [B, T, Dz] decides which."""
        *_, last = self.reverse(context, noise)
        return last.state.unflatten(1, (self.config.latent_groups, -1))

    def _inputs(self, drawn: Gaussians, context: Tensor) -> tuple[Tensor, Tensor]:
        clean = drawn.sample.detach() if self.config.detach_latent_in_prior else drawn.sample
        return clean.flatten(1), context.flatten(1)


class GaussianPrior(nn.Module):
    """N(0, I), or for `conditional` each group a Gaussian of the context and the groups below (Eq. 6)."""

    def __init__(self, config: DiorConfig) -> None:
        super().__init__()
        self.config = config
        self.hierarchy = Hierarchy(config, config.d_model) if config.prior == "conditional" else None

    noise_rows = 1

    def draw(self, rows: int, device: torch.device) -> None:
        """Nothing is drawn: the divergence has a closed form."""

    def cross_entropy(self, drawn: Gaussians, context: Tensor, draws: object) -> Tensor:
        """E_q[-log p(z | c)] along the sampled path, [B] nats, in closed form."""
        if self.hierarchy is None:
            zeros = torch.zeros_like(drawn.mean)
            return drawn.cross_entropy(zeros, zeros)
        latents = drawn.sample.detach() if self.config.detach_latent_in_prior else drawn.sample
        prior = self.hierarchy.given(context, latents)
        return drawn.cross_entropy(prior.mean, prior.log_variance)

    def exact_cross_entropy(self, drawn: Gaussians, context: Tensor, noise: Tensor) -> Tensor:
        """`cross_entropy` is exact already."""
        return self.cross_entropy(drawn, context, None)

    def sample(self, context: Tensor, noise: Tensor) -> Tensor:
        """Latents [B, L, z] for context [B, L, d]; noise [B, 1, Dz]."""
        groups = noise[:, 0].to(context.dtype).unflatten(1, (self.config.latent_groups, -1))
        return groups if self.hierarchy is None else self.hierarchy(context, groups).sample
