"""The structures of the study obey one protocol, and each is what it says."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import BartConfig, BartForConditionalGeneration

from pretrain.model import VARIANTS, MemBartForConditionalGeneration
from pretrain.model.convert import is_memory, twin
from tests.pretrain.model import case

Build = Callable[..., MemBartForConditionalGeneration]
Batch = dict[str, Tensor]
SLOTS = case.CONFIG["memory_len"]
every_variant = pytest.mark.parametrize("variant", VARIANTS)
MEMFORMERS = ["memformer", "memformer_rezero"]


@every_variant
def test_one_protocol(build: Build, variant: str) -> None:
    model = build(variant=variant)
    memory = model.construct_memory(3)
    assert memory.dtype == torch.float32
    total = 0
    for step in case.steps():
        encoded = model.encode(step["input_ids"], step["attention_mask"], memory, step["resets"])
        memory = encoded.memory_states
        assert memory.shape == (3, SLOTS, case.CONFIG["d_model"])
        assert encoded.gate.shape == (3, SLOTS, 1)
        assert encoded.attention_mask.shape == encoded.last_hidden_state.shape[:2]
        total = total + model.token_loss(encoded, step["decoder_input_ids"], step["labels"])
    total.backward()
    assert torch.isfinite(total)
    # nothing is learnt through the memory after the last step, everything else moves
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all(), name
        if "k_proj.bias" not in name:  # adds the same to all scores of a query
            assert parameter.grad.any(), name


@every_variant
def test_every_parameter_is_in_the_step_of_memory_and_loss(build: Build, batch: Batch, variant: str) -> None:
    model = build(variant=variant)
    step = case.steps()[0]
    encoded = model.encode(**batch)
    loss = model.token_loss(encoded, step["decoder_input_ids"], step["labels"])
    (loss + (0 * encoded.memory_states).sum()).backward()
    assert all(p.grad is not None for p in model.parameters())


@every_variant
def test_padding_resets_and_exhausted_agents(build: Build, batch: Batch, variant: str) -> None:
    model = build(variant=variant)
    plain = model.encode(**batch)
    padded = model.encode(
        **{
            **batch,
            "input_ids": torch.nn.functional.pad(batch["input_ids"], (0, 4), value=9),
            "attention_mask": torch.nn.functional.pad(batch["attention_mask"], (0, 4)),
        }
    )
    torch.testing.assert_close(padded.memory_states, plain.memory_states, rtol=0, atol=1e-13)

    resets = torch.tensor([0, 1, 0])
    reset = model.encode(**{**batch, "memory_resets": resets}).memory_states
    fresh = model.encode(**{**batch, "memory_states": None}).memory_states
    assert torch.equal(reset[1], fresh[1])
    assert torch.equal(reset[[0, 2]], plain.memory_states[[0, 2]])
    assert not torch.allclose(reset[1], plain.memory_states[1])

    memory = batch["memory_states"].clone().requires_grad_()
    step = case.steps()[3]
    encoded = model.encode(step["input_ids"], step["attention_mask"], memory, step["resets"])
    model.token_loss(encoded, step["decoder_input_ids"], step["labels"]).backward()
    assert torch.isfinite(memory.grad).all()
    assert not memory.grad[2].any()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)


@every_variant
def test_slots_do_not_see_each_other(build: Build, batch: Batch, variant: str) -> None:
    """With all tokens hidden a slot's next content is its own alone."""
    model = build(variant=variant)
    hidden = {**batch, "attention_mask": torch.zeros_like(batch["attention_mask"])}
    before = model.encode(**hidden).memory_states
    hidden["memory_states"] = hidden["memory_states"].clone()
    hidden["memory_states"][:, 1] = torch.randn(24, generator=torch.Generator().manual_seed(2)).double()
    after = model.encode(**hidden).memory_states
    others = [0, 2, 3, 4]
    torch.testing.assert_close(before[:, others], after[:, others], rtol=0, atol=1e-13)
    assert not torch.allclose(before[:, 1], after[:, 1])


