"""The gate and the attention that the page shows are those of the reply, found a second way."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from finetune.batch import TurnBatch
from finetune.chat import Chat
from finetune.family import Replies
from finetune.generation import generate_options
from pretrain import replay
from pretrain.model.attention import recorded_attention
from tests.support.fitted import fitted
from tools.serve.watch import Record, Seen, watching

SLOTS = 4
MESSAGE = "do you like tea?"


def talk(family: str = "membart", **changes: Any) -> Chat:
    """A conversation whose memory has seen a turn and whose next message waits."""
    chat = Chat(fitted(family, **{"data__context_tokens": 40, **changes}))
    chat.how = chat.how.model_copy(update={"replies": 1})
    chat.say("hello, i am anna.")
    chat.hear(MESSAGE)
    return chat


def said(chat: Chat) -> list[int]:
    return list(chat.fitted.tokenizer(chat.turns[-1].text, add_special_tokens=False)["input_ids"])


def watched(chat: Chat) -> tuple[Replies, Seen]:
    batch = chat.batch()
    with watching(chat.fitted.model) as record:
        replies = chat.answer()
    return replies, record.seen(batch, replies, chat.turns[-1].text, chat.fitted.tokenizer)


def shares(weights: Any, rows: slice, first: int = 0) -> Tensor:
    """`[layers, slots]` of `[1, heads, queries, keys]` a layer: means over heads and some queries."""
    return torch.stack([layer[0, :, rows, first : first + SLOTS].mean(dim=(0, 1)) for layer in weights])


@pytest.mark.parametrize("how", [{"beams": 1}, {"beams": 4}, {"sample": True}], ids=str)
@torch.no_grad()
def test_membart_shows_what_output_attentions_records(how: dict[str, Any]) -> None:
    chat = talk(model__config__init_std=0.4)
    chat.how = chat.how.model_copy(update=how)
    model, batch, text = chat.fitted.model, chat.batch(), chat.fitted.family.text  # type: ignore[attr-defined]
    ids, mask = batch.input_ids, batch.attention_mask
    encoded = model.encode(ids, mask, chat.memory, batch.memory_resets, output_attentions=True)
    replay.seed(chat.how.seed, "chat", len(chat.turns))
    made = model.generate(
        input_ids=ids,
        attention_mask=mask,
        encoder_outputs=encoded,
        decoder_start_token_id=text.bos,
        eos_token_id=text.ends,
        pad_token_id=text.pad,
        return_dict_in_generate=True,
        **generate_options(chat.how),
    )
    if how.get("beams", 1) > 1:
        assert made.beam_indices[0].unique().numel() > 1, "the reply must have moved between beams"
    written = made.sequences
    wrote = model(
        input_ids=ids,
        attention_mask=mask,
        encoder_outputs=encoded,
        decoder_input_ids=written[:, :-1],
        output_attentions=True,
    )
    start = next(at for at in range(ids.shape[1]) if ids[0, at : at + len(said(chat))].tolist() == said(chat))
    read = slice(SLOTS + start, SLOTS + start + len(said(chat)))

    replies, seen = watched(chat)
    assert replies.texts[0][0] == text.clean(written[0].tolist())
    assert seen.gate is not None
    assert seen.reading is not None
    assert seen.writing is not None
    torch.testing.assert_close(seen.gate, encoded.gate[0, :, 0])
    torch.testing.assert_close(seen.reading.layers, shares(encoded.attentions, read))
    torch.testing.assert_close(seen.writing.layers, shares(wrote.cross_attentions, slice(None)))
    assert (seen.reading.tokens, seen.writing.tokens) == (len(said(chat)), written.shape[1] - 1)
    assert seen.reading.who == "tokens of the message"
    assert seen.writing.even == seen.reading.even == 1 / (SLOTS + int(mask.sum()))
    assert seen.notes == ()


@pytest.mark.parametrize("family", ["membart", "fusion", "persona_cvae", "ki", "dior_cvae"])
def test_watching_changes_no_reply_and_leaves_nothing_behind(family: str) -> None:
    plain, chat = talk(family), talk(family)
    model: nn.Module = chat.fitted.model
    hooks = [part._forward_hooks for part in model.modules()]
    expected, (replies, seen) = plain.answer(), watched(chat)
    assert replies.texts == expected.texts
    torch.testing.assert_close(replies.memory, expected.memory)
    assert not any(hooks)
    assert not any(part._forward_pre_hooks for part in model.modules())
    assert "generate" not in vars(model)
    assert all(
        part.config._attn_implementation == "sdpa"
        for part in model.modules()
        if hasattr(part, "config") and hasattr(part.config, "_attn_implementation")
    )
    assert seen.gate is not None
    assert seen.reading is not None
    if family == "fusion":  # its beams are its own
        assert seen.writing is None
        assert "one beam only" in seen.notes[0]
    else:
        assert seen.writing is not None
        assert seen.notes == ()
    for found in filter(None, (seen.reading, seen.writing)):
        assert found.layers.shape == (len(found.layers), SLOTS)
        assert bool((found.layers > 0).all())
        assert bool((found.layers.sum(dim=1) < 1).all())


@torch.no_grad()
def test_fusion_shows_how_the_reply_looked_at_the_slots_of_the_history() -> None:
    chat = talk("fusion", model__config__init_std=0.4)
    chat.how = chat.how.model_copy(update={"beams": 1})
    model, batch = chat.fitted.model, chat.batch()
    family: Any = chat.fitted.family
    read = model.read(batch, chat.memory)
    ((best, *_),) = family.search(model, read, batch, chat.how)
    labels = torch.tensor([[*best.ids, family.text.eos][: chat.how.max_new_tokens]])
    gathered: list[Tensor] = []
    handles = [
        layer.history_attn.register_forward_hook(lambda part, args, output: gathered.append(output[1]))
        for layer in model.decoder.layers
    ]
    with recorded_attention(model.config):
        whole = TurnBatch({**batch.tensors, "labels": labels}, batch.examples)
        model.reply_states(model.contexts(read, whole), whole)
    for handle in handles:
        handle.remove()
    replies, seen = watched(chat)
    assert replies.texts[0][0] == family.text.decoded(best.ids)
    assert seen.writing is not None
    assert seen.writing.tokens == labels.shape[1]
    prefix = len(model.config.reply_prefix) - 1
    torch.testing.assert_close(seen.writing.layers, shares(gathered, slice(prefix, None)))
    assert seen.notes == ()


@torch.no_grad()
def test_dior_shows_the_slots_behind_its_latent_row() -> None:
    chat = talk("dior_cvae")
    model: Any = chat.fitted.model
    family: Any = chat.fitted.family
    batch = chat.batch()
    read = model.read(batch, chat.memory)
    keys = [(chat.how.seed, "chat", len(chat.turns), 0)]
    latents = family.sample_latents(model, read, batch, keys)
    options = generate_options(chat.how) | {"forced_bos_token_id": family.text.bos}
    options["max_new_tokens"] += 1
    written = model.generate(
        input_ids=batch.input_ids,
        attention_mask=batch.attention_mask,
        encoder_outputs=read,
        latents=latents,
        decoder_start_token_id=family.text.eos,
        eos_token_id=family.text.eos,
        pad_token_id=family.text.pad,
        **options,
    )
    gathered: list[Tensor] = []
    handles = [
        layer.encoder_attn.register_forward_hook(lambda part, args, output: gathered.append(output[1]))
        for layer in model.model.decoder.layers
    ]
    with recorded_attention(model.config):
        model.decode(written[:, :-1], read.last_hidden_state, read.attention_mask, latents)
    for handle in handles:
        handle.remove()
    replies, seen = watched(chat)
    assert replies.texts[0][0] == family.layout.clean(written[0].tolist())
    assert seen.writing is not None
    torch.testing.assert_close(seen.writing.layers, shares(gathered, slice(None), first=1))


def test_a_memformer_has_no_gate_and_its_decoder_sees_no_slot() -> None:
    _, seen = watched(talk(model__config__variant="memformer"))
    assert seen.gate is not None
    assert seen.reading is not None
    assert seen.gate.tolist() == [1.0] * SLOTS
    assert seen.writing is None
    assert "decoder is not given the slots" in seen.notes[0]
    torch.testing.assert_close(seen.reading.layers.sum(dim=1), torch.ones(2))  # its reader sees slots alone
    assert seen.reading.even == 1 / SLOTS


def test_what_cannot_be_seen_is_said() -> None:
    _, seen = watched(talk("baseline"))
    assert (seen.gate, seen.reading, seen.writing) == (None, None, None)
    assert seen.notes == ("The model has no memory slots.",)
    chat = talk()
    batch, memory = chat.batch(), chat.memory
    unseen = Record().seen(batch, Replies([["yes"]], memory), MESSAGE, chat.fitted.tokenizer)
    assert unseen.gate is None
    assert "does not report its gate" in unseen.notes[0]


def test_rows_that_nobody_tells_apart_are_not_shown() -> None:
    chat = talk()
    batch = chat.batch()
    with watching(chat.fitted.model) as record:
        replies = chat.answer()
    record.beams = None  # as of a family whose search is its own
    seen = record.seen(batch, replies, MESSAGE, chat.fitted.tokenizer)
    assert seen.reading is not None
    assert seen.writing is None
    assert "one beam only" in seen.notes[0]


def test_what_is_written_after_the_reply_does_not_count() -> None:
    chat = talk(model__config__init_std=0.4)
    batch = chat.batch()
    with watching(chat.fitted.model) as record:
        replies = chat.answer()
    assert record.written is not None
    reply = chat.fitted.tokenizer.decode(record.written[:3])
    assert reply
    assert reply not in chat.fitted.tokenizer.decode(record.written[:2])
    seen = record.seen(batch, Replies([[reply]], replies.memory), MESSAGE, chat.fitted.tokenizer)
    assert seen.writing is not None
    assert seen.writing.tokens == 3
    assert record.beams is not None
    steps = [
        torch.stack([step[row, :SLOTS] for step, row in zip(layer[:3], record.beams[:3], strict=True)])
        for layer in record.writes.values()
    ]
    torch.testing.assert_close(seen.writing.layers, torch.stack([step.mean(dim=0) for step in steps]))


def test_a_message_cut_at_its_start_counts_with_what_is_left() -> None:
    chat = talk(data__context_tokens=16)
    chat.turns[-1] = type(chat.turns[-1])(
        0, "nice weather today. how are you? what do you do? i sing in a band."
    )
    _, seen = watched(chat)
    assert seen.reading is not None
    end = len(chat.fitted.family.text.end)  # type: ignore[attr-defined]
    assert (seen.reading.who, seen.reading.tokens) == ("tokens of the message", 16 - 2 - end)
