"""The family on its bodies: weights, inference without knowledge, controls, a toy in which it shows."""

from __future__ import annotations

import shutil
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, decoders
from tokenizers.models import WordPiece
from tokenizers.pre_tokenizers import BertPreTokenizer
from transformers import (
    AutoModelForSeq2SeqLM,
    BartConfig,
    BartForConditionalGeneration,
    BertConfig,
    BertModel,
    PreTrainedTokenizerFast,
)

from finetune import backbone as backbones
from finetune.batch import collate
from finetune.dialogue.dialogue import Dialogue, Turn
from finetune.families.ki import Family, KiSettings
from finetune.families.ki.layout import ITEMS
from finetune.families.ki.objective import NO_ANCHOR
from finetune.knowledge.annotations import Spans
from finetune.metrics import papers
from finetune.metrics.catalogue import METRICS
from finetune.recipe import DialogueSection, FineTuneRecipe, GenerationSection
from pretrain import recipe as recipes
from pretrain.errors import UserError
from pretrain.model import MemBartConfig, MemBartForConditionalGeneration
from tests.support import annotated, ki
from tests.support import dialogues as made

BODIES = list(ki.SHAPES)
BEAMS = GenerationSection(beams=3, max_new_tokens=6, replies=2)


# --- inference ---


@pytest.mark.parametrize("body", BODIES)
def test_replies_need_neither_head_nor_knowledge(body, tmp_path):  # 8
    shutil.copytree(ki.folder(), tmp_path / "knowledge")
    which, model = ki.built(body, knowledge=str(tmp_path / "knowledge"))
    calls: list[Any] = []
    model.ki_head.register_forward_hook(lambda *_: calls.append(1))
    trains = ki.batch(which)
    which.cell(model)(trains, ki.memory(which, model, 4), (1,))
    assert len(calls) == 1
    later = ki.family(body, knowledge=str(tmp_path / "knowledge"))  # as a fitted model makes it
    batch = ki.batch(later, 3, dry=1, complete=False)
    assert ITEMS not in batch.tensors
    memory = ki.memory(which, model, 4)
    wanted = later.generate(model, batch, memory, BEAMS, ("one",))
    assert len(calls) == 1
    assert [len(row) for row in wanted.texts] == [2, 2, 2, 0]
    del model.ki_head
    shutil.rmtree(tmp_path / "knowledge")
    assert later.generate(model, batch, memory, BEAMS, ("one",)).texts == wanted.texts


@pytest.mark.parametrize("body", ["membart", "transformer"])
def test_knowledge_given_to_generate_is_refused(body):  # 8
    which, model = ki.built(body)
    ids = ki.batch(which).input_ids
    for name in ("knowledge_ids", "keys"):
        with pytest.raises(UserError, match=f"{name} given to generate"):
            model.generate(input_ids=ids, max_new_tokens=2, **{name: ids})


def test_a_fitted_model_scores_without_knowledge():
    which, model = ki.built()
    later = ki.family()
    batch = ki.batch(later, complete=False)
    memory = ki.memory(which, model, 4)
    scored, _, _ = later.cell(model)(batch, memory, (1,), per_row=True)
    learned, _, _ = which.cell(model)(ki.batch(which), memory, (1,), per_row=True)
    assert torch.equal(scored[0], learned[0])
    assert not bool(scored[2:].any())
    assert not bool(later.count(batch)[3:-1].any())


@pytest.mark.parametrize("body", BODIES)
def test_a_row_is_scored_and_answered_alike_in_every_batch(body):
    which, model = ki.built(body, knowledge=None)
    talk = ki.grounded() if body == "diffks" else ki.TALK
    memory = ki.memory(which, model, 3)
    one = GenerationSection(beams=2, max_new_tokens=5)
    together = ki.batch(which, 2, dry=1, talk=talk, complete=False)
    scored, _, _ = which.cell(model)(together, memory, (1,), per_row=True)
    replies = which.generate(model, together, memory, one, ("a",))
    assert not bool(scored[:, 2].any())
    for row in range(2):
        turn = together.examples[row].about.turn
        alone = collate([which.example(talk[row], turn)], [1], which.pads, which.numbers)
        mine, _, _ = which.cell(model)(alone, memory[:1], (1,), per_row=True)
        assert torch.allclose(mine[:, 0], scored[:, row], rtol=1e-4, atol=1e-4)
        assert which.generate(model, alone, memory[:1], one, ("b",)).texts[0] == replies.texts[row]
    figures = which.figures(model, together, memory)
    assert 0 < float(figures["content_nll"][0]) < float(scored[0, 0].detach())


