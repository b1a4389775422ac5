"""Carried memory: gradients through a rollout, the reply's pass beside it, what reaches the decoder."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from finetune.batch import TurnBatch
from finetune.cell import TurnCell
from finetune.families.dior_cvae.modeling import PARTS, DiorForConditionalGeneration
from pretrain.replay import Mode, back_propagate, loss_coefficients, seed
from tests.support import dior

ROLLOUT = [dior.batch(seed=number) for number in range(3)]
WEIGHTS = torch.tensor([0.9, 0.1, 0.5, 0.5])


def gradients(model: DiorForConditionalGeneration, mode: Mode) -> tuple[dict[str, Tensor], Any]:
    model.zero_grad()
    ROLLOUT[1].memory_resets[:] = torch.tensor([0, 1, 0])
    counts = torch.stack([(batch.labels != -100).sum().expand(len(PARTS)) for batch in ROLLOUT])
    found = back_propagate(
        TurnCell(model),
        ROLLOUT,
        model.construct_memory(3),
        loss_coefficients(counts, "uniform") * WEIGHTS,
        [("step", t) for t in range(3)],
        lambda scalar, last: scalar.backward(),
        mode=mode,
    )
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}, found


@pytest.mark.parametrize("slots", [4, 0])
def test_replay_and_recomputation_repeat_plain_back_propagation(slots):
    model = dior.model(memory_len=slots, dropout=0.1).train()
    wanted, reference = gradients(model, "bptt")
    assert len(wanted) == len(list(model.parameters()))
    modes: tuple[Mode, ...] = ("replay", "checkpoint")
    for mode in modes:
        found, result = gradients(model, mode)
        assert torch.allclose(result.nll, reference.nll, rtol=1e-5)
        for name, gradient in wanted.items():
            assert torch.allclose(gradient, found[name], rtol=1e-3, atol=1e-5), (mode, name)


def test_recomputed_layers_draw_what_they_drew():
    batch, found = ROLLOUT[0], []
    for recompute in (False, True):
        model = dior.model(dropout=0.2).train()
        if recompute:
            model.gradient_checkpointing_enable()
        seed("recompute")
        loss = model.losses(model.read(batch, model.construct_memory(3)), batch)
        loss.sum().backward()
        found.append([loss.detach(), *(parameter.grad for parameter in model.parameters())])
    assert all(torch.allclose(a, b, rtol=1e-4, atol=1e-6) for a, b in zip(*found, strict=True))


def test_memory_reaches_the_loss_of_later_turns():
    model = dior.model().train()
    _, result = gradients(model, "replay")
    assert result.memory_gradient is not None
    assert bool(result.memory_gradient.any())


def test_the_replys_pass_leaves_the_carried_memory_alone():
    model = dior.model()
    batch = ROLLOUT[0]
    other = TurnBatch({**batch.tensors, "labels": dior.batch(seed=5).labels}, batch.examples)
    left = []
    for turn in (batch, other):
        seed("reply")
        read = model.read(turn, torch.randn(3, 4, 16, generator=torch.Generator().manual_seed(0)))
        assert read.memory_states is not None
        before = read.memory_states.clone()
        model.losses(read, turn)
        assert torch.equal(read.memory_states, before)
        left.append(before)
    assert torch.equal(*left)


def test_the_reply_is_read_with_a_fresh_memory():
    model = dior.model()
    context, noise = torch.zeros(3, 2, 16), torch.zeros(3, 2, 4)
    wanted = model.recognize(ROLLOUT[0].labels, context, noise).mean
    model.read(ROLLOUT[1], torch.randn(3, 4, 16))
    assert torch.equal(model.recognize(ROLLOUT[0].labels, context, noise).mean, wanted)


def test_the_encoders_reply_speaks_to_the_decoder_through_latents_alone():
    for idle in (False, True):
        model = dior.model()
        if idle:
            for layer in model.latent.infuse.layers:
                torch.nn.init.zeros_(layer.weight)
        batch = ROLLOUT[0]
        read = model.read(batch, model.construct_memory(3))
        replies: list[Tensor] = []
        hook = model.model.encoder.embed_tokens.register_forward_hook(
            lambda module, args, out, to=replies: to.append(out)
        )
        nll = model.losses(read, batch)[0]
        hook.remove()
        assert len(replies) == 1
        (gradient,) = torch.autograd.grad(nll, replies)
        assert bool(gradient.any()) != idle


def test_generation_needs_no_posterior():
    model = dior.model()
    batch = ROLLOUT[0]
    words = {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask, "max_new_tokens": 5}
    seed("generate")
    wanted = model.generate(**words)
    del model.latent.posterior
    seed("generate")
    assert torch.equal(model.generate(**words), wanted)


def test_generate_gives_the_next_memory():
    model = dior.model()
    batch, memory = ROLLOUT[0], torch.randn(3, 4, 16)
    made = model.generate(
        input_ids=batch.input_ids,
        attention_mask=batch.attention_mask,
        memory_states=memory,
        memory_resets=batch.memory_resets,
        max_new_tokens=3,
        return_dict_in_generate=True,
    )
    read = model.read(batch, memory)
    assert read.memory_states is not None
    assert torch.equal(made["memory_states"], read.memory_states)


def test_the_forward_pass_is_a_function_of_context_memory_and_latents():
    model = dior.model()
    batch = ROLLOUT[0]
    words = {
        "input_ids": batch.input_ids,
        "attention_mask": batch.attention_mask,
        "decoder_input_ids": model.shift(batch.labels),
    }
    plain = model(**words)
    assert torch.equal(plain.logits, model(**words).logits)
    assert plain.memory_states is not None
    assert not torch.equal(plain.logits, model(**words, memory_states=plain.memory_states).logits)
    assert not torch.equal(plain.logits, model(**words, latents=torch.ones(3, 2, 4)).logits)
