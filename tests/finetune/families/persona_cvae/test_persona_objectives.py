"""Divergences, Po-di, the fader's similarity and the schedules, each against a plain computation."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.distributions import Normal, kl_divergence

from finetune.families.persona_cvae import objectives as o
from finetune.families.persona_cvae.configuration import authors_points

LAMBDA = 0.15


def gaussians(rows: int, width: int, seed: int = 0, spread: float = 1.0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    mean = spread * torch.randn(rows, width, generator=generator, dtype=torch.float64)
    return mean, 0.5 * torch.randn(rows, width, generator=generator, dtype=torch.float64)


def everyone(rows: int) -> Tensor:
    return ~torch.eye(rows, dtype=torch.bool)


def podi(mean: Tensor, logvar: Tensor, form: str = "per_dim", valid: Tensor | None = None) -> Tensor:
    pairs = everyone(len(mean)) if valid is None else valid
    return o.posterior_discrimination(mean, logvar, pairs, LAMBDA, form)


def test_the_divergence_is_that_of_torch_and_of_samples() -> None:
    (m, v), (n, w) = gaussians(4, 6), gaussians(4, 6, 1)
    mine = o.gaussian_kl(m, v, n, w)
    q, p = Normal(m, (0.5 * v).exp()), Normal(n, (0.5 * w).exp())
    assert torch.allclose(mine, kl_divergence(q, p), atol=1e-12)
    torch.manual_seed(0)
    draws = q.sample((20_000,))
    ratio = q.log_prob(draws) - p.log_prob(draws)
    error = ratio.std(0) / 20_000**0.5
    assert ((ratio.mean(0) - mine).abs() < 4.5 * error).all()  # 24 figures at a time
    assert not torch.allclose(mine, o.gaussian_kl(n, w, m, v))
    assert (o.gaussian_kl(m, v, m, v) == 0).all()


def test_the_divergence_keeps_small_gaps_and_large_variances() -> None:
    zero = torch.zeros(1, 1)
    assert float(o.gaussian_kl(zero + 1e-4, zero, zero, zero)) == pytest.approx(5e-9, rel=1e-5)
    found = o.gaussian_kl(zero, zero + 8, zero, zero - 8)
    assert torch.isfinite(found).all()
    inputs = [t[:1, :3].clone().requires_grad_() for t in (*gaussians(2, 3), *gaussians(2, 3, 1))]
    assert torch.autograd.gradcheck(o.gaussian_kl, inputs)


def test_the_mean_over_dimensions_times_their_number_is_the_sum() -> None:
    each = o.gaussian_kl(*gaussians(3, 5), *gaussians(3, 5, 1))
    assert torch.allclose(o.reduce(each, "mean_dims") * 5, o.reduce(each, "sum_dims"))


def test_samples_have_the_mean_and_variance_and_pass_gradients() -> None:
    mean = torch.full((20_000, 1), 2.0, requires_grad=True)
    logvar = torch.full((20_000, 1), -1.0, requires_grad=True)
    torch.manual_seed(0)
    drawn = o.sample(mean, logvar, torch.randn(20_000, 1))
    assert float(drawn.detach().mean()) == pytest.approx(2, abs=0.02)
    assert float(drawn.detach().var()) == pytest.approx(float(torch.tensor(-1.0).exp()), rel=0.05)
    assert torch.equal(o.sample(mean, logvar, torch.zeros(20_000, 1)), mean)
    drawn.square().sum().backward()
    assert mean.grad is not None
    assert logvar.grad is not None
    assert mean.grad.abs().sum() > 0
    assert logvar.grad.abs().sum() > 0


def test_podi_is_the_released_sum_over_pairs() -> None:
    mean, logvar = gaussians(32, 4, spread=0.3)
    total = 0.0
    for i in range(32):
        for j in range(32):
            if i != j:
                each = o.gaussian_kl(mean[i], logvar[i], mean[j], logvar[j])
                total += float((each - LAMBDA).clamp(max=0).square().mean())
    assert float(podi(mean, logvar).mean() * 992) == pytest.approx(total, rel=1e-10)


def test_podi_is_full_at_collapse_and_none_where_all_is_apart() -> None:
    zeros = torch.zeros(8, 4)
    assert torch.allclose(podi(zeros, zeros), torch.full((8,), LAMBDA**2))
    near = 1e-4 * torch.randn(8, 4, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(podi(near, zeros), torch.full((8,), LAMBDA**2), rtol=1e-4)
    apart = 10.0 * torch.arange(8.0)[:, None].expand(8, 4)
    assert (podi(apart, zeros) == 0).all()
    assert (podi(zeros[:1], zeros[:1]) == 0).all()
    assert torch.equal(podi(near.bfloat16(), zeros.bfloat16()), podi(near.bfloat16().float(), zeros))


def test_podi_pushes_near_posteriors_apart_but_cannot_start_from_collapse() -> None:
    def gradient(mean: Tensor) -> Tensor:
        mean = mean.requires_grad_()
        podi(mean, torch.zeros_like(mean)).sum().backward()
        assert mean.grad is not None
        return mean.grad

    assert (gradient(torch.zeros(2, 1)) == 0).all()
    found = gradient(torch.tensor([[0.0], [0.1]]))
    assert found[0] > 0 > found[1]


def test_podi_does_not_see_order_batch_size_or_equal_profiles() -> None:
    mean, logvar = gaussians(12, 3, spread=0.2)
    order = torch.randperm(12, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(podi(mean[order], logvar[order]), podi(mean, logvar)[order])
    pairs = [podi(mean[[i, j]], logvar[[i, j]]).mean() for i in range(12) for j in range(i)]
    assert torch.allclose(torch.stack(pairs).mean(), podi(mean, logvar).mean())
    live = torch.ones(3, dtype=torch.bool)
    same = o.different(torch.tensor([7, 7, 7]), live)
    assert (podi(mean[:3], logvar[:3], valid=same) == 0).all()
    one = o.different(torch.tensor([7, 7, 8]), torch.tensor([True, True, False]))
    assert not one.any()


def test_the_forms_of_the_hinge_are_ordered() -> None:
    mean, logvar = gaussians(8, 16, spread=0.4)
    assert (podi(mean, logvar) >= podi(mean, logvar, "mean_dim") - 1e-12).all()
    lone = torch.zeros(2, 16)
    lone[1, 0] = 5
    zeros = torch.zeros(2, 16)
    assert (podi(lone, zeros, "sum_dim") == 0).all()
    assert (podi(lone, zeros) > 0).all()


def test_rolled_pairs_have_one_partner() -> None:
    mean, logvar = gaussians(4, 3, spread=0.2)
    found = o.posterior_discrimination(mean, logvar, everyone(4), LAMBDA, pairs="roll")
    for row in range(4):
        each = o.gaussian_kl(mean[row], logvar[row], mean[(row + 1) % 4], logvar[(row + 1) % 4])
        assert torch.allclose(found[row], (each - LAMBDA).clamp(max=0).square().mean())


@pytest.mark.parametrize(("cosines", "level"), [((0.8,), 0.8), ((0.3, 0.0), 0.15), ((), 0.0), ((-0.8,), 0.8)])
def test_the_fader_knows_one_clear_hit_from_many_faint_ones(cosines: tuple[float, ...], level: float) -> None:
    keys = torch.zeros(1, 2, 3)
    there = torch.zeros(1, 2, dtype=torch.bool)
    for number, cosine in enumerate(cosines):
        keys[0, number] = torch.tensor([cosine, 0.0, (1 - cosine**2) ** 0.5])
        there[0, number] = True
    reply = torch.tensor([[[1.0, 0, 0], [0, 0, 0]]])
    found = o.similarity(keys, there, reply, torch.tensor([[True, False]]), "authors", 0.4)
    assert float(found) == pytest.approx(level, abs=1e-6)


def test_word_vectors_are_means_of_pieces_and_padding_is_no_word() -> None:
    table = torch.tensor([[9.0, 9], [1, 0], [0, 1]])
    found, there = o.word_vectors(table, torch.tensor([[1, 2, 1, 0]]), torch.tensor([[1, 1, 2, 0]]))
    assert torch.allclose(found[0], torch.tensor([[0.5**0.5, 0.5**0.5], [1.0, 0.0]]))
    assert there.all()
    level = o.similarity(found[:, 1:], there[:, 1:], found, there, "overlap", 0.4)
    assert float(level) == 1


def test_only_the_gaussian_divergence_teaches_the_level() -> None:
    level = torch.full((3, 8), 0.2, requires_grad=True)
    alphas = torch.tensor([0.0, 0.3, 0.9])
    assert o.fader_kl(level, alphas, "authors_softmax", 0.25).abs().max() < 1e-6
    uneven = torch.randn(1, 8, generator=torch.Generator().manual_seed(0)).expand(3, 8)
    flat = o.fader_kl(uneven, alphas, "authors_softmax", 0.25)
    assert torch.allclose(flat, flat[:1].expand(3))
    o.fader_kl(level, alphas, "gaussian", 0.25).sum().backward()
    assert level.grad is not None
    assert (level.grad[0] > 0).all()
    assert (level.grad[2] < 0).all()


def test_a_level_as_a_direction_outlives_a_norm() -> None:
    levels = torch.tensor([0.0, 0.3, 0.9, 1.0])[:, None].expand(4, 16)
    found = torch.nn.functional.layer_norm(o.as_direction(levels), (16,))
    assert torch.allclose(o.as_direction(levels).mean(dim=1), torch.zeros(4), atol=1e-6)
    apart = torch.cdist(found, found)
    assert (apart[0].diff() > 0.1).all()
    plain = torch.nn.functional.layer_norm(levels, (16,))
    assert torch.cdist(plain, plain).max() < 1e-3


def test_the_set_of_words_is_scored_as_binary_choices() -> None:
    logits = torch.randn(2, 5, generator=torch.Generator().manual_seed(0))
    labels = torch.tensor([[3, 3, 1, -100], [-100] * 4])
    found = o.word_set(logits, labels, -100)
    for row, there in enumerate(({1, 3}, set())):
        each = [
            -3350 * logits[row, n].sigmoid().log() if n in there else -(1 - logits[row, n].sigmoid()).log()
            for n in range(5)
        ]
        assert float(found[row]) == pytest.approx(float(sum(each)) / 5, rel=1e-4)


def test_schedules() -> None:
    assert [o.annealed(t, 5000) for t in (0, 2500, 5000, 9000)] == [0, 0.5, 1, 1]
    assert [o.cyclic(t, 400) for t in (0, 25, 50, 99, 100)] == [0, 0.5, 1, 1, 0]


def test_injection_points_are_those_of_the_released_code() -> None:
    assert [authors_points(n) for n in (24, 12, 6)] == [(4, 10, 16, 22), (1, 4, 7, 10), (0, 1, 3, 4)]
    assert authors_points(2) == (0,)
