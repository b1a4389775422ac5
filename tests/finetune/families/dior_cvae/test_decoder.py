"""Infusion, cross-memory dropout, and cached decoding against decoding without a cache."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import BartConfig, BartForConditionalGeneration

from finetune.families.dior_cvae.modeling import DiorForConditionalGeneration
from pretrain.model.encoder import MemBartEncoderOutput
from tests.support import dior, tiny

BATCH = dior.batch()
LATENTS = torch.randn(3, 2, 4, generator=torch.Generator().manual_seed(1))


def memory_of(model: DiorForConditionalGeneration) -> tuple[Tensor, Tensor]:
    read = model.read(BATCH, model.construct_memory(3))
    assert read.last_hidden_state is not None
    assert read.attention_mask is not None
    return read.last_hidden_state, read.attention_mask


def logits(model: DiorForConditionalGeneration, latents: Tensor | None = LATENTS, **changes: Any) -> Tensor:
    memory, mask = memory_of(model)
    states, _ = model.decode(
        model.shift(BATCH.labels), changes.get("memory", memory), changes.get("mask", mask), latents
    )
    found: Tensor = model.lm_head(states, bias=model.final_logits_bias[0])
    return found


# --- infusion ---


def test_without_latents_the_decoder_is_the_backbones():
    source, model = dior.backbone().eval(), dior.model()
    model.load_state_dict(source.state_dict(), strict=False)
    ids = model.shift(BATCH.labels)
    words = {"input_ids": BATCH.input_ids, "attention_mask": BATCH.attention_mask, "decoder_input_ids": ids}
    assert torch.equal(logits(model, None), source(**words).logits)
    assert not torch.allclose(logits(model), source(**words).logits, atol=1e-3)


def test_without_latents_and_memory_the_model_is_bart():
    torch.manual_seed(0)
    sizes = {name: value for name, value in tiny.MODEL.items() if name != "memory_len"}
    source = BartForConditionalGeneration(BartConfig(vocab_size=60, **sizes)).eval()
    model = dior.model(memory_len=0)
    left = model.load_state_dict(source.state_dict(), strict=False)
    assert not left.unexpected_keys
    assert all(name.startswith("latent.") for name in left.missing_keys)
    wanted = source(
        input_ids=BATCH.input_ids,
        attention_mask=BATCH.attention_mask,
        decoder_input_ids=model.shift(BATCH.labels),
    ).logits
    assert torch.allclose(logits(model, None), wanted, atol=1e-5)


def full_position_form(model: DiorForConditionalGeneration, latents: Tensor) -> Tensor:
    """The latent as a position of its own, whose state is overwritten before every layer."""
    decoder, config = model.model.decoder, model.config
    prefixes, rows = model.latent.infuse(latents)
    memory, mask = memory_of(model)
    ids = model.shift(BATCH.labels)
    length = ids.shape[1]
    states = decoder.layernorm_embedding(decoder.embed_tokens(ids) + decoder.embed_positions(ids))
    causal = torch.full((1 + length, 1 + length), float("-inf")).triu(1)[None, None]
    hidden = torch.zeros(mask.shape).masked_fill(mask == 0, float("-inf"))
    hidden = nn.functional.pad(hidden, (1, 0))[:, None, None]
    for number, layer in enumerate(decoder.layers):
        joined = torch.cat([prefixes[number], states], dim=1)
        mixed, _ = layer.self_attn(joined, attention_mask=causal)
        joined = layer.self_attn_layer_norm(joined + mixed)
        source = torch.cat([rows[number], memory], dim=1)
        mixed, _ = layer.encoder_attn(joined, key_value_states=source, attention_mask=hidden)
        joined = layer.encoder_attn_layer_norm(joined + mixed)
        joined = layer.final_layer_norm(joined + layer.fc2(layer.activation_fn(layer.fc1(joined))))
        states = joined[:, 1:]
    assert config.dropout == 0
    found: Tensor = model.lm_head(states, bias=model.final_logits_bias[0])
    return found


def test_latents_as_keys_and_values_equal_latents_as_positions():
    model = dior.model()
    assert torch.allclose(logits(model), full_position_form(model, LATENTS), atol=1e-5)


def test_each_infusion_alone_uses_every_group():
    for switches in ({"cross_infusion": False}, {"self_infusion": False}):
        model = dior.model(cross_memory_dropout=0.5, **switches)
        latents = LATENTS.clone().requires_grad_()
        logits(model, latents).sum().backward()
        assert latents.grad is not None
        assert bool(latents.grad.abs().amin(dim=(0, 2)).gt(0).all())


def test_each_group_is_heard_by_its_own_decoder_layer_first():
    model = dior.model(encoder_layers=3, decoder_layers=3)
    latents = torch.randn(3, 3, 4, generator=torch.Generator().manual_seed(1))
    said: list[Tensor] = []
    for layer in model.model.decoder.layers:
        layer.register_forward_hook(lambda module, args, out: said.append(out))
    logits(model, latents)
    for group in range(3):
        other = latents.clone()
        other[:, group] += 1
        logits(model, other)
        changed = [not torch.equal(*pair) for pair in zip(said[:3], said[-3:], strict=True)]
        assert changed == [layer >= group for layer in range(3)]


def test_projections_of_the_two_infusions_are_one_or_two():
    shared, separate = dior.model(), dior.model(separate_infusion_projections=True)
    same, rows = shared.latent.infuse(LATENTS)
    assert all(a is b for a, b in zip(same, rows, strict=True))
    prefixes, rows = separate.latent.infuse(LATENTS)
    assert not any(torch.equal(a, b) for a, b in zip(prefixes, rows, strict=True))


def test_one_group_from_the_last_layer_feeds_every_decoder_layer():
    model = dior.model(groups="last", prior="standard", encoder_layers=3)
    assert len(model.latent.pool) == len(model.latent.posterior.heads) == 1
    latents = LATENTS[:, :1].clone().requires_grad_()
    prefixes, _ = model.latent.infuse(latents)
    assert len(prefixes) == 2
    assert logits(model, latents).shape == (*BATCH.labels.shape, 60)


# --- cross-memory dropout ---


def seen_by_attention(model: DiorForConditionalGeneration, writes: bool = False) -> list[Tensor]:
    """What the cross-attention of each layer may see in one training pass, or while it `writes` a reply."""
    masks: list[Tensor] = []

    def note(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        masks.append(kwargs["attention_mask"])

    hooks = [
        layer.encoder_attn.register_forward_pre_hook(note, with_kwargs=True)
        for layer in model.model.decoder.layers
    ]
    if writes:
        generate(model)
    else:
        model.losses(model.read(BATCH, model.construct_memory(3)), BATCH)
    for hook in hooks:
        hook.remove()
    return [mask == 0 for mask in masks]


def test_dropout_hides_rows_of_the_memory_alike_in_all_layers_and_never_the_latent():
    model = dior.model().train()
    for number in range(5):
        torch.manual_seed(number)
        first, second = seen_by_attention(model)
        assert torch.equal(first, second)
        assert first.shape == (3, 1, 1, 1 + 4 + 9)
        visible = first[:, 0, 0]
        assert bool(visible[:, 0].all())
        real = torch.cat([torch.ones(3, 4), BATCH.attention_mask], dim=1).bool()
        assert not visible[:, 1:][~real].any()


def test_dropout_share_over_many_rows():
    model = dior.model().train()
    read = model.read(BATCH, model.construct_memory(3))
    read.attention_mask = torch.ones(3, 20_000)
    torch.manual_seed(0)
    dropped = model.draw(read).dropped
    assert dropped is not None
    assert float(dropped.float().mean()) == pytest.approx(0.7, abs=0.01)


def test_slots_are_dropped_or_spared_as_the_scope_says():
    for scope, spared in (("all", False), ("tokens", True)):
        model = dior.model(cross_memory_scope=scope, cross_memory_dropout=1.0).train()
        visible = seen_by_attention(model)[0][:, 0, 0]
        assert bool(visible[:, 0].all())
        assert visible[:, 1:5].unique().tolist() == [spared]
        assert not visible[:, 5:].any()


def test_evaluation_and_generation_drop_nothing():
    model = dior.model(cross_memory_dropout=1.0)
    real = torch.cat([torch.ones(3, 5), BATCH.attention_mask], dim=1).bool()
    assert all(torch.equal(mask[:, 0, 0], real) for mask in seen_by_attention(model))
    written = seen_by_attention(model.train(), writes=True)
    assert len(written) == 2 * 8
    assert all(torch.equal(mask[:, 0, 0], real[:2]) for mask in written)


def test_with_everything_dropped_the_context_only_speaks_through_the_latents():
    model = dior.model(cross_memory_dropout=1.0).train()
    read, other = (model.read(BATCH, model.construct_memory(3)) for _ in range(2))
    assert other.last_hidden_state is not None
    other.last_hidden_state = other.last_hidden_state + 1
    dropped = model.draw(read).dropped
    assert dropped is not None

    def loss(read: MemBartEncoderOutput, dropped: Tensor | None) -> Tensor:
        return model.token_losses(read, BATCH.labels, LATENTS, dropped=dropped)

    assert torch.equal(loss(read, dropped), loss(other, dropped))
    assert not torch.equal(loss(read, None), loss(other, None))


def test_a_kept_row_is_not_scaled():
    model = dior.model()
    memory, mask = memory_of(model)
    dropped = torch.zeros(mask.shape, dtype=torch.bool)
    dropped[:, 2:6] = True
    whole = MemBartEncoderOutput(last_hidden_state=memory, attention_mask=mask)
    short = MemBartEncoderOutput(
        last_hidden_state=torch.cat([memory[:, :2], memory[:, 6:]], dim=1),
        attention_mask=torch.cat([mask[:, :2], mask[:, 6:]], dim=1),
    )
    hidden = model.token_losses(whole, BATCH.labels, LATENTS, dropped=dropped)
    assert torch.allclose(hidden, model.token_losses(short, BATCH.labels, LATENTS), rtol=1e-5)


def test_no_dropout_is_exactly_no_dropout():
    model = dior.model(cross_memory_dropout=0.0)
    found = []
    for training in (True, False):
        model.train(training)
        torch.manual_seed(0)
        assert model.draw(model.read(BATCH, model.construct_memory(3))).dropped is None
        found.append(logits(model))
    assert torch.equal(*found)


def test_without_a_latent_row_something_stays_visible():
    model = dior.model(cross_infusion=False, cross_memory_dropout=0.99).train()
    for number in range(20):
        torch.manual_seed(number)
        assert bool(seen_by_attention(model)[0].any(dim=-1).all())


# --- the cache ---


def generate(model: DiorForConditionalGeneration, **how: Any) -> Tensor:
    found: Tensor = model.generate(
        input_ids=BATCH.input_ids[:2],
        attention_mask=BATCH.attention_mask[:2],
        latents=LATENTS[:2],
        max_new_tokens=8,
        eos_token_id=None,
        forced_eos_token_id=None,
        pad_token_id=1,
        output_scores=True,
        return_dict_in_generate=True,
        **how,
    )
    return found


@pytest.mark.parametrize("switches", [{}, {"self_infusion": False}, {"cross_infusion": False}])
@pytest.mark.parametrize("beams", [1, 3])
def test_decoding_with_a_cache_equals_decoding_without(beams, switches):
    model = dior.model(**switches)
    cached, plain = (generate(model, num_beams=beams, use_cache=use) for use in (True, False))
    assert torch.equal(cached["sequences"], plain["sequences"])
    pairs = zip(cached["scores"], plain["scores"], strict=True)
    assert all(torch.allclose(a, b, atol=1e-4) for a, b in pairs)


def test_beams_of_a_context_share_its_latents():
    model = dior.model()
    together = generate(model, num_beams=3)["sequences"]
    for row in range(2):
        alone = model.generate(
            input_ids=BATCH.input_ids[row : row + 1],
            attention_mask=BATCH.attention_mask[row : row + 1],
            latents=LATENTS[row : row + 1],
            num_beams=3,
            max_new_tokens=8,
            eos_token_id=None,
            forced_eos_token_id=None,
            pad_token_id=1,
        )
        assert torch.equal(together[row : row + 1], alone)


def test_several_latents_of_a_context_give_a_reply_each():
    model = dior.model(latent_init_std=1.0)
    many = torch.randn(8, 2, 4, generator=torch.Generator().manual_seed(2))
    ids, mask = BATCH.input_ids[:2], BATCH.attention_mask[:2]
    options = {"num_beams": 2, "max_new_tokens": 6, "eos_token_id": None, "forced_eos_token_id": None}
    found = model.generate(input_ids=ids, attention_mask=mask, latents=many, pad_token_id=1, **options)
    assert len(found) == 8
    for row in range(8):
        at = slice(row // 4, row // 4 + 1)
        alone = model.generate(
            input_ids=ids[at],
            attention_mask=mask[at],
            latents=many[row : row + 1],
            pad_token_id=1,
            **options,
        )
        assert torch.equal(found[row], alone[0])
    assert len({tuple(row) for row in found[:4].tolist()}) > 1


def test_positions_count_tokens_and_not_the_prefix():
    model = dior.model()
    memory, mask = memory_of(model)
    ids = model.shift(BATCH.labels)
    whole, _ = model.decode(ids, memory, mask, LATENTS)
    first, cache = model.decode(ids[:, :3], memory, mask, LATENTS, use_cache=True)
    assert cache is not None
    assert cache.get_seq_length() == 4
    rest, _ = model.decode(ids[:, 3:], memory, mask, LATENTS, cache, use_cache=True)
    assert torch.allclose(whole, torch.cat([first, rest], dim=1), atol=1e-5)
