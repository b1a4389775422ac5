"""Pooling, the hierarchical posterior, closed forms, and the losses that are made of them."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from finetune.batch import TurnBatch
from finetune.families.dior_cvae.latents import AttentionPool, Gaussians, WideLinear
from finetune.families.dior_cvae.modeling import DiorForConditionalGeneration, Draws
from finetune.families.dior_cvae.prior import PriorDraws
from pretrain.replay import seed
from tests.support import dior

BATCH = dior.batch()


def context_and_noise(model: DiorForConditionalGeneration, rows: int = 3) -> tuple[Tensor, Tensor]:
    torch.manual_seed(3)
    groups, size = model.config.latent_groups, model.config.latent_size
    return torch.randn(rows, groups, model.config.d_model), torch.randn(rows, groups, size)


# --- posterior ---


def test_the_lowest_posterior_does_not_depend_on_samples_and_the_others_do():
    model = dior.model()
    context, noise = context_and_noise(model)
    one = model.recognize(BATCH.labels, context, noise)
    two = model.recognize(BATCH.labels, context, -noise)
    assert torch.equal(one.mean[:, 0], two.mean[:, 0])
    assert torch.equal(one.log_variance[:, 0], two.log_variance[:, 0])
    assert not torch.allclose(one.mean[:, 1], two.mean[:, 1])


def test_the_posterior_sees_context_and_reply_in_every_group():
    model = dior.model()
    context, noise = context_and_noise(model)
    context.requires_grad_()
    replies: list[Tensor] = []
    for pool in model.latent.pool:
        pool.register_forward_hook(lambda module, args, out: replies.append(out))
    means = model.recognize(BATCH.labels, context, noise).mean
    for group in range(2):
        of_context, of_reply = torch.autograd.grad(
            means[:, group].sum(), [context, replies[group]], retain_graph=True
        )
        assert bool(of_context[:, group].any())
        assert bool(of_reply.any())


def test_every_group_knows_all_groups_below_it_and_no_other():
    model = dior.model(encoder_layers=3, decoder_layers=3)
    torch.manual_seed(0)
    features, latents = torch.randn(1, 3, 2 * 16), torch.randn(1, 3, 4, requires_grad=True)
    means = model.latent.posterior.given(features, latents).mean
    for group in range(3):
        (gradient,) = torch.autograd.grad(
            means[:, group].sum(), latents, retain_graph=True, allow_unused=True
        )
        heard = [False] * 3 if gradient is None else gradient.any(dim=2)[0].tolist()
        assert heard == [other < group for other in range(3)]


def test_means_and_log_variances_are_kept_within_limits():
    model = dior.model(latent_init_std=50.0)
    context, noise = context_and_noise(model)
    found = model.recognize(BATCH.labels, 100 * context, noise)
    assert found.log_variance.abs().max().item() == 5.0
    assert found.mean.abs().max().item() == 5.0


def test_what_stands_at_its_limit_gets_no_gradient_and_is_counted():
    mean = torch.tensor([[[5.0, -5.0], [4.9, 0.0]], [[0.0, 0.0], [0.0, 0.0]]])
    log_variance = torch.tensor([[[0.0, 0.0], [0.0, -5.0]], [[0.0, 0.0], [0.0, 0.0]]])
    counted = Gaussians(mean, log_variance, mean).at_limit()
    assert [shares.tolist() for shares in counted] == [[0.5, 0.0], [0.25, 0.0]]

    model = dior.model(latent_init_std=50.0)
    context, noise = context_and_noise(model)
    found = model.recognize(BATCH.labels, 100 * context, noise)
    stuck = found.mean.abs() == 5.0
    assert float(found.at_limit()[0].mean()) == pytest.approx(float(stuck.double().mean()))
    (gradient,) = torch.autograd.grad(
        found.mean[stuck].sum(), [model.latent.posterior.heads[0].output.weight]
    )
    assert bool(stuck.any())
    assert not gradient.any()


def test_a_fresh_posterior_is_nearly_standard_normal():
    model = dior.model(latent_init_std=0.02)
    context, noise = context_and_noise(model)
    assert float(model.recognize(BATCH.labels, context, noise).standard_divergence().detach().max()) < 0.05


# --- pooling ---


def test_padding_changes_no_pooled_vector():
    torch.manual_seed(0)
    pool = AttentionPool(16)
    for parameter in pool.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    states, mask = torch.randn(2, 5, 16), torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]])
    wider = torch.cat([states, 1e3 * torch.randn(2, 4, 16)], dim=1)
    padded = torch.nn.functional.pad(mask, (0, 4))
    assert torch.allclose(pool(states, mask), pool(wider, padded), atol=1e-6)
    weights = pool.weights(wider, padded)
    assert torch.allclose(weights.sum(dim=1), torch.ones(2))
    assert not weights[padded == 0].any()


def test_padding_of_a_batch_changes_no_part_of_the_loss():
    model = dior.model()
    wide = {
        "input_ids": torch.nn.functional.pad(BATCH.input_ids, (0, 5), value=1),
        "attention_mask": torch.nn.functional.pad(BATCH.attention_mask, (0, 5)),
        "labels": torch.nn.functional.pad(BATCH.labels, (0, 5), value=-100),
        "memory_resets": BATCH.memory_resets,
    }
    found = [losses(model, batch) for batch in (BATCH, TurnBatch(wide, BATCH.examples))]
    assert torch.allclose(*found, rtol=1e-5)


@pytest.mark.parametrize("slots", [4, 0])
def test_each_group_pools_what_its_own_encoder_layer_says(slots):
    model = dior.model(memory_len=slots, encoder_layers=3, decoder_layers=3)
    said: list[Tensor] = []
    for layer in model.model.encoder.layers:
        layer.register_forward_hook(
            lambda module, args, out: said.append(out[0] if isinstance(out, tuple) else out)
        )
    read = model.read(BATCH, model.construct_memory(3))
    context = model.condition(read, BATCH.attention_mask)
    assert len(said) == 3
    for group, (pool, states) in enumerate(zip(model.latent.pool, said, strict=True)):
        assert torch.allclose(context[:, group], pool(states, BATCH.attention_mask), atol=1e-6)


def test_slots_join_the_pool_of_the_context_where_wanted():
    plain, with_slots = dior.model(), dior.model(pool_memory_slots=True)
    memory = torch.randn(3, 4, 16)
    for model, matters in ((plain, False), (with_slots, True)):
        read = model.read(BATCH, memory)
        other = model.read(BATCH, memory)
        assert other.memory_states is not None
        other.memory_states = other.memory_states + 1
        same = torch.equal(
            model.condition(read, BATCH.attention_mask), model.condition(other, BATCH.attention_mask)
        )
        assert same != matters


# --- closed forms ---


def test_closed_forms_equal_monte_carlo_means():
    torch.manual_seed(0)
    mean, log_variance = torch.randn(2, 1, 2, 3, dtype=torch.float64)
    other, wider = torch.randn(2, 1, 2, 3, dtype=torch.float64)
    drawn = torch.distributions.Normal(mean, (log_variance / 2).exp())
    samples = drawn.sample((200_000,))
    target = torch.distributions.Normal(other, (wider / 2).exp())
    closed = Gaussians(mean, log_variance, mean)
    own = drawn.log_prob(samples).sum(dim=(1, 2, 3)).mean()
    crossed = -target.log_prob(samples).sum(dim=(1, 2, 3)).mean()
    assert float(closed.negative_entropy()) == pytest.approx(float(own), abs=0.02)
    assert float(closed.cross_entropy(other, wider)) == pytest.approx(float(crossed), rel=0.01)


def test_without_diffusion_the_divergence_is_that_from_the_standard_normal():
    model = dior.model(prior="standard")
    context, noise = context_and_noise(model)
    drawn = model.recognize(BATCH.labels, context, noise)
    divergence = drawn.negative_entropy() + model.latent.prior.cross_entropy(drawn, context, None)
    variance = drawn.log_variance.exp()
    wanted = 0.5 * (drawn.mean**2 + variance - 1 - drawn.log_variance).sum(dim=(1, 2))
    assert torch.allclose(divergence, wanted, atol=1e-5)
    zeros = torch.zeros(1, 2, 4)
    none = Gaussians(zeros, zeros, zeros)
    assert float(none.negative_entropy() + none.cross_entropy(zeros, zeros)) == pytest.approx(0, abs=1e-6)


def test_a_conditional_gaussian_prior_is_sampled_from_what_it_is_trained_as():
    model = dior.model(prior="conditional")
    context, noise = context_and_noise(model)
    sample = model.latent.prior.sample(context, noise.flatten(1)[:, None])
    again = model.latent.prior.hierarchy.given(context, sample)
    assert torch.allclose(sample, again.mean + (again.log_variance / 2).exp() * noise, atol=1e-6)
    drawn = Gaussians(again.mean, again.log_variance, sample)
    divergence = drawn.negative_entropy() + model.latent.prior.cross_entropy(drawn, context, None)
    assert torch.allclose(divergence, torch.zeros(3), atol=1e-4)


def test_wide_maps_compute_in_float32_whatever_surrounds_them():
    half = WideLinear(4, 4).to(torch.bfloat16)
    assert half(torch.randn(2, 4, dtype=torch.bfloat16)).dtype == torch.float32
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert WideLinear(4, 4)(torch.randn(2, 4)).dtype == torch.float32


def test_losses_stay_in_float32_under_bf16_autocast():
    model = dior.model().train()
    draws = draws_for(model, BATCH)
    exact = losses(model, BATCH, draws=draws)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rough = losses(model, BATCH, draws=draws)
    assert rough.dtype == torch.float32
    assert torch.allclose(exact, rough, rtol=0.02)


# --- the loss ---


def draws_for(model: DiorForConditionalGeneration, batch: TurnBatch) -> Draws:
    torch.manual_seed(11)
    return model.draw(model.read(batch, model.construct_memory(len(batch.labels))))


def losses(model: DiorForConditionalGeneration, batch: TurnBatch, **kwargs: Any) -> Tensor:
    seed("losses")
    read = model.read(batch, model.construct_memory(len(batch.labels)))
    found: Tensor = model.losses(read, batch, **kwargs)
    return found


def doubled(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else torch.cat([tensor, tensor])


@pytest.mark.parametrize("kind", ["diffusion", "standard", "conditional"])
def test_a_batch_given_twice_has_the_same_mean_loss_and_gradient(kind):
    model = dior.model(prior=kind).train()
    draws = draws_for(model, BATCH)
    inner = draws.prior and PriorDraws(
        torch.cat([draws.prior.timestep] * 2),
        torch.cat([draws.prior.noise] * 2),
        torch.cat([draws.prior.unconditional] * 2),
    )
    twice = TurnBatch(
        {name: torch.cat([tensor, tensor]) for name, tensor in BATCH.tensors.items()}, BATCH.examples * 2
    )
    both = Draws(torch.cat([draws.posterior] * 2), inner, doubled(draws.dropped))
    gradients = []
    for batch, given, rows in ((BATCH, draws, 3), (twice, both, 6)):
        model.zero_grad()
        found = losses(model, batch, draws=given) / rows
        found.sum().backward()
        gradients.append([found.detach(), *(p.grad for p in model.parameters() if p.grad is not None)])
    assert len(gradients[0]) == 1 + len(list(model.parameters()))
    assert all(torch.allclose(a, b, rtol=1e-4, atol=1e-4) for a, b in zip(*gradients, strict=True))


def test_rows_add_up_to_the_sum_and_dry_rows_have_no_loss():
    model = dior.model().train()
    batch = TurnBatch({**BATCH.tensors, "labels": BATCH.labels.clone()}, BATCH.examples)
    batch.labels[1], batch.attention_mask[1], batch.input_ids[1] = -100, 0, 1
    draws = draws_for(model, batch)
    whole, rows = losses(model, batch, draws=draws), losses(model, batch, per_row=True, draws=draws)
    assert rows.shape == (4, 3)
    assert torch.allclose(rows.sum(dim=1), whole, rtol=1e-5)
    assert not rows[:, 1].any()


@pytest.mark.parametrize("slots", [4, 0])
def test_every_parameter_gets_a_finite_gradient_even_without_a_reply(slots):
    for kind in ("diffusion", "standard", "conditional"):
        model = dior.model(prior=kind, memory_len=slots).train()
        dry = {name: torch.zeros_like(tensor) for name, tensor in dior.batch().tensors.items()}
        dry["labels"] -= 100
        for batch in (dior.batch(), TurnBatch(dry, (None,) * 3)):
            model.zero_grad()
            losses(model, batch).sum().backward()
            for name, parameter in model.named_parameters():
                assert parameter.grad is not None, name
                assert bool(torch.isfinite(parameter.grad).all()), name


def test_label_smoothing_is_that_of_torch():
    model = dior.model()
    read = model.read(BATCH, model.construct_memory(3))
    latents = torch.randn(3, 2, 4)
    model.final_logits_bias.normal_()
    nll, uniform = model.token_losses(read, BATCH.labels, latents).detach()
    states, _ = model.decode(model.shift(BATCH.labels), read.last_hidden_state, read.attention_mask, latents)
    logits = model.lm_head(states, bias=model.final_logits_bias[0]).detach()
    wanted = torch.nn.functional.cross_entropy(
        logits.flatten(0, 1), BATCH.labels.flatten(), reduction="sum", label_smoothing=0.1
    )
    assert float(0.9 * nll + 0.1 * uniform) == pytest.approx(float(wanted), rel=1e-5)
    plain = torch.nn.functional.cross_entropy(logits.flatten(0, 1), BATCH.labels.flatten(), reduction="sum")
    assert float(nll) == pytest.approx(float(plain), rel=1e-5)
    assert math.isfinite(float(uniform))
