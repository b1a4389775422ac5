"""The whole model on both bodies. Numbers in comments are those of the fact sheet's list of tests."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import BartConfig, BartForConditionalGeneration, GPT2Config, GPT2LMHeadModel

from finetune import backbone as backbones
from finetune.batch import TurnBatch
from finetune.families.fusion import Family, FusionModel, FusionSettings
from finetune.families.fusion import targets as aims
from finetune.families.fusion.stack import Context
from finetune.weights import WeightMap
from pretrain.errors import UserError
from pretrain.model import MemBartConfig, MemBartForConditionalGeneration
from pretrain.model.convert import is_memory
from pretrain.model.loss import IGNORED
from tests.support import fusion
from tests.support.fusion import METHODS

KINDS = ("gpt2", "membart")
NEW = 8
"""Of the paper's nine tokens those that the tests' tokenizer lacks."""


def changed(batch: TurnBatch, **tensors: Tensor) -> TurnBatch:
    return TurnBatch({**batch.tensors, **tensors}, batch.examples)


def padded(batch: TurnBatch, which: Family) -> TurnBatch:
    """With sixteen more columns of padding in every sequence but the labels."""
    wider = {
        name: torch.nn.functional.pad(batch.tensors[name], (0, 16), value=pad)
        for name, pad in which.pads.items()
        if name != "labels"
    }
    return changed(batch, **wider)


# --- 7: causality ---


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("method", METHODS)
def test_logits_before_a_reply_token_do_not_see_it(kind: str, method: str):
    which, model = fusion.built(kind, fusion=method)
    batch = fusion.batch(which)
    contexts = fusion.contexts(which, model, batch)
    labels = batch.labels.clone()
    labels[:, 3] = (labels[:, 3] + 7) % 300 + 3
    before, after = (
        model.logits(model.reply_states(contexts, changed(batch, labels=one)))
        for one in (batch.labels, labels)
    )
    assert torch.equal(before[:, :4], after[:, :4])
    assert not torch.equal(before[:, 4], after[:, 4])


def test_without_the_mask_the_bidirectional_encoder_would_give_the_next_token_away():
    which, model = fusion.built("gpt2")
    batch = fusion.batch(which)
    ids = batch.persona_ids.clone()
    ids[:, 3] += 1
    before, after = (model.read_persona(one, batch.persona_mask).states for one in (batch.persona_ids, ids))
    assert torch.equal(before[:, :3], after[:, :3])
    assert not torch.equal(before[:, 3], after[:, 3])


# --- 9, 10: absent sources and padding ---


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("method", ["avg", "sw", "linear", "att"])
def test_a_row_without_persona_is_itself_in_any_batch(kind: str, method: str):
    which, model = fusion.built(kind, fusion=method)
    batch = fusion.batch(which)
    mask = batch.persona_mask.clone()
    mask[1] = 0
    mixed = changed(batch, persona_mask=mask)
    found = fusion.logits(which, model, mixed)
    alone = fusion.logits(which, model, mixed.rows(slice(1, 2)))
    assert torch.allclose(found[1:2], alone, atol=1e-5)
    assert torch.allclose(found[::2], fusion.logits(which, model, batch)[::2], atol=1e-5)
    assert not torch.allclose(found[1], fusion.logits(which, model, batch)[1], atol=1e-3)


@pytest.mark.parametrize("method", ["sw", "dw", "linear"])
def test_a_batch_without_any_persona_and_dry_rows_train(method: str):
    for kind in KINDS:
        which, model = fusion.built(kind, fusion=method)
        batch = fusion.batch(which, dry=1)
        batch = changed(batch, persona_mask=torch.zeros_like(batch.persona_mask))
        losses = model.losses(model.read(batch, fusion.memory(which, model, 4)), batch)
        losses.sum().backward()
        assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("settings", [{}, {"fusion": "att"}, {"inputs": "single", "fusion": "none"}])
def test_more_padding_changes_nothing(kind: str, settings: dict[str, Any]):
    which, model = fusion.built(kind, **settings)
    batch = fusion.batch(which)
    narrow, wide = (fusion.logits(which, model, one) for one in (batch, padded(batch, which)))
    spoken = batch.labels != IGNORED
    assert torch.allclose(narrow[spoken], wide[spoken], atol=1e-5)


# --- 11, 12: from a GPT-2 ---


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """A GPT-2, a BART and a MemBART as folders, each with its tokenizer."""
    root = tmp_path_factory.mktemp("backbones")
    torch.manual_seed(0)
    words = {"gpt2": fusion.tokenizer("gpt2"), "bart": fusion.tokenizer("membart")}
    words["membart"] = words["bart"]
    ends = {"bos_token_id": 2, "eos_token_id": 2}
    fields = {key: value for key, value in fusion.GPT2.items() if key != "model_type"}
    sizes = {**fusion.MEMBART, "vocab_size": len(words["bart"])}
    no_memory = {key: value for key, value in sizes.items() if key != "memory_len"}
    models: dict[str, Any] = {
        "gpt2": GPT2LMHeadModel(GPT2Config(**fields, **ends, vocab_size=len(words["gpt2"]))),
        "bart": BartForConditionalGeneration(BartConfig(**no_memory)),
        "membart": MemBartForConditionalGeneration.from_scratch(MemBartConfig(**sizes)),
    }
    for name, model in models.items():
        model.save_pretrained(root / name)
        words[name].save_pretrained(root / name)
    return {name: f"hf:{root / name}" if name == "gpt2" else str(root / name) for name in models}


def from_folder(place: str, memory: str = "reset", **settings: Any) -> tuple[Family, FusionModel, WeightMap]:
    """Eval mode, float32."""
    found = backbones.find(place)
    which = fusion.family("gpt2", memory, **{"config": {}, **settings})
    which = Family(which.settings, which.data, found.tokenizer, steps=100)
    torch.manual_seed(0)
    model, report = which.build(found)
    which.prepare(model)
    return which, model.eval(), report


def test_without_contexts_the_decoder_is_gpt2_and_so_is_the_encoder(folders: dict[str, str]):
    _, model, _ = from_folder(folders["gpt2"], fusion="avg")
    theirs = GPT2LMHeadModel.from_pretrained(folders["gpt2"].removeprefix("hf:")).eval()
    ids = torch.randint(3, 300, (2, 9), generator=torch.Generator().manual_seed(1))
    encoded = theirs.transformer(ids).last_hidden_state
    mine = model.read_persona(ids, torch.ones_like(ids))
    assert torch.allclose(mine.states, encoded, atol=1e-5)
    hidden = dataclasses.replace(mine, present=torch.zeros(2, dtype=torch.bool))
    places = torch.arange(9)
    found = model.logits(model.decode(ids, torch.full_like(ids, 3), places, None, [hidden, hidden]))
    assert torch.allclose(found[..., : theirs.config.vocab_size], theirs(ids).logits, atol=1e-5)
    assert found.shape[-1] == theirs.config.vocab_size + NEW


def test_new_words_start_from_the_mean_of_the_old(folders: dict[str, str]):
    for how in ("mean", "zero"):
        _, model, report = from_folder(folders["gpt2"], new_token_init=how)
        table = model.decoder.tok.weight
        wanted = table[:-NEW].mean(dim=0) if how == "mean" else torch.zeros(16)
        assert torch.allclose(table[-NEW:], wanted.expand(NEW, -1), atol=1e-6)
        assert any(f"{NEW} rows added ({how})" in origin.note for origin in report.tensors)


@pytest.mark.parametrize("kind", KINDS)
def test_copies_are_equal_apart_and_drift(kind: str, folders: dict[str, str]):
    which, model, report = from_folder(folders[kind], fusion="sw", aux_loss="auto")
    layer = model.decoder.layers[0]
    pairs = [(layer.persona_attn, layer.history_attn)]
    if kind == "gpt2":
        pairs += [(layer.self_attn, layer.persona_attn), (layer.self_attn, model.encoder.layers[0].self_attn)]
        assert model.encoder.tok.weight.data_ptr() != model.decoder.tok.weight.data_ptr()
    for one, other in pairs:
        for name, tensor in one.state_dict().items():
            assert torch.equal(tensor, other.state_dict()[name])
            assert tensor.data_ptr() != other.state_dict()[name].data_ptr()
    assert model.lm_head.weight is model.decoder.tok.weight
    noted = {origin.name: origin.note for origin in report.tensors}
    assert noted["decoder.layers.0.persona_attn.q.weight"] == "a copy"
    assert noted["decoder.layers.0.self_attn.q.weight"] == ""
    batch = fusion.batch(which)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model.losses(model.read(batch, fusion.memory(which, model, 3)), batch).sum().backward()
    optimizer.step()
    assert not torch.equal(layer.persona_attn.v.weight, layer.history_attn.v.weight)


# --- 13: from a BART and a MemBART ---


@pytest.mark.parametrize("kind", ["bart", "membart"])
def test_serial_keeps_the_function_of_the_backbone(kind: str, folders: dict[str, str]):
    memory = "off" if kind == "bart" else "reset"
    settings = {"fusion": "sw", "weight_norm": "paper", "layout": "serial"}
    which, model, _ = from_folder(folders[kind], memory, **settings)
    batch = fusion.batch(which)
    same = changed(batch, persona_ids=batch.input_ids, persona_mask=batch.attention_mask)
    spoken = batch.labels[:, :-1].masked_fill(batch.labels[:, :-1] == IGNORED, 1)
    start = torch.tensor([2, 0]).expand(3, 2)
    words = {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask}
    auto = BartForConditionalGeneration if kind == "bart" else MemBartForConditionalGeneration
    theirs = auto.from_pretrained(folders[kind]).eval()
    wanted = theirs(**words, decoder_input_ids=torch.cat([start, spoken], dim=1)).logits[:, 1:]
    spoken_at = batch.labels != IGNORED
    assert torch.allclose(fusion.logits(which, model, same)[spoken_at], wanted[spoken_at], atol=1e-5)


@pytest.mark.parametrize("kind", ["bart", "membart"])
def test_a_single_input_on_a_bart_is_that_bart(kind: str, folders: dict[str, str]):
    memory = "off" if kind == "bart" else "reset"
    which, model, _ = from_folder(folders[kind], memory, inputs="single", fusion="none")
    batch = fusion.batch(which)
    spoken = batch.labels[:, :-1].masked_fill(batch.labels[:, :-1] == IGNORED, 1)
    auto = BartForConditionalGeneration if kind == "bart" else MemBartForConditionalGeneration
    theirs = auto.from_pretrained(folders[kind])
    theirs.resize_token_embeddings(model.shape.vocabulary, mean_resizing=False)
    theirs.model.shared.weight.data.copy_(model.decoder.tok.weight)
    wanted = theirs.eval()(
        input_ids=batch.input_ids,
        attention_mask=batch.attention_mask,
        decoder_input_ids=torch.cat([torch.tensor([2, 0]).expand(3, 2), spoken], dim=1),
    ).logits[:, 1:]
    at = batch.labels != IGNORED
    assert torch.allclose(fusion.logits(which, model, batch)[at], wanted[at], atol=1e-5)


def test_every_tensor_of_a_backbone_is_accounted_for(folders: dict[str, str]):
    _, _, parallel = from_folder(folders["membart"])
    assert set(parallel.unused.values()) == {"layout parallel has one norm after its attentions"}
    _, _, serial = from_folder(folders["membart"], layout="serial")
    assert not serial.unused
    _, _, gpt2 = from_folder(folders["gpt2"])
    assert not gpt2.unused
    sources = {origin.name: origin.source for origin in gpt2.tensors}
    assert sources["encoder.layers.1.self_attn.k.weight"] == "transformer.h.1.attn.c_attn.weight (k)"
    assert sources["decoder.layers.0.fusion.mix.weight"] == "fresh"


# --- memory ---


def test_memory_flows_from_turn_to_turn_in_the_history_alone():
    which, model = fusion.built("membart", "carry", fusion="sw")
    batch = fusion.batch(which)
    reset = torch.tensor([1, 0, 0])
    begun = torch.randn(3, *which.memory_shape(model), generator=torch.Generator().manual_seed(2))
    read = model.read(changed(batch, memory_resets=reset), begun)
    blank = model.read(changed(batch, memory_resets=reset), torch.zeros_like(begun))
    assert read.history is not None
    assert blank.history is not None
    assert torch.equal(read.history.states[0], blank.history.states[0])
    assert not torch.allclose(read.history.states[1:], blank.history.states[1:], atol=1e-3)
    assert not torch.allclose(read.memory_states[1:], begun[1:], atol=1e-3)
    persona = model.contexts(read, batch)[0], model.contexts(blank, batch)[0]
    assert torch.equal(persona[0].states, persona[1].states)


def test_a_loss_reaches_what_was_said_turns_before_through_memory():
    which, model = fusion.built("membart", "carry", fusion="sw")
    batch = fusion.batch(which)
    begun = fusion.memory(which, model, 3).requires_grad_()
    follow = changed(batch, memory_resets=torch.zeros(3, dtype=torch.int64))
    model.losses(model.read(follow, begun), follow).sum().backward()
    assert begun.grad is not None
    assert begun.grad.abs().sum() > 0


def test_without_memory_its_weights_rest_and_all_others_learn():
    which, model = fusion.built("membart", "off", fusion="sw", aux_loss="mlm")
    assert which.memory_shape(model) == (0, 16)
    batch = fusion.batch(which)
    model.losses(model.read(batch, fusion.memory(which, model, 3)), batch).sum().backward()
    resting = {name for name, p in model.named_parameters() if not p.requires_grad}
    assert resting == {name for name, _ in model.named_parameters() if is_memory(name)}
    assert all(p.grad is not None for name, p in model.named_parameters() if name not in resting)


# --- 14: losses ---


def mean(logits: Tensor, labels: Tensor) -> Tensor:
    return cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=IGNORED)


def test_the_losses_are_means_of_the_reply_and_of_the_next_tokens_of_each_context():
    which, model = fusion.built("gpt2", fusion="sw")
    batch = fusion.batch(which, dry=1)
    read = model.read(batch, fusion.memory(which, model, 4))
    found = model.losses(read, batch) / which.count(batch)
    persona, history = model.contexts(read, batch)
    wanted = [mean(fusion.logits(which, model, batch), batch.labels)]
    for context, ids in ((persona, batch.persona_ids), (history, batch.input_ids)):
        following = ids[:, 1:].masked_fill(ids[:, 1:] == which.text.pad, IGNORED)
        wanted.append(mean(model.logits(context.states)[:, :-1], following))
    assert torch.allclose(found, torch.stack(wanted), atol=1e-5)
    total = (which.part_weights(0) * found).sum()
    assert torch.allclose(total, 2 * wanted[0] + 0.5 * wanted[1] + 0.5 * wanted[2], atol=1e-5)
    assert which.part_weights(100).tolist() == [1, 0, 0]
    per_row = model.losses(read, batch, per_row=True)
    assert torch.allclose(per_row.sum(dim=1), model.losses(read, batch), atol=1e-4)


def test_special_tokens_are_no_targets_of_the_encoder():
    which, _ = fusion.built("gpt2", start_end=True)
    batch = fusion.batch(which)
    following = aims.next_tokens(batch.persona_ids, batch.persona_mask, which.layout.special)
    marks = torch.isin(batch.persona_ids[:, 1:], torch.tensor(which.layout.special))
    assert marks.any()
    assert (following[:, :-1][marks] == IGNORED).all()
    assert (following[:, :-1][~marks] == batch.persona_ids[:, 1:][~marks]).all()


def test_hidden_words_are_a_share_of_each_row_and_its_only_targets():
    which, model = fusion.built("membart", aux_loss="mlm", mlm_share=0.3)
    batch = fusion.batch(which, dry=1)
    torch.manual_seed(3)
    ids, mask, special = batch.input_ids, batch.attention_mask, which.layout.special
    token = model.config.mask_token_id
    assert token is not None
    hidden, labels = aims.hidden(ids, mask, special, 0.3, token)
    at = labels != IGNORED
    assert (hidden[at] == token).all()
    assert torch.equal(labels[at], ids[at])
    assert torch.equal(hidden[~at], ids[~at])
    words = aims.words(ids, mask, special).sum(dim=1)
    assert at.sum(dim=1).tolist() == [-(-3 * int(number) // 10) for number in words]
    assert torch.equal(at.sum(dim=1), which.count(batch, per_row=True)[2])
    assert not at[3].any()


@pytest.mark.parametrize(("kind", "aux"), [("gpt2", "next_token"), ("membart", "mlm")])
def test_losses_of_the_encoder_do_not_reach_the_decoder(kind: str, aux: str):
    which, model = fusion.built(kind, aux_loss=aux, fusion="linear")
    batch = fusion.batch(which)
    model.losses(model.read(batch, fusion.memory(which, model, 3)), batch)[1:].sum().backward()
    reached = {name for name, p in model.named_parameters() if p.grad is not None and p.grad.any()}
    assert not any(name.startswith("decoder.layers") for name in reached)
    assert any(name.startswith("encoder.layers") for name in reached)
    assert model.decoder.tok.weight.grad is not None


def test_the_reply_reaches_encoder_contexts_and_fusion():
    which, model = fusion.built("gpt2", fusion="linear")
    batch = fusion.batch(which)
    model.losses(model.read(batch, fusion.memory(which, model, 3)), batch)[0].backward()
    for part in ("encoder.layers.0", "decoder.layers.1.persona_attn", "decoder.layers.1.fusion"):
        reached = [p.grad for name, p in model.named_parameters() if name.startswith(part)]
        assert any(gradient is not None and gradient.any() for gradient in reached), part


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("method", METHODS)
def test_half_precision_trains_to_nearly_the_same_loss(kind: str, method: str):
    which, model = fusion.built(kind, fusion=method)
    batch = fusion.batch(which, dry=1)
    begun = fusion.memory(which, model, 4)
    whole = model.losses(model.read(batch, begun), batch)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = model.losses(model.read(batch, begun), batch)
    assert torch.allclose(half, whole, rtol=0.05)
    half.sum().backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)


# --- switches ---


def test_a_shared_module_reads_contexts_with_the_decoder():
    which, model = fusion.built("gpt2", shared_module=True, shared_attention=True, fusion="avg")
    names = {name.split(".")[0] for name, _ in model.named_parameters()}
    assert names == {"decoder", "types"}
    assert not any("persona_attn" in name for name, _ in model.named_parameters())
    plain, _ = fusion.built("gpt2", fusion="avg")
    batch = fusion.batch(which)
    model.losses(model.read(batch, fusion.memory(which, model, 3)), batch).sum().backward()
    assert plain.parts == which.parts


def test_shared_attention_attends_to_contexts_as_to_the_reply():
    which, shared = fusion.built("gpt2", shared_attention=True, fusion="sw")
    _, apart = fusion.built("gpt2", fusion="sw")
    weights = shared.state_dict()
    for name in apart.state_dict():
        weights.setdefault(name, weights.get(name.replace("persona", "self").replace("history", "self")))
    apart.load_state_dict(weights)
    batch = fusion.batch(which)
    assert torch.allclose(fusion.logits(which, shared, batch), fusion.logits(which, apart, batch), atol=1e-6)


def test_token_types_may_come_from_the_words():
    for kind in KINDS:
        which, model = fusion.built(kind, types_from_vocab=True)
        batch = fusion.batch(which)
        before = fusion.logits(which, model, batch)
        with torch.no_grad():
            model.get_parameter("encoder.tok.weight" if kind == "gpt2" else "decoder.tok.weight")[
                which.layout.marks["<talker2_bos>"]
            ] += 1
        assert not torch.equal(fusion.logits(which, model, batch), before)
        assert not hasattr(model, "types")


def test_tables_of_words_may_be_apart(folders: dict[str, str]):
    _, tied, _ = from_folder(folders["membart"])
    _, apart, report = from_folder(folders["membart"], untie_embeddings=True)
    assert tied.encoder.embed_tokens.weight is tied.decoder.tok.weight
    assert apart.encoder.embed_tokens.weight is not apart.decoder.tok.weight
    assert torch.equal(apart.encoder.embed_tokens.weight, apart.decoder.tok.weight)
    taken = [origin.name for origin in report.tensors if origin.source == "model.shared.weight"]
    assert len(taken) == 2


REFUSED: list[tuple[str, dict[str, Any], str]] = [
    ("gpt2", {"encoder_mask": "bidirectional", "aux_loss": "next_token"}, "sees the next token"),
    ("gpt2", {"aux_loss": "mlm"}, "cannot fill gaps"),
    ("gpt2", {"layout": "serial"}, "order of attentions"),
    ("gpt2", {"untie_embeddings": True}, "apart already"),
    ("membart", {"aux_loss": "next_token"}, "sees the next token"),
    ("membart", {"encoder_mask": "causal"}, "bidirectional"),
    ("membart", {"shared_module": True}, "encoder of its own"),
    ("membart", {"layout": "serial", "fusion": "att"}, "three sources"),
    ("membart", {"layout": "serial", "shared_attention": True}, "of their own"),
    ("membart", {"weight_init": "bart"}, "weight_norm code"),
    ("membart", {"inputs": "single"}, "nothing to fuse"),
    ("membart", {"fusion": "none"}, "need a fusion"),
    ("gpt2", {"inputs": "single", "fusion": "none", "shared_module": True}, "to share"),
    ("gpt2", {"inputs": "single", "fusion": "none", "aux_loss": "next_token"}, "no losses of the encoder"),
    ("membart", {"special_tokens": "authors"}, "the backbone has a BART's"),
]


@pytest.mark.parametrize(("kind", "settings", "words"), REFUSED)
def test_what_cannot_be_is_refused_in_one_line(kind: str, settings: dict[str, Any], words: str):
    with pytest.raises(UserError, match=words):
        fusion.built(kind, **settings)


def test_other_backbones_are_refused(folders: dict[str, str], tmp_path: Path):
    with pytest.raises(UserError, match="has no memory"):
        from_folder(folders["gpt2"], "carry")
    (tmp_path / "config.json").write_text('{"model_type": "t5"}')
    fusion.tokenizer("membart").save_pretrained(tmp_path)
    with pytest.raises(UserError, match="a t5 is neither"):
        from_folder(str(tmp_path))


@pytest.mark.parametrize(
    ("model", "tokenizer", "words"),
    [("membart", "gpt2", "a GPT-2's marks, the backbone has a BART's"), ("gpt2", "bart", "has others")],
)
def test_a_tokenizer_of_another_kind_is_refused(
    model: str, tokenizer: str, words: str, folders: dict[str, str]
):
    mixed = backbones.find(folders[model], folders[tokenizer].removeprefix("hf:"))
    settings = FusionSettings()
    which = Family(settings, fusion.family().data, mixed.tokenizer, steps=9)
    with pytest.raises(UserError, match=words):
        which.build(mixed)


# --- 19: saved and loaded ---


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        ("gpt2", {"fusion": "att"}),
        ("gpt2", {"shared_module": True, "fusion": "sw"}),
        ("membart", {"fusion": "linear", "types_from_vocab": True}),
        ("membart", {"fusion": "dw", "untie_embeddings": True}),
    ],
)
def test_a_saved_model_comes_back(kind: str, settings: dict[str, Any], tmp_path: Path):
    which, model = fusion.built(kind, **settings)
    model.save_pretrained(tmp_path)
    loaded = FusionModel.from_pretrained(tmp_path).eval()
    batch = fusion.batch(which)
    assert torch.equal(fusion.logits(which, model, batch), fusion.logits(which, loaded, batch))
    assert loaded.lm_head.weight is loaded.decoder.tok.weight


def test_a_context_keeps_its_rows():
    one = Context(torch.arange(6.0).view(3, 2, 1), torch.ones(3, 2), torch.tensor([True, False, True]))
    taken = one.rows(torch.tensor([1, 1]))
    assert taken.states[:, 0, 0].tolist() == [2, 2]
    assert taken.present.tolist() == [False, False]
