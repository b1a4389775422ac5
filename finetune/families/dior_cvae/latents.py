"""The hierarchical latent variables: pooling, lower latents, posterior (Eq. 7 to 10 and 14)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from finetune.families.dior_cvae.configuration import DiorConfig
from finetune.families.dior_cvae.diffusion import LOG_2PI

LIMIT = 5.0
"""Means and log variances are clamped to ±this, as in the authors' code; no gradient comes from beyond."""

Draw = Callable[[int, Tensor, Tensor], Tensor]
"""(group, mean [B, z], standard deviation [B, z]) -> its value."""


class FreshLinear(nn.Linear):
    """A linear map that no backbone has: N(0, latent_init_std²) weights, zero bias."""


class WideLinear(FreshLinear):
    """The same in float32 at least, whatever autocast and the weights say: variances and bounds need it."""

    def forward(self, input: Tensor) -> Tensor:
        kind = torch.promote_types(self.weight.dtype, torch.float32)
        bias = None if self.bias is None else self.bias.to(kind)
        with torch.autocast(input.device.type, enabled=False):
            return nn.functional.linear(input.to(kind), self.weight.to(kind), bias)


class AttentionPool(nn.Module):
    """Eq. 10 after Yang et al. (2016): a learned query over a tanh projection of the states."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.dense = FreshLinear(width, width)
        self.query = WideLinear(width, 1, bias=False)

    def forward(self, states: Tensor, mask: Tensor) -> Tensor:
        """states [B, S, d], mask [B, S] (nonzero = real) -> [B, d], float32 or wider; padding is left out."""
        weights = self.weights(states, mask)
        with torch.autocast(states.device.type, enabled=False):
            return (weights[:, None] @ states.to(weights.dtype)).squeeze(1)

    def weights(self, states: Tensor, mask: Tensor) -> Tensor:
        """The share of each state, [B, S]."""
        scores = self.query(torch.tanh(self.dense(states))).squeeze(-1)
        return scores.masked_fill(mask == 0, torch.finfo(scores.dtype).min).softmax(dim=-1)


class LowerLatents(nn.Module):
    """Eq. 9: what the groups below a layer have said, from the same of the layer below and its group."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.below = WideLinear(size, size)
        self.latest = WideLinear(size, size)
        self.mix = WideLinear(2 * size, size)

    def forward(self, below: Tensor, latest: Tensor) -> Tensor:
        """z_{<l-1} and z_{l-1}, [B, z] each -> z_{<l} [B, z]."""
        return torch.tanh(self.mix(torch.cat([self.below(below), self.latest(latest)], dim=-1)))


class GaussianHead(nn.Module):
    """A network with one tanh layer whose linear output is a mean and a log variance."""

    def __init__(self, inputs: int, hidden: int, size: int) -> None:
        super().__init__()
        self.hidden = WideLinear(inputs, hidden)
        self.output = WideLinear(hidden, 2 * size)

    def forward(self, inputs: Tensor) -> tuple[Tensor, Tensor]:
        """[B, inputs] -> two times [B, z]."""
        found = self.output(torch.tanh(self.hidden(inputs)))
        mean, log_variance = found.clamp(-LIMIT, LIMIT).chunk(2, dim=-1)
        return mean, log_variance


@dataclass(frozen=True)
class Gaussians:
    """L groups of independent Gaussians with a sample, `[B, L, z]` each."""

    mean: Tensor
    log_variance: Tensor
    sample: Tensor

    def negative_entropy(self) -> Tensor:
        """E log q, [B]: in closed form along the path that was sampled."""
        return -0.5 * (1 + LOG_2PI + self.log_variance).sum(dim=(1, 2))

    def cross_entropy(self, mean: Tensor, log_variance: Tensor) -> Tensor:
        """E_q[-log N(z; mean, exp(log_variance))], [B], in closed form."""
        spread = (self.mean - mean).square() + self.log_variance.exp()
        return 0.5 * (LOG_2PI + log_variance + spread * (-log_variance).exp()).sum(dim=(1, 2))

    def at_limit(self) -> tuple[Tensor, Tensor]:
        """Shares of means and of log variances that get no gradient for being at their limit, [B] each."""
        means, log_variances = (
            (found.detach().abs() >= LIMIT).flatten(1).double().mean(dim=1)
            for found in (self.mean, self.log_variance)
        )
        return means, log_variances

    def standard_divergence(self) -> Tensor:
        """KL(q_l || N(0, I)) of each group, [B, L]."""
        return 0.5 * (self.mean.square() + self.log_variance.exp() - 1 - self.log_variance).sum(dim=2)


class Hierarchy(nn.Module):
    """Groups one after the other, each from a Gaussian of features and the groups below it (Eq. 6 or 7)."""

    def __init__(self, config: DiorConfig, features: int) -> None:
        super().__init__()
        self.size = config.latent_size
        self.lower = nn.ModuleList(LowerLatents(self.size) for _ in range(config.latent_groups - 1))
        self.heads = nn.ModuleList(
            GaussianHead(self.size + features, config.posterior_width, self.size)
            for _ in range(config.latent_groups)
        )

    def forward(self, features: Tensor, noise: Tensor) -> Gaussians:
        """Draw all groups with the reparameterization `noise` [B, L, z]; features [B, L, features]."""
        return self._walk(features, lambda group, mean, spread: mean + spread * noise[:, group])

    def given(self, features: Tensor, latents: Tensor) -> Gaussians:
        """The Gaussians that each group of `latents` [B, L, z] would be drawn from, after those below it."""
        return self._walk(features, lambda group, mean, spread: latents[:, group])

    def _walk(self, features: Tensor, draw: Draw) -> Gaussians:
        below = features.new_zeros(len(features), self.size)
        means: list[Tensor] = []
        log_variances: list[Tensor] = []
        samples: list[Tensor] = []
        for group, head in enumerate(self.heads):
            if group:
                below = self.lower[group - 1](below, samples[-1])
            mean, log_variance = head(torch.cat([below, features[:, group]], dim=-1))
            means.append(mean)
            log_variances.append(log_variance)
            samples.append(draw(group, mean, (log_variance / 2).exp()))
        return Gaussians(torch.stack(means, 1), torch.stack(log_variances, 1), torch.stack(samples, 1))
