"""The terms of the loss beside the cross-entropy, per example, in float32 at least."""

from __future__ import annotations

import torch
from torch import Tensor

LOG_VARIANCE_LIMIT = 8.0
WORD_WEIGHT = 3350.0


def wide(tensor: Tensor) -> Tensor:
    """The tensor in float32, or wider if it is."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def gaussian_kl(mean_q: Tensor, logvar_q: Tensor, mean_p: Tensor, logvar_p: Tensor) -> Tensor:
    """KL(q || p) of each dimension, in a form that does not cancel for nearly equal Gaussians."""
    mean_q, logvar_q, mean_p, logvar_p = (wide(t) for t in (mean_q, logvar_q, mean_p, logvar_p))
    delta = logvar_q - logvar_p
    return 0.5 * (torch.expm1(delta) - delta + (mean_q - mean_p).square() * torch.exp(-logvar_p))


def sample(mean: Tensor, logvar: Tensor, noise: Tensor) -> Tensor:
    """mean + sigma · noise."""
    return wide(mean) + torch.exp(0.5 * wide(logvar)) * noise.to(mean.device)


def reduce(each: Tensor, form: str) -> Tensor:
    """`[A, D]` -> `[A]`: mean over dimensions as in the released code, or the sum that an ELBO has."""
    return each.mean(dim=-1) if form == "mean_dims" else each.sum(dim=-1)


def fader_kl(level: Tensor, alpha: Tensor, form: str, sigma: float) -> Tensor:
    """Divergence of the fader, `[A]`, from the prior's level `[A, D]` and the target `[A]`.

    `gaussian`: both are N(·, sigma²). `authors_softmax`: as released, both vectors through a softmax; it does
    not depend on alpha, since the target is constant over dimensions.
    """
    level, alpha = wide(level), wide(alpha)
    if form == "gaussian":
        return ((level - alpha[:, None]).square() / (2 * sigma**2)).mean(dim=-1)
    logs = torch.log_softmax(alpha[:, None].expand_as(level), dim=-1)
    return (logs.exp() * (logs - torch.log_softmax(level, dim=-1))).sum(dim=-1)


def posterior_discrimination(
    mean: Tensor, logvar: Tensor, valid: Tensor, threshold: float, form: str = "per_dim", pairs: str = "all"
) -> Tensor:
    """Eq. 4 for each example, `[A]`: mean over its valid partners of (min[KL(q_i || q_j) - λ, 0])².

    The mean over examples times B (B - 1) is the released code's sum over all ordered pairs.

    Args:
        mean, logvar: `[A, D]` of the posteriors.
        valid: `[A, A]` bool, the pairs that are to be told apart; an example without any gives 0.
        form: the hinge on every dimension, on their mean, or on their sum.
        pairs: `all`, or `roll`: each example with the one after it alone.
    """
    rows = len(mean)
    if pairs == "roll":
        after = torch.eye(rows, dtype=torch.bool, device=mean.device).roll(1, dims=1)
        valid = valid & after
    each = gaussian_kl(mean[:, None], logvar[:, None], mean[None], logvar[None])
    if form == "per_dim":
        lack = (each - threshold).clamp(max=0).square().mean(dim=-1)
    else:
        found = each.mean(dim=-1) if form == "mean_dim" else each.sum(dim=-1)
        lack = (found - threshold).clamp(max=0).square()
    return (lack * valid).sum(dim=1) / valid.sum(dim=1).clamp(min=1)


def different(keys: Tensor, live: Tensor) -> Tensor:
    """`[A, A]` bool: ordered pairs of live examples with different profiles."""
    return (keys[:, None] != keys[None]) & live[:, None] & live[None]


def word_vectors(table: Tensor, ids: Tensor, words: Tensor) -> tuple[Tensor, Tensor]:
    """Mean row of each word's pieces, of length 1.

    Args:
        table: `[V, D]`.
        ids, words: `[A, L]` pieces, and the number (from 1, 0 for padding) of the word each belongs to.

    Returns:
        `[A, W, D]`, and `[A, W]` bool: which words there are.
    """
    numbers = torch.arange(1, max(int(words.max()), 1) + 1, device=words.device)
    member = (words[:, None] == numbers[:, None]).to(table.dtype)
    sums = member @ table[ids]
    there = member.any(dim=-1)
    mean = sums / member.sum(dim=-1, keepdim=True).clamp(min=1)
    return torch.nn.functional.normalize(mean, dim=-1), there


def similarity(
    keywords: Tensor, key_there: Tensor, reply: Tensor, reply_there: Tensor, form: str, threshold: float
) -> Tensor:
    """The recognition of the fader: how much of a profile a reply shows, `[A]` in [0, 1], without gradient.

    `authors`: the largest of the keywords' best absolute cosines if it reaches the threshold, else their
    mean. `pdistance`: the mean of best cosines. `overlap`: the share of keywords that are in the reply.
    """
    cosines = keywords @ reply.transpose(1, 2)
    cosines = cosines.abs() if form == "authors" else cosines
    best = cosines.masked_fill(~reply_there[:, None], 0).amax(dim=-1).clamp(0, 1)
    best = best.masked_fill(~key_there, 0)
    if form == "overlap":
        best = (best > 1 - 1e-5).to(best.dtype)
    mean = best.sum(dim=-1) / key_there.sum(dim=-1).clamp(min=1)
    if form != "authors":
        return mean
    top = best.amax(dim=-1)
    return torch.where(top >= threshold, top, mean)


def as_direction(level: Tensor) -> Tensor:
    """Zα `[A, D]` as a direction: its mean a turns it from one pattern of signs (a = 0) to another (a = 1).

    A norm that stands before a layer takes away a constant over dimensions, and with it the level of the
    paper's Zα; both patterns have mean 0, so it leaves the angle between them.
    """
    place = torch.arange(level.shape[-1], device=level.device)
    full, none = ((1 - 2.0 * (place // width % 2)).to(level.dtype) for width in (1, 2))
    share = level.mean(dim=-1, keepdim=True)
    return share * full + (1 - share) * none


def word_set(logits: Tensor, labels: Tensor, ignored: int) -> Tensor:
    """Binary cross-entropy of which words a reply has, mean over the vocabulary, `[A]`.

    A word that is there counts `WORD_WEIGHT` times, as in the released code.

    Args:
        logits: `[A, V]`.
        labels: `[A, R]`, or `ignored`.
    """
    logits = wide(logits)
    there = torch.zeros_like(logits).scatter_add_(
        1, labels.masked_fill(labels == ignored, 0), (labels != ignored).to(logits.dtype)
    )
    weight = logits.new_tensor(WORD_WEIGHT)
    return torch.nn.functional.binary_cross_entropy_with_logits(
        logits, there.clamp(max=1), reduction="none", pos_weight=weight
    ).mean(dim=1)


def random_cosine(table: Tensor, pairs: int = 4000, share: float = 0.95) -> float:
    """A quantile of |cos| over random pairs of rows: the threshold of `similarity` for a table."""
    generator = torch.Generator().manual_seed(0)
    left, right = torch.randint(len(table), (2, pairs), generator=generator)
    cosines = torch.nn.functional.cosine_similarity(table[left].float(), table[right].float())
    return float(torch.quantile(cosines.abs(), share))


def annealed(update: int, steps: int) -> float:
    """Weight of the divergence from 0 to 1 over `steps` updates."""
    return min(1.0, update / steps) if steps else 1.0


def cyclic(update: int, total: int, cycles: int = 4, rising: float = 0.5) -> float:
    """Fu et al. (2019): in each cycle the weight rises from 0 to 1 over the share `rising`, then stays."""
    length = max(total / cycles, 1.0)
    return min(1.0, (update % length) / length / rising)