def test_shared_weights_are_membart_whose_memory_equals_its_twin(build: Build, batch: Batch) -> None:
    shared, full = build(variant="shared"), build()
    weights = shared.state_dict()
    full.load_state_dict({name: weights[twin(name) or name] for name in full.state_dict()})
    got, want = shared.encode(**batch), full.encode(**batch)
    torch.testing.assert_close(got.memory_states, want.memory_states, rtol=0, atol=1e-12)
    torch.testing.assert_close(got.last_hidden_state, want.last_hidden_state, rtol=0, atol=1e-12)


@pytest.mark.parametrize("variant", MEMFORMERS)
def test_memformers_decoder_reads_tokens_only(build: Build, batch: Batch, variant: str) -> None:
    model = build(variant=variant)
    encoded = model.encode(**batch)
    assert encoded.last_hidden_state.shape[:2] == batch["input_ids"].shape
    assert torch.equal(encoded.attention_mask, batch["attention_mask"])
    assert (encoded.gate == 1).all()
    made = model.generate(**batch, max_new_tokens=5, do_sample=False, return_dict_in_generate=True)
    assert torch.equal(made.memory_states, encoded.memory_states)


def test_rezero_starts_as_bart_and_the_others_do_not(tmp_path: Path, batch: Batch) -> None:
    fields = {key: value for key, value in case.CONFIG.items() if key != "memory_len"}
    torch.manual_seed(0)
    bart = BartForConditionalGeneration(BartConfig(**fields)).eval()
    bart.save_pretrained(tmp_path)
    given = {key: batch[key] for key in ("input_ids", "attention_mask")}
    targets = case.steps()[0]["decoder_input_ids"]
    wanted = bart(**given, decoder_input_ids=targets).logits
    for variant in VARIANTS:
        model = MemBartForConditionalGeneration.from_pretrained(tmp_path, variant=variant, memory_len=SLOTS)
        got = model(**given, memory_states=batch["memory_states"].float(), decoder_input_ids=targets).logits
        assert torch.allclose(got, wanted, atol=1e-5) == (variant == "memformer_rezero")
        known = {name for name in model.state_dict() if not is_memory(name)}
        assert known == set(bart.state_dict())


def test_writer_mixes_a_slot_with_the_text(build: Build) -> None:
    """One slot, one token: the weights are the softmax of two scores."""
    writer = build(variant="memformer", encoder_attention_heads=1).model.encoder.memory_writer
    slot, token = torch.randn(2, 1, 1, 24, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    query, own, other = writer.q_proj(slot), writer.k_proj(slot), writer.k_proj(token)
    scores = torch.stack([(query * own).sum(), (query * other).sum()]) / 24**0.5
    share = torch.softmax(scores, 0)
    wanted = writer.out_proj(share[0] * writer.v_proj(slot) + share[1] * writer.v_proj(token))
    torch.testing.assert_close(writer(slot, token, None), wanted, rtol=0, atol=1e-12)


@pytest.mark.parametrize("variant", ["shared", *MEMFORMERS])
def test_saved_and_loaded(tmp_path: Path, build: Build, batch: Batch, variant: str) -> None:
    model = build(torch.float32, variant=variant)
    model.save_pretrained(tmp_path)
    again = MemBartForConditionalGeneration.from_pretrained(tmp_path)
    assert again.config.variant == variant
    batch["memory_states"] = batch["memory_states"].float()
    assert torch.equal(again.encode(**batch).memory_states, model.encode(**batch).memory_states)


@pytest.mark.parametrize("variant", ["shared", *MEMFORMERS])
def test_attention_is_recorded(build: Build, batch: Batch, variant: str) -> None:
    encoded = build(variant=variant).encode(**batch, output_attentions=True)
    columns = SLOTS + (9 if variant == "shared" else 0)
    assert [weights.shape[-1] for weights in encoded.attentions] == [columns] * 2


@pytest.mark.parametrize("variant", MEMFORMERS)
def test_half_precision(build: Build, batch: Batch, variant: str) -> None:
    batch["memory_states"] = batch["memory_states"].float()
    encoded = build(torch.bfloat16, variant=variant).encode(**batch)
    assert encoded.memory_states.dtype == torch.float32
    assert encoded.last_hidden_state.dtype == torch.bfloat16
