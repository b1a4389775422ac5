"""The seven fusions alone. Numbers in comments are those of the fact sheet's list of tests."""

from __future__ import annotations

import math
from itertools import permutations
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from finetune.families.fusion.configuration import FusionConfig
from finetune.families.fusion.fusing import Weighted, make_fusion, start
from finetune.families.fusion.shape import Shape, gpt2
from tests.support.fusion import METHODS

BODY = {"model_type": "gpt2", "n_embd": 8, "n_head": 2, "n_layer": 1, "resid_pdrop": 0.0, "attn_pdrop": 0.0}
PARTS = torch.randn(3, 2, 5, 8, generator=torch.Generator().manual_seed(0))
"""Of reply, persona, history: [3, 2, 5, 8]."""
ALL = torch.ones(2, 3, dtype=torch.bool)
NO_PERSONA = torch.tensor([[True, False, True], [True, True, True]])


def shape() -> Shape:
    return gpt2(FusionConfig(body=BODY).body_config())


def fusion(method: str, **fields: Any) -> nn.Module:
    """With its first weights."""
    torch.manual_seed(0)
    found = make_fusion(FusionConfig(body=BODY, fusion=method, **fields), shape())
    start(found)
    return found.eval()


def with_weights(method: str, norm: str, weights: Tensor) -> nn.Module:
    found = fusion(method, weight_norm=norm)
    with torch.no_grad():
        found.weight.copy_(weights.flatten())
    return found


def blanked(parts: Tensor, present: Tensor) -> Tensor:
    """As a layer hands them over: zero where a row lacks the source."""
    return parts * present.t()[:, :, None, None]


def average(parts: Tensor = PARTS) -> Tensor:
    return parts.sum(dim=0) / 3


# --- 1: static ---


def test_static_fusions_are_mean_maximum_and_minimum_in_any_order_of_sources():
    c, p, h = PARTS
    wanted = {
        "avg": (c + p + h) / 3,
        "max": torch.maximum(torch.maximum(c, p), h),
        "min": torch.minimum(torch.minimum(c, p), h),
    }
    for method, value in wanted.items():
        for order in permutations(range(3)):
            assert torch.allclose(fusion(method)(PARTS[list(order)], ALL), value, atol=1e-6)


# --- 2 to 4: weights ---


@pytest.mark.parametrize("number", [0.2, -3.0])
def test_equal_weights_of_the_papers_form_are_the_average_whatever_they_are(number: float):
    found = with_weights("sw", "paper", torch.full((3,), number))
    assert torch.allclose(found(PARTS, ALL), average(), atol=1e-6)


def test_the_papers_form_does_not_see_the_scale_of_its_weights():
    weights = torch.tensor([0.5, 0.2, 0.9])
    once, scaled = (with_weights("sw", "paper", factor * weights)(PARTS, ALL) for factor in (1, 7))
    assert torch.allclose(once, scaled, atol=1e-6)


def test_the_codes_form_divides_by_three_and_starts_at_a_third_of_the_average():
    assert torch.allclose(with_weights("sw", "code", torch.ones(3))(PARTS, ALL), average(), atol=1e-6)
    assert torch.allclose(fusion("sw", weight_norm="code")(PARTS, ALL), average() / 3, atol=1e-6)
    like_bart = fusion("dw", weight_norm="code", weight_init="bart")(PARTS, ALL)
    assert torch.allclose(like_bart, PARTS[0] + (PARTS[1] + PARTS[2]) / 2, atol=1e-6)


@pytest.mark.parametrize("norm", ["paper", "code", "softmax"])
def test_constant_vectors_weigh_like_scalars_and_a_dimension_only_itself(norm: str):
    weights = torch.tensor([0.5, 0.2, 0.9])
    vectors = weights[:, None].expand(3, 8).clone()
    before = with_weights("dw", norm, vectors)(PARTS, ALL)
    assert torch.allclose(before, with_weights("sw", norm, weights)(PARTS, ALL), atol=1e-6)
    vectors[1, 4] += 1
    moved = (with_weights("dw", norm, vectors)(PARTS, ALL) != before).any(dim=0).any(dim=0)
    assert moved.nonzero().flatten().tolist() == [4]