@pytest.mark.parametrize("body", ["transformer", "lstm", "diffks", "bert"])
def test_decoding_token_by_token_is_decoding_at_once(body):
    which, model = ki.built(body, knowledge=None)
    batch = ki.batch(which, talk=ki.grounded(), complete=False)
    given = {"encoder_outputs": model.selected(model.read(batch, ki.memory(which, model, 4)))}
    ids = batch.decoder_input_ids[:, :5]
    whole = model(decoder_input_ids=ids, **given).logits
    cache, found = model.body.empty_cache(), []
    for place in range(5):
        out = model(
            decoder_input_ids=ids[:, place : place + 1], past_key_values=cache, use_cache=True, **given
        )
        found.append(out.logits)
    assert torch.allclose(torch.cat(found, dim=1), whole, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("body", ["transformer", "lstm", "diffks", "bert"])
def test_beams_with_a_cache_are_beams_without(body):
    which, model = ki.built(body, knowledge=None)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter *= 16  # else every beam goes on alike
    batch = ki.batch(which, talk=ki.grounded(), complete=False)
    read = model.selected(model.read(batch, ki.memory(which, model, 4)))
    cached, plain = (
        model.generate(
            input_ids=batch.input_ids,
            attention_mask=batch.attention_mask,
            encoder_outputs=read,
            decoder_start_token_id=which.text.bos,
            eos_token_id=None,
            pad_token_id=which.text.pad,
            num_beams=4,
            max_new_tokens=8,
            use_cache=use,
            output_scores=True,
            return_dict_in_generate=True,
        )
        for use in (True, False)
    )
    assert torch.equal(cached["sequences"], plain["sequences"])
    assert torch.allclose(cached["sequences_scores"], plain["sequences_scores"], atol=1e-4)


def test_selections_are_counted_by_replies_and_all_else_by_tokens():
    which, _ = ki.built("diffks")
    batch = ki.batch(which, 3, dry=1, talk=ki.grounded())
    counts = dict(zip(which.parts, which.count(batch).tolist(), strict=True))
    assert counts["selection"] == 3
    assert counts["nll"] == counts["ki"] == int((batch.labels != -100).sum())


# --- weights ---


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """A BART, a MemBART and a BERT with a tokenizer each."""
    root = tmp_path_factory.mktemp("backbones")
    tokenizer = backbones.find("scratch", str(made.tokenizer_folder())).tokenizer
    sizes = {name: value for name, value in ki.MEMBART.items() if name != "memory_len"}
    torch.manual_seed(0)
    bart = BartForConditionalGeneration(BartConfig(vocab_size=len(tokenizer), **sizes))
    shape = MemBartConfig(vocab_size=len(tokenizer), **ki.MEMBART)
    membart = MemBartForConditionalGeneration.from_scratch(shape)
    for name, model in (("bart", bart), ("membart", membart)):
        model.save_pretrained(root / name)
        tokenizer.save_pretrained(root / name)
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"abcdefghijklmnopqrstuvwxyzAB:.,?'<>"]
    pieces += [f"##{one}" for one in "abcdefghijklmnopqrstuvwxyz"]
    core = Tokenizer(WordPiece({piece: number for number, piece in enumerate(pieces)}, unk_token="[UNK]"))
    core.pre_tokenizer, core.decoder = BertPreTokenizer(), decoders.WordPiece(cleanup=False)
    special = {"pad": "[PAD]", "unk": "[UNK]", "cls": "[CLS]", "sep": "[SEP]", "mask": "[MASK]"}
    PreTrainedTokenizerFast(
        tokenizer_object=core, **{f"{name}_token": token for name, token in special.items()}
    ).save_pretrained(root / "bert")
    encoder = {key: value for key, value in ki.SHAPES["bert"]["encoder"].items() if key != "model_type"}
    BertModel(BertConfig(vocab_size=len(pieces), **encoder)).save_pretrained(root / "bert")
    return {name: str(root / name) for name in ("bart", "membart", "bert")}


