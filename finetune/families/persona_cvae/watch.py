"""What evaluation says of the latents: perplexities, divergences, active units, the fader's calibration."""

from __future__ import annotations

import statistics
from collections.abc import Mapping

import torch
from torch import Tensor

from finetune.batch import TurnBatch
from finetune.drawing import normal, row_keys
from finetune.families.persona_cvae import objectives
from finetune.families.persona_cvae.modeling import PersonaCvae
from finetune.metrics import latent
from finetune.metrics.perplexity import perplexity, with_latent_cost
from pretrain.model.loss import IGNORED

DRAWS = 3


@torch.no_grad()
def gather(model: PersonaCvae, batch: TurnBatch, memory: Tensor) -> Mapping[str, Tensor]:
    """Figures of each row, `[A, ...]`; noise belongs to the turn, so no batch changes them."""
    if not model.config.latents:
        return {}
    read = model.read(batch, memory)
    q, p = model.recognize(batch), model.foresee(batch)
    noise = normal(row_keys(batch, 0, DRAWS + 1), (model.config.width,), q.mean.device)
    noise = noise.view(len(q.mean), DRAWS + 1, -1)
    zp, za = q.sample(noise[:, DRAWS]), None
    found: dict[str, Tensor] = {}
    if model.config.fader != "off":
        alpha = model.alpha(batch)
        za = alpha[:, None].expand_as(zp)
        found["alpha"] = alpha
    posterior = model.token_losses(read, batch, model.latents(zp, za))
    prior, levels = [], []
    for draw in range(DRAWS):
        guess, level = p.sample(noise[:, draw]), None
        if za is not None:
            level = model.level(batch, guess)
            levels.append(level.mean(dim=-1))
        prior.append(model.token_losses(read, batch, model.latents(guess, level)))
    if za is not None:
        found["level"] = torch.stack(levels, dim=1).mean(dim=1)
    kl = objectives.gaussian_kl(q.mean, q.logvar, p.mean, p.logvar)
    return {
        **found,
        "mean": q.mean,
        "logvar": q.logvar,
        "kl": kl.sum(dim=-1),
        "nll_posterior": posterior,
        "nll_prior": torch.stack(prior, dim=1),
        "tokens": (batch.labels != IGNORED).sum(dim=1),
    }


def summarize(gathered: Mapping[str, Tensor]) -> Mapping[str, float]:
    """Of all examples: perplexity from the prior (mean over draws), from the posterior and of the ELBO; KL
    summed over dimensions; active units; how well the prior's level follows the fader's target."""
    if "kl" not in gathered:
        return {}
    tokens = max(float(gathered["tokens"].sum()), 1.0)
    kl, nll = gathered["kl"].double(), float(gathered["nll_posterior"].double().sum())
    draws = gathered["nll_prior"].double().sum(dim=0).tolist()
    found = {
        "perplexity_prior": statistics.fmean(perplexity(draw, tokens) for draw in draws),
        "perplexity_posterior": perplexity(nll, tokens),
        "perplexity_elbo": with_latent_cost(nll, float(kl.sum()), tokens),
        "kl": float(kl.mean()),
        "log_sigma": float(0.5 * gathered["logvar"].double().mean()),
    }
    if len(kl) > 1:
        mean = gathered["mean"].double().numpy()
        found["active_units"] = float(latent.active_units(mean))
        found["active_units_relative"] = float(
            latent.active_units_relative(mean, gathered["logvar"].double().numpy())
        )
    if "alpha" in gathered:
        alpha, level = gathered["alpha"].double(), gathered["level"].double()
        found["fader_target"], found["fader_level"] = float(alpha.mean()), float(level.mean())
        if len(alpha) > 2 and alpha.std() > 0 and level.std() > 0:
            pearson, spearman = latent.calibration(level.numpy(), alpha.numpy())
            found |= {"fader_pearson": pearson, "fader_spearman": spearman}
    return found
