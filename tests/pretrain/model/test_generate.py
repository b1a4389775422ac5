"""Generation reads memory, returns the next one, and leaves the caller's tensors alone."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy

import pytest
import torch
from torch import Tensor
from transformers import DynamicCache, EncoderDecoderCache

from pretrain.errors import UserError
from pretrain.model import MemBartForConditionalGeneration

Build = Callable[..., MemBartForConditionalGeneration]
Batch = dict[str, Tensor]
WAYS = {
    "greedy": {"do_sample": False},
    "beam": {"do_sample": False, "num_beams": 4, "num_return_sequences": 2},
    "sampling": {"do_sample": True, "top_k": 0},
}
COMMON = {"decoder_start_token_id": 0, "max_new_tokens": 10}
every_way = pytest.mark.parametrize("way", WAYS)


@every_way
def test_the_callers_tensors_are_untouched_and_the_next_memory_comes_back(
    build: Build, batch: Batch, way: str
) -> None:
    model = build()
    encoded = model.encode(**batch)
    before, encoded_before = deepcopy(batch), {key: value.clone() for key, value in encoded.items()}
    made = model.generate(**batch, **COMMON, **WAYS[way], return_dict_in_generate=True)
    assert made.sequences.shape[0] == 3 * WAYS[way].get("num_return_sequences", 1)
    assert torch.equal(made.memory_states, encoded.memory_states)
    assert all(torch.equal(batch[key], before[key]) for key in batch)
    model.generate(encoder_outputs=encoded, **COMMON, **WAYS[way])
    assert all(torch.equal(encoded[key], encoded_before[key]) for key in encoded_before)


@every_way
def test_from_encoder_outputs_or_from_tokens_it_is_the_same(build: Build, batch: Batch, way: str) -> None:
    model = build()
    made = []
    encoded = model.encode(**batch)
    for given in (
        batch,
        {"inputs": batch["input_ids"], **{k: v for k, v in batch.items() if k != "input_ids"}},
        {"encoder_outputs": encoded},
        {"encoder_outputs": encoded, "attention_mask": batch["attention_mask"]},
    ):
        torch.manual_seed(1)
        made.append(model.generate(**given, **COMMON, **WAYS[way]))
    assert all(torch.equal(ids, made[0]) for ids in made)


@pytest.mark.parametrize("way", ["greedy", "beam"])
def test_a_row_of_a_batch_is_the_row_alone(build: Build, batch: Batch, way: str) -> None:
    model = build()
    options = {**COMMON, **WAYS[way], "num_return_sequences": 1}
    together = model.generate(**batch, **options)
    for row, length in enumerate((9, 6, 9)):
        alone = {key: tensor[row : row + 1] for key, tensor in batch.items()}
        alone["input_ids"], alone["attention_mask"] = (
            alone[key][:, :length] for key in ("input_ids", "attention_mask")
        )
        made = model.generate(**alone, **options)[0]
        assert together[row][: len(made)].tolist() == made.tolist()
        assert (together[row][len(made) :] == model.config.pad_token_id).all()


def test_memory_decides_what_is_said(build: Build, batch: Batch) -> None:
    model = build()
    said = model.generate(**batch, **COMMON, do_sample=False)
    fresh = {**batch, "memory_resets": torch.ones(3)}
    assert not torch.equal(said, model.generate(**fresh, **COMMON, do_sample=False))


def test_cached_decoding_is_decoding(build: Build, batch: Batch) -> None:
    model = build()
    options = {**COMMON, "do_sample": False}
    cached = model.generate(**batch, **options, use_cache=True)
    assert torch.equal(cached, model.generate(**batch, **options, use_cache=False))
    logits = model(**batch, decoder_input_ids=cached[:, :-1]).logits
    for row, ids in enumerate(cached):
        for position, token in enumerate(ids[1:-1]):
            if ids[position] != model.config.eos_token_id and token != model.config.pad_token_id:
                assert logits[row, position].argmax() == token


def test_a_cache_of_another_turn_is_refused(build: Build, batch: Batch) -> None:
    model = build()
    cache = EncoderDecoderCache(DynamicCache(), DynamicCache())
    model.generate(**batch, **COMMON, do_sample=False, past_key_values=cache)
    with pytest.raises(UserError, match="used cache"):
        model.generate(**batch, **COMMON, do_sample=False, past_key_values=cache)


def test_without_a_mask_every_token_counts(build: Build, batch: Batch) -> None:
    model = build()
    rows = {key: tensor[[0, 2]] for key, tensor in batch.items()}  # the unpadded ones
    masked = model.generate(**rows, **COMMON, do_sample=False)
    del rows["attention_mask"]
    assert torch.equal(model.generate(**rows, **COMMON, do_sample=False), masked)


def test_tokens_twice_are_refused(build: Build, batch: Batch) -> None:
    with pytest.raises(UserError, match="input_ids once"):
        build().generate(batch["input_ids"], **batch)


def test_attention_to_memory_is_recorded(build: Build, batch: Batch) -> None:
    made = build().generate(
        **batch, **COMMON, do_sample=False, output_attentions=True, return_dict_in_generate=True
    )
    assert len(made.encoder_attentions) == 2
    assert made.cross_attentions[0][0].shape[-1] == 5 + 9