def started(place: str, memory: str = "reset", **settings: Any) -> tuple[Family, Any, Any]:
    found = backbones.find(place)
    data = DialogueSection(memory=memory, context_tokens=40, target_tokens=24, targets="both")  # type: ignore[arg-type]
    which = Family(KiSettings(**{"knowledge": ki.folder(), **settings}), data, found.tokenizer, 10)
    model, report = which.build(found)
    which.prepare(model)
    return which, model.eval(), report


@pytest.mark.parametrize(("kind", "body"), [("membart", "membart"), ("bart", "membart"), ("bart", "bart")])
def test_without_the_head_a_model_is_a_membart(folders, kind, body):
    _, model, report = started(folders[kind], body=body)
    origins = {origin.name: origin.source for origin in report.tensors}
    assert {name for name, _ in model.named_parameters()} <= origins.keys()
    assert all(origins[name] == "fresh" for name in origins if name.startswith("ki_head"))
    plain = MemBartForConditionalGeneration(
        MemBartConfig(**{**model.config.to_dict(), "model_type": "membart"})
    )
    kept = {name: t for name, t in model.state_dict().items() if not name.startswith("ki_head")}
    plain.load_state_dict(kept, strict=True)
    source = AutoModelForSeq2SeqLM.from_pretrained(folders[kind])
    theirs = dict(source.named_parameters())
    for name, tensor in plain.named_parameters():
        if origins[name] == name:
            assert torch.equal(tensor, theirs[name]), name
    assert model.config.memory_len == {"membart": 4, "bart": 128}[kind] * (body == "membart")


def test_bart_without_memory_is_bart(folders):
    which, model, _ = started(folders["bart"], "off", body="bart", knowledge=None)
    assert all(parameter.numel() for parameter in model.parameters())  # which ZeRO-3 cannot gather
    bart = BartForConditionalGeneration.from_pretrained(folders["bart"]).eval()
    batch = ki.batch(which, 3, complete=False)
    ours = model.token_losses(model.read(batch, torch.zeros(3, 0, 16)), batch, batch.labels)[0]
    theirs = bart(
        batch.input_ids, attention_mask=batch.attention_mask, decoder_input_ids=batch.decoder_input_ids
    )
    wanted = torch.nn.functional.cross_entropy(
        theirs.logits.flatten(0, 1), batch.labels.flatten(), reduction="sum"
    )
    assert torch.allclose(ours, wanted, rtol=1e-5)


def test_a_bert_reads_and_the_fresh_decoder_shares_its_words(folders):
    config = {"layers": 2, "ffn": 32, "heads": 2}
    which, model, report = started(folders["bert"], body="bert", config=config, knowledge=None)
    bert = BertModel.from_pretrained(folders["bert"])
    for name, tensor in bert.named_parameters():
        if not name.startswith("pooler."):
            assert torch.equal(dict(model.named_parameters())[f"body.encoder.{name}"], tensor), name
    assert set(report.unused) == {"pooler.dense.weight", "pooler.dense.bias"}
    words = model.body.encoder.embeddings.word_embeddings.weight
    assert model.lm_head.weight is words
    assert model.body.decoder.embed_tokens.weight is words
    example = which.example(ki.TALK[0], 1)
    labels = list(example.fields["labels"])
    assert labels[-1] == which.text.eos == 3
    assert which.text.clean(labels) == "nice to meet you ."


def test_the_lstms_head_reads_both_directions():
    _, model = ki.built("lstm", config={"hidden": 256, "embedding": 8, "layers": 2})
    assert model.ki_head[0].in_features == 512


