"""The loss: the fact sheet's tests 1, 4 to 7, 9, 15 to 17. The number stands beside each test."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from finetune.families.ki.configuration import KiConfig
from finetune.families.ki.modeling import KiMemBart, KiSeq2Seq
from finetune.families.ki.objective import (
    ALONE,
    ANCHOR,
    NEGATIVE,
    PAIRED,
    PARTS,
    POSITIVE,
    KiHead,
    hinge,
    internalization,
)
from pretrain import replay
from pretrain.replay import Mode, back_propagate, loss_coefficients
from tests.support import ki

LIKE_STATES: Any = nn.Identity()
"""A head with which states are the queries."""
BODIES = list(ki.SHAPES)


def fields(kind: list[list[int]], near: Tensor, far: Tensor) -> dict[str, Tensor]:
    return {ANCHOR: torch.tensor(kind), POSITIVE: near, NEGATIVE: far}


def fulfilled(margin: float) -> tuple[Tensor, Tensor]:
    """The loss and its gradient for three anchors in 2 x 3 tokens with s+ = 0.9, 0.5, 0.3 and s- = 0.1."""
    states = torch.tensor([[0.9, 0.0, 0.5], [7.0, 0.3, 7.0]])[..., None] * torch.tensor([1.0, 0.0])
    states[..., 1] = 0.1
    states.requires_grad_()
    near, far = torch.zeros(2, 3, 2), torch.zeros(2, 3, 2)
    near[..., 0], far[..., 1] = 1.0, 1.0
    kind = [[PAIRED, 0, PAIRED], [0, PAIRED, ALONE]]
    found = internalization(LIKE_STATES, states, fields(kind, near, far), margin)
    found[0].sum().backward()
    assert states.grad is not None
    return found.detach(), states.grad


def test_a_fulfilled_margin_has_neither_loss_nor_gradient():  # 1
    found, gradient = fulfilled(0.1)
    assert found[PARTS.index("ki")].tolist() == [0.0, 0.0]
    assert not bool(gradient.any())
    assert found[PARTS.index("ki_satisfied")].tolist() == [2.0, 1.0]


def test_a_missed_margin_costs_what_is_missing():  # 1
    found, gradient = fulfilled(0.5)
    parts = dict(zip(PARTS, found.tolist(), strict=True))
    assert parts["ki"] == pytest.approx([0.1, 0.3])  # 0.5 - 0.5 + 0.1 and 0.5 - 0.3 + 0.1
    assert parts["ki_satisfied"] == [1.0, 0.0]
    assert parts["ki_positive"] == pytest.approx([1.4, 0.3])
    assert parts["ki_negative"] == pytest.approx([0.2, 0.1])
    assert parts["ki_alone"] == [0.0, 1.0]
    assert parts["ki_coverage"] == [2.0, 2.0]
    missed = torch.zeros(2, 3, 2)
    missed[0, 2] = missed[1, 1] = torch.tensor([-1.0, 1.0])
    assert torch.equal(gradient, missed)


def test_the_hinge_is_the_papers():
    near, far = torch.tensor([0.3, 0.9]), torch.tensor([0.25, 0.1])
    assert hinge(near, far, 0.1).tolist() == pytest.approx([0.05, 0.0])


def test_states_of_other_tokens_do_not_matter():  # 4
    torch.manual_seed(0)
    head = KiHead(6, 4, 0.0, True)
    kind = [[PAIRED, 0, ALONE, PAIRED], [0, PAIRED, 0, 0]]
    given = fields(kind, torch.randn(2, 4, 4), torch.randn(2, 4, 4))
    anchors = (given[ANCHOR] == PAIRED)[..., None]
    first = torch.randn(2, 4, 6)
    second = torch.where(anchors, first, torch.randn(2, 4, 6))
    found = []
    for states in (first.clone().requires_grad_(), second.clone().requires_grad_()):
        loss = internalization(head, states, given, 5.0)[0].sum()
        assert loss > 0
        found.append([loss, *torch.autograd.grad(loss, [states, *head.parameters()])])
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))
    assert not bool(found[0][1].masked_select(~anchors).any())


def test_the_norm_hides_the_scale_of_the_last_layer():  # 5
    for normalize in (True, False):
        torch.manual_seed(0)
        head = KiHead(6, 4, 0.0, normalize)
        states = torch.randn(5, 6)
        before = head(states).detach()
        with torch.no_grad():
            for parameter in head[3].parameters():
                parameter *= 10
        after = head(states).detach()
        if normalize:
            assert torch.allclose(before.norm(dim=-1), torch.ones(5))
            assert torch.allclose(before, after, atol=1e-6)
        else:
            assert torch.allclose(10 * before, after, rtol=1e-5)


def test_the_head_has_the_papers_number_of_parameters():  # 15
    for width, wanted in ((512, 295_488), (768, 639_808)):
        assert sum(p.numel() for p in KiHead(width, 64, 0.3, True).parameters()) == wanted


def test_the_papers_transformer_has_its_number_of_parameters():  # 15
    special = {"bos_token_id": 0, "pad_token_id": 1, "eos_token_id": 2}
    with torch.device("meta"):
        model = KiSeq2Seq(KiConfig(kind="transformer", vocab_size=22_168, num_hidden_layers=6, **special))
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == 42_893_312


@pytest.mark.parametrize("body", BODIES)
def test_the_loss_reaches_the_encoder_and_not_the_decoder(body):  # 6
    which, model = ki.built(body)
    batch = ki.batch(which)
    losses, _, _ = which.cell(model)(batch, ki.memory(which, model, 4), (1,))
    losses[which.parts.index("ki")].backward()
    moved = {name for name, p in model.named_parameters() if p.grad is not None and bool(p.grad.any())}
    reader = {"membart": "model.encoder", "bart": "model.encoder", "diffks": "body.context"}
    assert any(name.startswith(reader.get(body, "body.encoder")) for name in moved)
    assert any("embed" in name or "shared" in name for name in moved)
    assert "ki_head.0.weight" in moved
    own = ("decoder", "cells", "bridge", "query", "attended", "copy", "knowledge", "begin")
    writes = ("model.decoder", "lm_head", *(f"body.{name}" for name in own))
    assert not [name for name in moved if name.startswith(writes)]


@pytest.mark.parametrize("body", ["membart", "lstm"])
def test_keys_are_no_weights(body):  # 6
    which, model = ki.built(body)
    batch = ki.batch(which)
    assert not batch.tensors[POSITIVE].requires_grad
    assert which.layout.annotations is not None
    keys = torch.from_numpy(which.layout.annotations.keys)
    held = [*model.state_dict().values(), *model.parameters(), *model.buffers()]
    assert not [one for one in held if one.shape == keys.shape]
    assert {name for name in model.state_dict() if name.startswith("ki")} == {
        f"ki_head.{layer}.{kind}" for layer in (0, 3) for kind in ("weight", "bias")
    }


def trained(weight: float | None, **settings: Any) -> tuple[list[Tensor], dict[str, Tensor]]:
    """Losses and weights of three updates; `weight` overrules that of the hinge in the sum."""
    which, model = ki.built("membart", config={**ki.MEMBART, "dropout": 0.1}, **settings)
    model.train()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    weights, found = which.part_weights(0), []
    if weight is not None:
        weights[which.parts.index("ki")] = weight
    for update in range(3):
        batch = ki.batch(which)
        losses, _, _ = which.cell(model)(batch, ki.memory(which, model, 4), (update,))
        optimizer.zero_grad(set_to_none=False)
        (losses * weights / which.count(batch).clamp(min=1)).sum().backward()
        found.append(losses[:2].detach())
        optimizer.step()
    return found, {name: p.detach() for name, p in model.named_parameters() if "ki_head" not in name}


def test_without_weight_everything_is_as_without_knowledge():  # 7
    losses, weights = trained(None, knowledge=None)
    for other in (trained(None, ki_weight=0.0), trained(0.0)):
        assert all(torch.equal(a, b) for a, b in zip(losses, other[0], strict=True))
        assert all(torch.equal(tensor, other[1][name]) for name, tensor in weights.items())
    moved = trained(None)
    assert torch.equal(losses[0], moved[0][0])
    assert not torch.equal(losses[2], moved[0][2])


def test_memory_rows_have_no_part_in_it():  # 9
    which, model = ki.built()
    batch = ki.batch(which)
    read = model.read(batch, torch.randn(4, 4, 16, generator=torch.Generator().manual_seed(0)))
    number = which.parts.index("ki")
    wanted = model.losses(read, batch)[number].detach()
    assert float(wanted) > 0
    states = read.last_hidden_state
    for rows in (states[:, :4].flip(1), torch.zeros_like(states[:, :4])):
        read.last_hidden_state = torch.cat([rows, states[:, 4:]], dim=1)
        assert torch.equal(model.losses(read, batch)[number], wanted)


def test_the_item_of_a_token_meets_its_state():  # 9
    which, model = ki.built()
    batch = ki.batch(which)
    read = model.read(batch, ki.memory(which, model, 4))
    width = batch.input_ids.shape[1]
    planted = torch.eye(width).expand(4, width, width)
    read.last_hidden_state = torch.cat([torch.full((4, 4, width), 9.0), planted], dim=1)
    given = {ANCHOR: batch.ki_anchor, POSITIVE: planted, NEGATIVE: planted.roll(1, 1)}
    found = internalization(LIKE_STATES, KiMemBart.token_states(model, read), given, 0.1)
    paired = (batch.ki_anchor == PAIRED).sum(dim=1)
    assert found[PARTS.index("ki_positive")].tolist() == paired.tolist()
    assert not bool(found[PARTS.index("ki_negative")].any())


@pytest.mark.parametrize("body", ["membart", "transformer", "lstm"])
def test_chunks_of_a_batch_sum_to_its_gradient(body):  # 16
    which, model = ki.built(body)
    model.double()
    batch = ki.batch(which, 8)
    batch = type(batch)(
        {name: t.double() if t.is_floating_point() else t for name, t in batch.tensors.items()},
        batch.examples,
    )
    lengths = batch.attention_mask.sum(dim=1)
    assert len(set(lengths.tolist())) > 1
    scale = which.part_weights(0) / which.count(batch).clamp(min=1)
    gradients = []
    for chunks in ([slice(0, 8)], [slice(0, 4), slice(4, 8)]):
        model.zero_grad()
        for rows in chunks:
            part = batch.rows(rows)
            memory = ki.memory(which, model, len(part.labels)).double()
            losses, _, _ = which.cell(model)(part, memory, (1,))
            (losses * scale).sum().backward()
        gradients.append({n: p.grad for n, p in model.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[0].items():
        assert torch.allclose(gradient, gradients[1][name], rtol=1e-6, atol=1e-9), name


def test_recomputed_layers_give_the_same_loss_and_gradients():  # 17
    found = []
    for recompute in (False, True):
        which, model = ki.built(config={**ki.MEMBART, "dropout": 0.2})
        model.train()
        if recompute:
            model.gradient_checkpointing_enable()
        losses, _, _ = which.cell(model)(ki.batch(which), ki.memory(which, model, 4), (1,))
        losses[which.parts.index("ki")].backward()
        found.append([losses, *(p.grad for p in model.parameters() if p.grad is not None)])
    assert len(found[0]) == len(found[1])
    assert all(torch.allclose(a, b, rtol=1e-4, atol=1e-6) for a, b in zip(*found, strict=True))


def test_replay_repeats_plain_back_propagation():  # 17
    which, model = ki.built(config={**ki.MEMBART, "dropout": 0.1})
    model.train()
    rollout = [ki.batch(which, talk=ki.TALK[at : at + 4]) for at in range(3)]
    for number, batch in enumerate(rollout):
        batch.memory_resets[:] = torch.tensor([0, 1, 0, 0]) if number else 1
    counts = torch.stack([which.count(batch) for batch in rollout])
    coefficients = loss_coefficients(counts, "uniform") * which.part_weights(0)

    def gradients(mode: Mode) -> tuple[Tensor, dict[str, Tensor]]:
        model.zero_grad()
        found = back_propagate(
            which.cell(model),
            rollout,
            ki.memory(which, model, 4),
            coefficients,
            [("step", t) for t in range(3)],
            lambda scalar, last: scalar.backward(),
            mode=mode,
        )
        return found.nll, {n: p.grad for n, p in model.named_parameters() if p.grad is not None}

    losses, wanted = gradients("bptt")
    assert bool((losses[:, which.parts.index("ki")] > 0).all())
    modes: tuple[Mode, ...] = ("replay", "checkpoint")
    for mode in modes:
        again, found = gradients(mode)
        assert torch.allclose(losses, again, rtol=1e-5)
        for name, gradient in wanted.items():
            assert torch.allclose(gradient, found[name], rtol=1e-3, atol=1e-5), (mode, name)


def test_the_hinge_has_the_divisor_of_the_cross_entropy():  # 16
    which, model = ki.built(ki_weight=0.5)
    batch = ki.batch(which, 3, dry=1)
    counts = dict(zip(which.parts, which.count(batch).tolist(), strict=True))
    tokens = int((batch.labels != -100).sum())
    assert counts["ki"] == counts["nll"] == counts["smoothing"] == tokens
    weights = dict(zip(which.parts, which.part_weights(0).tolist(), strict=True))
    assert weights == pytest.approx(
        {"nll": 0.9, "smoothing": 0.1, "ki": 0.5} | dict.fromkeys(PARTS[1:], 0.0), abs=1e-6
    )
    replay.seed(1)
    each, _, _ = which.cell(model)(batch, ki.memory(which, model, 4), (1,), per_row=True)
    whole, _, _ = which.cell(model)(batch, ki.memory(which, model, 4), (1,))
    assert torch.allclose(each.sum(dim=1), whole, rtol=1e-5)
    assert not bool(each[:, 3].any())
    assert torch.equal(which.count(batch, per_row=True).sum(dim=1), which.count(batch))