def test_softmax_weights_start_at_the_average_and_stay_between_the_sources():
    assert torch.allclose(fusion("sw")(PARTS, ALL), average(), atol=1e-6)
    found = with_weights("dw", "softmax", 9 * torch.randn(3, 8))(PARTS, ALL)
    assert (found <= PARTS.amax(dim=0) + 1e-5).all()
    assert (found >= PARTS.amin(dim=0) - 1e-5).all()


def test_weights_are_rows_so_that_decay_spares_them():
    assert all(fusion(method).weight.dim() == 1 for method in ("sw", "dw"))


# --- 5: linear ---


def test_linear_starts_as_the_average_and_has_blocks_in_the_order_reply_persona_history():
    found = fusion("linear", linear_init="average")
    assert torch.allclose(found(PARTS, ALL), average(), atol=1e-6)
    with torch.no_grad():
        blocks = [number * torch.eye(8) for number in (1, 10, 100)]
        found.mix.weight.copy_(torch.cat(blocks, dim=1))
    assert torch.allclose(found(PARTS, ALL), PARTS[0] + 10 * PARTS[1] + 100 * PARTS[2], atol=1e-4)


def test_starts_of_linear_and_att_are_those_of_paper_and_code():
    bound = 1 / math.sqrt(24)
    code, normal = fusion("linear").mix, fusion("linear", linear_init="normal").mix
    assert bound * 0.8 < code.weight.abs().max() <= bound
    assert normal.weight.std().item() == pytest.approx(0.02, rel=0.3)
    assert not normal.bias.any()
    assert (fusion("att", att_variant="code").out.weight == 1 / 8).all()
    assert fusion("att").out.weight.std().item() == pytest.approx(0.02, rel=0.4)


# --- 6: att ---


def by_loop(query: Tensor, key: Tensor, value: Tensor, signed: bool) -> Tensor:
    """Eq. 3 for one row [L, d], head by head and place by place, with the causal mask."""
    found = torch.zeros_like(query)
    for head in range(2):
        part = slice(4 * head, 4 * head + 4)
        for place in range(len(query)):
            scores = []
            for other in range(place + 1):
                a, b = query[place, part], key[other, part]
                product = float(a @ b) if signed else float(a.abs() @ b.abs())
                scores.append(math.copysign(math.sqrt(abs(product)), product) / math.sqrt(4))
            shares = torch.softmax(torch.tensor(scores), dim=0)
            found[place, part] = sum(s * value[n, part] for n, s in enumerate(shares))
    return found


@pytest.mark.parametrize(("variant", "order"), [("paper", (0, 1, 2)), ("code", (1, 2, 0))])
def test_att_is_the_papers_equation(variant: str, order: tuple[int, int, int]):
    found = fusion("att", att_variant=variant)
    with torch.no_grad():
        found.out.weight.copy_(torch.eye(8))
    for row in range(2):
        wanted = by_loop(*(PARTS[number, row] for number in order), signed=variant == "paper")
        assert torch.allclose(found(PARTS, ALL)[row], wanted, atol=1e-3)


@pytest.mark.parametrize(("variant", "sees"), [("paper", True), ("code", False)])
def test_only_the_papers_att_sees_the_sign_of_the_persona(variant: str, sees: bool):
    found = fusion("att", att_variant=variant)
    turned = PARTS * torch.tensor([1.0, -1.0, 1.0])[:, None, None, None]
    assert torch.equal(found(PARTS, ALL), found(turned, ALL)) is not sees


# --- 7: causality ---


@pytest.mark.parametrize("variant", ["paper", "code"])
@pytest.mark.parametrize("method", METHODS)
def test_no_fusion_sees_a_later_place(method: str, variant: str):
    found = fusion(method, att_variant=variant)
    later = PARTS.clone()
    later[:, :, 3:] += 1
    assert torch.equal(found(PARTS, ALL)[:, :3], found(later, ALL)[:, :3])
    assert not torch.equal(found(PARTS, ALL)[:, 3:], found(later, ALL)[:, 3:])


# --- 8: gradients ---