def test_the_fresh_head_leaves_the_body_as_it_is():
    for body in ("membart", "transformer", "diffks"):
        (_, plain), (_, internal) = ki.built(body, knowledge=None), ki.built(body)
        theirs = dict(internal.named_parameters())
        assert all(torch.equal(p, theirs[name]) for name, p in plain.named_parameters()), body


# --- controls ---


def anchored(which: Family) -> torch.Tensor:
    batch = ki.batch(which)
    return batch.ki_anchor != NO_ANCHOR


def test_controls_change_items_or_coverage_as_they_say(tmp_path):  # 19
    folder = str(ki.write(tmp_path / "tagged", ki.TALK, tagged=True).folder)
    found = {
        control: ki.built(knowledge=folder, knowledge_control=control)[0]
        for control in ("none", "random", "sentence", "factual", "linguistic")
    }
    ids = {control: ki.batch(which, complete=False).knowledge_ids for control, which in found.items()}
    has = {control: found_ids >= 0 for control, found_ids in ids.items()}
    assert torch.equal(has["random"], has["none"])
    assert torch.equal(has["sentence"], has["none"])
    assert not torch.equal(ids["random"], ids["none"])
    assert torch.equal(has["factual"] | has["linguistic"], has["none"])
    assert not bool((has["factual"] & has["linguistic"]).any())
    assert bool(has["factual"].any())
    assert bool(has["linguistic"].any())
    assert len(ids["sentence"].unique()) < len(ids["none"].unique())
    coverage = [int(anchored(which).sum()) for which in found.values()]
    assert coverage[0] == coverage[3] + coverage[4]


# --- settings ---


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"body": "lstm", "memory": "carry"}, "has no memory"),
        ({"knowledge": None, "knowledge_control": "random"}, "nothing is internalized"),
        ({"body": "lstm", "config": {"width": 3}}, "model.config.width"),
        ({"body": "transformer", "config": {"width": 15, "heads": 2}}, "model.config"),
        ({"config": {**ki.MEMBART, "max_position_embeddings": 32}}, "32 positions"),
        ({"knowledge": "/no/such/folder"}, "no/such/folder"),
    ],
)
def test_settings_that_cannot_be_are_refused(settings, words):
    with pytest.raises(UserError, match=words):
        ki.built(settings.pop("body", "membart"), **settings)


def test_a_lane_of_one_row_has_no_negatives_and_is_refused():
    tokenizer = backbones.find("scratch", str(made.tokenizer_folder())).tokenizer
    data = DialogueSection(lanes=4, agents_per_lane=1)
    with pytest.raises(UserError, match="1 row for each lane"):
        Family(KiSettings(knowledge="x"), data, tokenizer, 10)
    Family(KiSettings(knowledge="x", negative_scope="rank"), data, tokenizer, 10)


@pytest.mark.parametrize(("body", "words"), [("transformer", "from a membart"), ("bert", "from a membart")])
def test_a_backbone_of_another_kind_is_refused(folders, body, words):
    with pytest.raises(UserError, match=words):
        started(folders["membart"], body=body)


def test_a_run_goes_on_with_its_own_annotations_only(tmp_path):
    _, model = ki.built()
    ki.write(tmp_path / "other", ki.TALK[:2])
    with pytest.raises(UserError, match="not those that the run began with"):
        ki.family(knowledge=str(tmp_path / "other")).prepare(model)
    with pytest.raises(UserError, match=r"other annotations .*model\.knowledge_hash=null"):
        ki.family(knowledge=str(tmp_path / "other"), knowledge_hash="0").prepare(model)


def test_the_learning_rate_falls_with_the_square_root_for_all():
    which = ki.family(inverse_sqrt_after=100)
    assert which.rates(99) == {}
    assert which.rates(399) == {"": pytest.approx(0.5), "ki_head": pytest.approx(0.5)}


