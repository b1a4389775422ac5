"""What memory may and may not do in one recurrent step."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from transformers import BartConfig, BartForConditionalGeneration

from pretrain.errors import UserError
from pretrain.model import MemBartForConditionalGeneration
from tests.pretrain.model import case

Build = Callable[..., MemBartForConditionalGeneration]
Batch = dict[str, Tensor]
FORMS = pytest.mark.parametrize("form", ["mask", "split"])
WIDTH, SLOTS = case.CONFIG["d_model"], case.CONFIG["memory_len"]


@FORMS
def test_padding_and_what_lies_under_it_change_nothing(build: Build, batch: Batch, form: str) -> None:
    model = build(memory_attention=form)
    plain = model.encode(**batch)
    wider = {**batch, "input_ids": torch.nn.functional.pad(batch["input_ids"], (0, 6), value=1)}
    wider["attention_mask"] = torch.nn.functional.pad(batch["attention_mask"], (0, 6))
    wider["input_ids"] = wider["input_ids"].masked_fill(wider["attention_mask"] == 0, 17)
    padded = model.encode(**wider)
    seen = plain.attention_mask.bool()
    near(padded.memory_states, plain.memory_states)
    near(padded.last_hidden_state[:, : seen.shape[1]][seen], plain.last_hidden_state[seen])


@FORMS
def test_reset_is_zero_memory_is_no_memory(build: Build, batch: Batch, form: str) -> None:
    model = build(memory_attention=form)
    resets = torch.tensor([0, 1, 0])
    reset = model.encode(**{**batch, "memory_resets": resets})
    for other in (
        {**batch, "memory_states": batch["memory_states"] * (1 - resets)[:, None, None]},
        {**batch, "memory_states": None},
        {**batch, "memory_states": model.construct_memory(3)},
    ):
        found = model.encode(**other)
        assert torch.equal(found.memory_states[1], reset.memory_states[1])
        assert torch.equal(found.last_hidden_state[1], reset.last_hidden_state[1])
    kept = model.encode(**batch)
    assert torch.equal(kept.memory_states[[0, 2]], reset.memory_states[[0, 2]])
    assert not torch.allclose(kept.memory_states[1], reset.memory_states[1])


@pytest.mark.parametrize("kind", [torch.bool, torch.int64, torch.float32])
def test_resets_of_any_kind_even_of_a_broken_memory(build: Build, batch: Batch, kind: torch.dtype) -> None:
    model = build()
    fresh = model.encode(**{**batch, "memory_states": None})
    broken = batch["memory_states"].clone()
    broken[1] = torch.nan
    resets = torch.tensor([0, 1, 0]).to(kind)
    found = model.encode(**{**batch, "memory_states": broken, "memory_resets": resets})
    assert torch.equal(found.memory_states[1], fresh.memory_states[1])


def test_gradient_stops_at_a_reset(build: Build, batch: Batch) -> None:
    model = build()
    memory = batch["memory_states"].requires_grad_()
    found = model.encode(**{**batch, "memory_resets": torch.tensor([0, 1, 0])})
    (found.memory_states.sum() + found.last_hidden_state.square().sum()).backward()
    assert not memory.grad[1].any()
    assert memory.grad[0].any()
    assert memory.grad[2].any()


@FORMS
def test_slots_are_told_apart_by_their_bias_alone(build: Build, batch: Batch, form: str) -> None:
    model = build(memory_attention=form)
    before = model.encode(**batch)
    order = torch.tensor([3, 0, 4, 1, 2])
    shuffled = {**batch, "memory_states": batch["memory_states"][:, order]}
    without_bias = model.encode(**shuffled)
    assert (without_bias.last_hidden_state - before.last_hidden_state).abs().max() > 0.1
    bias = model.model.encoder.memory_bias
    bias.data = bias.data[:, order]
    after = model.encode(**shuffled)
    near(after.memory_states, before.memory_states[:, order])
    near(after.last_hidden_state[:, SLOTS:], before.last_hidden_state[:, SLOTS:])


@FORMS
def test_slots_meet_only_through_tokens(build: Build, batch: Batch, form: str) -> None:
    noise = torch.zeros_like(batch["memory_states"])
    noise[:, 2] = torch.randn(WIDTH, generator=torch.Generator().manual_seed(3), dtype=noise.dtype)
    changed = {**batch, "memory_states": batch["memory_states"] + noise}
    others = [0, 1, 3, 4]

    shallow = build(memory_attention=form, encoder_layers=1)
    before, after = shallow.encode(**batch).memory_states, shallow.encode(**changed).memory_states
    assert torch.equal(before[:, others], after[:, others])
    assert not torch.allclose(before[:, 2], after[:, 2])

    deep = build(memory_attention=form)
    before, after = deep.encode(**batch).memory_states, deep.encode(**changed).memory_states
    assert not torch.allclose(before[:, others], after[:, others])

    nothing = torch.zeros_like(batch["attention_mask"])
    before = deep.encode(**{**batch, "attention_mask": nothing}).memory_states
    after = deep.encode(**{**changed, "attention_mask": nothing}).memory_states
    assert torch.equal(before[:, others], after[:, others])


def test_without_slots_it_is_bart(build: Build, batch: Batch) -> None:
    fields = {key: value for key, value in case.CONFIG.items() if key != "memory_len"}
    bart = BartForConditionalGeneration(BartConfig(**fields)).double().eval()
    model = build(memory_len=0)
    found = model.load_state_dict(bart.state_dict(), strict=False)
    assert not found.unexpected_keys
    given = {key: batch[key] for key in ("input_ids", "attention_mask")}
    targets = case.steps()[0]["decoder_input_ids"]
    assert torch.equal(
        model(**given, decoder_input_ids=targets).logits, bart(**given, decoder_input_ids=targets).logits
    )


@FORMS
def test_forms_of_attention_agree_forward_and_backward(build: Build, batch: Batch, form: str) -> None:
    step = case.steps()[0]
    results = []
    for chosen in (form, "mask"):
        model = build(memory_attention=chosen)
        model.set_attn_implementation("sdpa" if chosen == form else "eager")
        memory = batch["memory_states"].clone().requires_grad_()
        encoded = model.encode(**{**batch, "memory_states": memory})
        loss = model.token_loss(encoded, step["decoder_input_ids"], step["labels"])
        (loss + encoded.memory_states.square().sum()).backward()
        gradients = {name: p.grad for name, p in model.named_parameters()}
        results.append((encoded.last_hidden_state, encoded.memory_states, memory.grad, gradients))
    (states, memory, memory_grad, gradients), reference = results
    near(memory, reference[1], 1e-12)
    near(memory_grad, reference[2], 1e-12)
    seen = torch.nn.functional.pad(batch["attention_mask"], (SLOTS, 0), value=1).bool()
    near(states[seen], reference[0][seen], 1e-12)
    for name, gradient in gradients.items():
        near(gradient, reference[3][name], 1e-12)


@FORMS
def test_an_exhausted_agent_is_as_if_absent(build: Build, form: str) -> None:
    model = build(memory_attention=form)
    step = case.steps()[3]  # agent 2: no source, no target, all labels ignored
    memory = case.memory().requires_grad_()

    def gradients(rows: slice) -> tuple[Tensor, dict[str, Tensor]]:
        model.zero_grad()
        encoded = model.encode(
            step["input_ids"][rows], step["attention_mask"][rows], memory[rows], step["resets"][rows]
        )
        loss = model.token_loss(encoded, step["decoder_input_ids"][rows], step["labels"][rows])
        loss.backward()
        assert torch.isfinite(encoded.last_hidden_state).all()
        return loss.detach(), {name: p.grad.clone() for name, p in model.named_parameters()}

    everyone, present = gradients(slice(0, 3)), gradients(slice(0, 2))
    near(everyone[0], present[0])
    for name, gradient in present[1].items():
        near(everyone[1][name], gradient, 1e-12)
    loss, empty = gradients(slice(2, 3))
    assert loss == 0
    assert all(not gradient.any() for gradient in empty.values())


def test_mean_loss_of_a_step_without_labels_is_zero(build: Build, batch: Batch) -> None:
    model = build()
    targets = case.steps()[0]["decoder_input_ids"]
    out = model(**batch, decoder_input_ids=targets, labels=torch.full_like(targets, -100))
    assert out.loss == 0


@FORMS
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("how", ["weights", "autocast"])
def test_half_precision_keeps_memory_in_float32(
    build: Build, batch: Batch, form: str, dtype: torch.dtype, how: str
) -> None:
    exact = build(memory_attention=form).encode(**batch).memory_states
    model = build(torch.float32 if how == "autocast" else dtype, memory_attention=form).train()
    batch["memory_states"] = batch["memory_states"].float().requires_grad_()
    step = case.steps()[0]
    with torch.autocast("cpu", dtype=dtype, enabled=how == "autocast"):
        encoded = model.encode(**batch)
        loss = model.token_loss(encoded, step["decoder_input_ids"], step["labels"])
    assert encoded.memory_states.dtype == torch.float32
    assert loss.dtype == torch.float32
    loss.backward()
    near(encoded.memory_states.double(), exact, 0.2)
    # the kept share of the old memory was never rounded to half precision
    halves = encoded.memory_states.detach().to(dtype).float()
    assert not torch.equal(encoded.memory_states.detach(), halves)
    assert all(torch.isfinite(p.grad).all() for p in model.parameters())
    assert batch["memory_states"].grad.dtype == torch.float32


def test_memory_given_in_half_precision_stays_so_under_half_weights(build: Build, batch: Batch) -> None:
    model = build(torch.bfloat16)
    batch["memory_states"] = batch["memory_states"].bfloat16()
    assert model.encode(**batch).memory_states.dtype == torch.bfloat16


@FORMS
def test_attention_is_recorded(build: Build, batch: Batch, form: str) -> None:
    model = build(memory_attention=form)
    quiet = model.encode(**batch)
    assert quiet.attentions is None
    encoded = model.encode(**batch, output_attentions=True, output_hidden_states=True)
    near(encoded.memory_states, quiet.memory_states, 1e-12)
    length = SLOTS + batch["input_ids"].shape[1]
    assert [weights.shape for weights in encoded.attentions] == [(3, 3, length, length)] * 2
    assert [states.shape for states in encoded.hidden_states] == [(3, length - SLOTS, WIDTH)] * 3
    for weights in encoded.attentions:
        near(weights.sum(-1), torch.ones_like(weights[..., 0]))
        block = weights[:, :, :SLOTS, :SLOTS]
        assert not (block * (1 - torch.eye(SLOTS))).any()
        assert not weights[1, :, :, SLOTS + 6 :].any()  # row 1 has six tokens
    out = model(**batch, decoder_input_ids=case.steps()[0]["decoder_input_ids"], output_attentions=True)
    assert [weights.shape[-1] for weights in out.cross_attentions] == [length] * 2
    assert len(out.decoder_attentions) == len(out.encoder_attentions) == 2
    assert model.config._attn_implementation == "sdpa"


def test_recomputed_layers_give_the_same_gradients(build: Build, batch: Batch) -> None:
    found = []
    for recompute in (False, True):
        model = build().train()
        if recompute:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        memory = batch["memory_states"].clone().requires_grad_()
        encoded = model.encode(**{**batch, "memory_states": memory})
        step = case.steps()[0]
        model.token_loss(encoded, step["decoder_input_ids"], step["labels"]).backward()
        found.append([memory.grad, *(p.grad for p in model.parameters())])
    assert all(torch.equal(plain, again) for plain, again in zip(*found, strict=True))


def test_masks_of_both_widths_reach_the_decoder(build: Build, batch: Batch) -> None:
    model = build()
    targets = {"decoder_input_ids": case.steps()[0]["decoder_input_ids"]}
    whole = model(**batch, **targets).logits
    encoded = model.encode(**batch)
    for mask in (None, batch["attention_mask"], encoded.attention_mask):
        assert torch.equal(model(encoder_outputs=encoded, attention_mask=mask, **targets).logits, whole)
    with pytest.raises(UserError, match="covers 8 positions"):
        model(encoder_outputs=encoded, attention_mask=batch["attention_mask"][:, :8], **targets)


@pytest.mark.parametrize("where", ["call", "config"])
def test_tuples_for_those_who_want_them(build: Build, batch: Batch, where: str) -> None:
    model = build()
    targets = {"decoder_input_ids": case.steps()[0]["decoder_input_ids"], "labels": case.steps()[0]["labels"]}
    named = model(**batch, **targets)
    model.config.return_dict = where == "call"
    loss, logits, *_, memory = model(
        **batch, **targets, **({"return_dict": False} if where == "call" else {})
    )
    assert torch.equal(loss, named.loss)
    assert torch.equal(logits, named.logits)
    assert torch.equal(memory, named.memory_states)
    mean = model.token_loss(model.encode(**batch), *targets.values()) / (targets["labels"] >= 0).sum()
    near(mean, named.loss, 1e-12)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"memory_states": torch.zeros(3, SLOTS + 1, WIDTH)}, "memory_states has shape"),
        ({"memory_states": torch.zeros(2, SLOTS, WIDTH)}, "memory_states has shape"),
        ({"memory_resets": torch.zeros(2)}, "memory_resets has shape"),
        ({"input_ids": torch.ones(3, 33, dtype=torch.long), "attention_mask": None}, "33 tokens, but 32"),
        ({"input_ids": None}, "exactly one of input_ids"),
    ],
)
def test_shapes_that_do_not_fit_are_named(build: Build, batch: Batch, change: Batch, said: str) -> None:
    with pytest.raises(UserError, match=said):
        build().encode(**{**batch, **change})


def near(got: Tensor, want: Tensor, tolerance: float = 1e-13) -> None:
    torch.testing.assert_close(got, want, rtol=0, atol=tolerance)
