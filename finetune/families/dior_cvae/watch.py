"""What to look at in evaluation: whether the latents live, and how well the prior finds them.

Collapse shows as no difference between the cross-entropy with the posterior's latents, with the prior's and
with those of another reply. Of means and variances at their limit nothing is learnt any more.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from finetune.batch import TurnBatch
from finetune.drawing import normal, row_keys
from finetune.families.dior_cvae.configuration import DiorConfig
from finetune.families.dior_cvae.modeling import DiorForConditionalGeneration
from finetune.families.dior_cvae.prior import DiffusionPrior
from finetune.metrics.latent import active_units
from pretrain.model.loss import IGNORED


def gather(
    model: DiorForConditionalGeneration, batch: TurnBatch, memory: Tensor, seed: int
) -> dict[str, Tensor]:
    """Figures of each row, `[A, ...]`, with noise of each row's own.

    Only `nll_swapped` depends on the batch; of a reply alone in its batch it is that with its own latents.
    """
    config, device = model.config, batch.labels.device
    read = model.read(batch, memory)
    context = model.condition(read, batch.attention_mask)
    keys = row_keys(batch, seed, 1)
    noise = normal(keys, (config.latent_groups, config.latent_size), device)
    drawn = model.recognize(batch.labels, context, noise)
    prior = model.latent.prior
    sampled = prior.sample(context, normal([(*key, "prior") for key in keys], model.noise_shape(), device))
    swapped = _from_another(drawn.sample, (batch.labels != IGNORED).any(dim=1))
    bound = prior.exact_cross_entropy(
        drawn, context, normal([(*key, "bound") for key in keys], (config.latent_total,), device)
    )
    words = _words(batch.labels, config)
    means_at_limit, variances_at_limit = drawn.at_limit()
    found = {
        "tokens": (batch.labels != IGNORED).sum(dim=1),
        "nll_posterior": model.token_losses(read, batch.labels, drawn.sample, per_row=True)[0],
        "nll_prior": model.token_losses(read, batch.labels, sampled, per_row=True)[0],
        "nll_swapped": model.token_losses(read, batch.labels, swapped, per_row=True)[0],
        "nll_words": model.token_losses(read, batch.labels, drawn.sample, per_row=True, scored=words)[0],
        "word_tokens": (words != IGNORED).sum(dim=1),
        "divergence": drawn.negative_entropy() + bound,
        "divergence_from_standard": drawn.standard_divergence(),
        "posterior_mean": drawn.mean.flatten(1),
        "means_at_limit": means_at_limit,
        "variances_at_limit": variances_at_limit,
    }
    if isinstance(prior, DiffusionPrior):
        found["divergence_slack"] = torch.full_like(bound, prior.objective.slack(config.latent_total))
    return found


def _words(labels: Tensor, config: DiorConfig) -> Tensor:
    """Labels without `<s>` and `</s>`, which are nearly free."""
    ends = (labels == config.bos_token_id) | (labels == config.eos_token_id)
    return labels.masked_fill(ends, IGNORED)


def _from_another(latents: Tensor, live: Tensor) -> Tensor:
    """Each live row with the latents of the live row before it."""
    rows = live.nonzero().squeeze(1)
    swapped = latents.clone()
    swapped[rows] = latents[rows.roll(1)]
    return swapped


def summarize(gathered: Mapping[str, Tensor]) -> dict[str, float]:
    """Figures of all replies: per token, or per reply where it says so."""
    wide = {name: values.double() for name, values in gathered.items()}
    tokens, words = wide["tokens"].sum().clamp(min=1), wide["word_tokens"].sum().clamp(min=1)
    posterior = float(wide["nll_posterior"].sum() / tokens)
    prior = float(wide["nll_prior"].sum() / tokens)
    divergence = wide["divergence"]
    found = {
        "perplexity_content": float((wide["nll_words"].sum() / words).exp()),
        "perplexity_prior": float(torch.tensor(prior, dtype=torch.float64).exp()),
        "nll_prior_excess": prior - posterior,
        "nll_swapped_excess": float(wide["nll_swapped"].sum() / tokens) - posterior,
        "kl_reply": float(divergence.mean()),
        "elbo_token": posterior + float(divergence.sum() / tokens),
        "active_units": float(active_units(wide["posterior_mean"].numpy())) if len(divergence) > 1 else 0.0,
        "means_at_limit": float(wide["means_at_limit"].mean()),
        "variances_at_limit": float(wide["variances_at_limit"].mean()),
    }
    for group, value in enumerate(wide["divergence_from_standard"].mean(dim=0).tolist(), 1):
        found[f"kl_standard_group_{group}"] = value
    if "divergence_slack" in wide:
        found["kl_slack"] = float(wide["divergence_slack"].mean())
    return found