def test_validation_at_the_end_is_without_smoothing():
    which = ki.family()
    by_epochs = which.data.model_copy(update={"epochs": 2.0})
    for data in (which.data, by_epochs):
        same = Family(which.settings, data, which.text.tokenizer, 100)
        assert same.part_weights(99).tolist() == pytest.approx([0.9, 0.1, 1.0, *[0.0] * 5])
        assert same.part_weights(100).tolist() == [1.0, 0.0, 1.0, *[0.0] * 5]


def test_shipped_recipes_have_settings_that_the_family_knows(monkeypatch, tmp_path):
    for name in ("ki", "ki_transformer", "ki_bert", "ki_diffks"):
        content = recipes.read(name, "finetune")
        settings = KiSettings.model_validate(content["model"])
        assert content["family"] == "ki"
        assert not settings.internalizes
    monkeypatch.chdir(tmp_path)
    content["model"]["knowledge"] = "words"
    assert recipes.parse(content, "test", FineTuneRecipe).model["knowledge"] == str(tmp_path / "words")


def test_metrics_of_the_family_exist_and_cover_its_paper():
    assert set(Family.metrics) <= METRICS.keys()
    for settings in ({}, {"body": "diffks"}, {"body": "bert"}, {"knowledge_control": "random"}):
        rows = papers.rows_beside("ki", settings)
        theirs = papers.beside("ki", "wow", rows=rows)
        assert len(theirs) >= 2
        assert all(any(heading.startswith(row) for heading in theirs) for row in rows)
        columns = {name for figures in theirs.values() for name in figures}
        assert columns - {"perplexity"} <= set(Family.metrics)


# --- a toy ---

FACTS = {"anna": 0, "coffee": 0, "bob": 1, "band": 2, "weather": 3}
"""Words and their items: two words share one."""


def about(word: str) -> list[Dialogue]:
    """Dialogues on one word alone, whose replies say it again."""
    heard = (f"i like {word}", f"hello, {word}", f"do you like {word}")
    return [Dialogue(text, (Turn(0, text), Turn(1, f"yes, {word}."))) for text in heard]


@pytest.fixture(scope="module")
def facts(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("toy") / "knowledge"
    rows = []
    for word, item in FACTS.items():
        for one in about(word):
            text = one.turns[0].text
            rows.append((one, 0, Spans.of([(len(text) - len(word), len(text), item, True, 1.0)])))
    annotated.write(folder, rows, np.eye(4, 8, dtype=np.float32), [f"Fact {n}." for n in range(4)])
    return str(folder)


def likeness(folder: str, weight: float) -> tuple[float, float]:
    """Cosine of the encoder's vectors of the two words with one item, before and after training.

    What all words have in common is taken off: a young encoder makes all of them alike.
    """
    which, model = ki.built("transformer", knowledge=folder, margin=0.5, head_dropout=0.0)
    talk = [one for word in FACTS for one in about(word)]
    lanes, resets = torch.zeros(len(talk), dtype=torch.long), [1] * len(talk)
    plain = collate([which.example(one, 1) for one in talk], resets, which.pads, which.numbers)
    memory = ki.memory(which, model, len(talk))

    def cosine() -> float:
        with torch.no_grad():
            states = model.read(plain, memory).last_hidden_state
        rows = [slice(3 * number, 3 * number + 3) for number in range(len(FACTS))]
        words = torch.stack([states[some][plain.knowledge_ids[some] >= 0].mean(dim=0) for some in rows])
        return float(torch.cosine_similarity(*(words - words.mean(dim=0))[:2], dim=0))

    before = cosine()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    weights = which.part_weights(0)
    weights[which.parts.index("ki")] = weight
    for update in range(25):
        batch = which.complete(plain, lanes, [(update, row) for row in range(len(talk))])
        losses, _, _ = which.cell(model)(batch, memory, (update,))
        optimizer.zero_grad()
        (losses * weights / which.count(batch).clamp(min=1)).sum().backward()
        optimizer.step()
    return before, cosine()


def test_words_with_one_knowledge_grow_alike_though_they_never_meet(facts):  # 14
    (before, with_it), (start, without) = likeness(facts, 1.0), likeness(facts, 0.0)
    assert before == start
    assert with_it > before + 0.3
    assert without < before + 0.3