@pytest.mark.parametrize("method", METHODS)
def test_gradients_are_finite_where_a_source_is_zero(method: str):
    for variant in ("paper", "code"):
        found = fusion(method, att_variant=variant, weight_norm="paper")
        parts = PARTS.clone()
        parts[1:] = 0
        parts.requires_grad_()
        found(parts, ALL).square().sum().backward()
        gradients = [parts.grad, *(p.grad for p in found.parameters())]
        assert all(torch.isfinite(one).all() for one in gradients if one is not None)


@pytest.mark.parametrize("last", [-0.7999, -0.8, -0.8001])
def test_weights_whose_sum_is_near_zero_stay_tame(last: float):
    found = with_weights("sw", "paper", torch.tensor([0.5, 0.3, last]))
    out = found(PARTS, ALL)
    out.sum().backward()
    assert torch.isfinite(found.weight.grad).all()
    assert out.abs().max() < 1e4


@pytest.mark.parametrize("method", METHODS)
def test_bfloat16_goes_through_with_finite_gradients(method: str):
    found = fusion(method)
    parts = PARTS.bfloat16().requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = found(parts, ALL)
    out.float().sum().backward()
    assert parts.grad is not None
    assert torch.isfinite(parts.grad).all()
    assert torch.allclose(out.float(), found(PARTS, ALL), atol=0.1)


def test_weights_are_applied_in_float32():
    """Thirds in bfloat16 add up to 1.002."""
    ones = torch.ones(3, 2, 5, 8, dtype=torch.bfloat16)
    found = with_weights("sw", "code", torch.ones(3))
    assert torch.equal(found(ones, ALL), ones[0])


# --- 9: absent sources ---


@pytest.mark.parametrize("method", METHODS)
def test_a_row_without_persona_is_the_same_beside_any_other(method: str):
    found = fusion(method, weight_norm="code")
    mixed = found(blanked(PARTS, NO_PERSONA), NO_PERSONA)
    alone = found(blanked(PARTS[:, :1], NO_PERSONA[:1]), NO_PERSONA[:1])
    assert torch.equal(mixed[:1], alone)
    with_all = found(PARTS[:, 1:], ALL[1:])
    assert torch.allclose(mixed[1:], with_all, atol=1e-6)


def test_a_row_without_persona_is_fused_of_two():
    parts = blanked(PARTS, NO_PERSONA)
    c, _, h = PARTS[:, 0]
    weights = torch.tensor([0.5, 0.2, 0.9])
    wanted: dict[str, tuple[nn.Module, Tensor]] = {
        "avg": (fusion("avg"), (c + h) / 2),
        "max": (fusion("max"), torch.maximum(c, h)),
        "min": (fusion("min"), torch.minimum(c, h)),
        "code": (with_weights("sw", "code", weights), (0.5 * c + 0.9 * h) / 2),
        "paper": (with_weights("sw", "paper", weights), (0.5 * c + 0.9 * h) / 1.4),
        "softmax": (fusion("dw"), (c + h) / 2),
    }
    for name, (found, value) in wanted.items():
        assert torch.allclose(found(parts, NO_PERSONA)[0], value, atol=1e-6), name


def test_att_without_history_is_the_reply_and_without_persona_takes_its_keys_from_it():
    no_history = torch.tensor([[True, True, False]]).expand(2, 3)
    assert torch.equal(fusion("att")(blanked(PARTS, no_history), no_history), PARTS[0])
    doubled = PARTS.clone()
    doubled[1, 0] = doubled[0, 0]
    found = fusion("att")
    assert torch.equal(found(blanked(PARTS, NO_PERSONA), NO_PERSONA)[0], found(doubled, ALL)[0])


@pytest.mark.parametrize("method", METHODS)
def test_a_batch_without_any_persona_is_fused(method: str):
    nobody = torch.tensor([[True, False, True]]).expand(2, 3)
    assert torch.isfinite(fusion(method)(blanked(PARTS, nobody), nobody)).all()


def test_factors_of_present_sources_add_up_to_one():
    found = fusion("dw")
    assert isinstance(found, Weighted)
    assert torch.allclose(found.factors(NO_PERSONA).sum(dim=1), torch.ones(2, 8))
