"""The family on its backbones: layout, weights, schedules, generation, evaluation figures."""

from __future__ import annotations

import logging
import math
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import (
    AutoModelForSeq2SeqLM,
    BartConfig,
    BartForConditionalGeneration,
    GPT2Config,
    GPT2LMHeadModel,
    PreTrainedTokenizerFast,
)

from finetune import backbone as backbones
from finetune.batch import collate
from finetune.dialogue.dialogue import Dialogue, Turn
from finetune.drawing import drawing
from finetune.families.dior_cvae import DiorForConditionalGeneration, DiorSettings, Family
from finetune.families.dior_cvae.layout import Layout
from finetune.metrics.catalogue import METRICS
from finetune.recipe import DialogueSection, GenerationSection
from pretrain import recipe as recipes
from pretrain.errors import UserError
from pretrain.model import MemBartConfig, MemBartForConditionalGeneration
from tests.support import dialogues as made
from tests.support import dior, tiny

SMALL: dict[str, Any] = {
    "latent_size": 4,
    "posterior_width": 16,
    "denoiser_width": 32,
    "diffusion_steps": 10,
    "latent_init_std": 0.2,
}
SHAPE = {**tiny.MODEL, "max_position_embeddings": 64}
SIZES = {name: value for name, value in SHAPE.items() if name != "memory_len"}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """A BART of the hub's layout and a MemBART export, with a tokenizer each."""
    root = tmp_path_factory.mktemp("backbones")
    tokenizer = backbones.find("scratch", str(made.tokenizer_folder())).tokenizer
    torch.manual_seed(0)
    bart = BartForConditionalGeneration(BartConfig(vocab_size=len(tokenizer), **SIZES))
    membart = MemBartForConditionalGeneration.from_scratch(MemBartConfig(vocab_size=len(tokenizer), **SHAPE))
    for name, model in (("bart", bart), ("membart", membart)):
        model.save_pretrained(root / name)
        tokenizer.save_pretrained(root / name)
    return {"bart": f"hf:{root / 'bart'}", "membart": str(root / "membart")}


def family(place: str, memory: str = "carry", **settings: Any) -> tuple[Family, backbones.Backbone]:
    found = backbones.find(place, str(made.tokenizer_folder()) if place == "scratch" else None)
    data = DialogueSection(memory=memory, context_tokens=48, target_tokens=16)  # type: ignore[arg-type]
    wanted = {**SMALL, **({"config": SHAPE} if place == "scratch" else {}), **settings}
    return Family(DiorSettings(**wanted), data, found.tokenizer, 10), found


# --- weights ---


@pytest.mark.parametrize("memory", ["carry", "off"])
@pytest.mark.parametrize("kind", ["bart", "membart"])
def test_every_tensor_of_a_backbone_is_used_once_or_named_with_a_reason(folders, kind, memory):
    which, found = family(folders[kind], memory)
    model, report = which.build(found)
    names = {name for name, _ in model.named_parameters()} | {"final_logits_bias"}
    assert {origin.name for origin in report.tensors} == names
    fresh = {origin.name for origin in report.tensors if origin.source == "fresh"}
    source = AutoModelForSeq2SeqLM.from_pretrained(folders[kind].removeprefix("hf:"))
    there = {name for name, _ in source.named_parameters()} | {"final_logits_bias"}
    taken = {origin.source for origin in report.tensors} - {"fresh"}
    assert taken | set(report.unused) == there
    assert not taken & set(report.unused)
    own = {name for name in fresh if not name.startswith("latent.")}
    assert bool(own) == (kind == "bart" and memory == "carry")
    assert bool(report.unused) == (kind == "membart" and memory == "off")
    state = dict(model.named_parameters())
    for name, tensor in source.named_parameters():
        if name in taken:
            assert torch.equal(tensor, state[name]), name
    norms = [side.layernorm_embedding.bias for side in (model.model.encoder, model.model.decoder)]
    assert norms[0] is not norms[1]
    assert model.config.memory_len == (
        0 if memory == "off" else source.config.to_dict().get("memory_len", 128)
    )


def test_without_plm_sizes_stay_and_weights_go(folders):
    which, found = family(folders["membart"], pretrained=False)
    model, report = which.build(found)
    assert all(origin.source == "fresh" for origin in report.tensors)
    assert len(report.unused) > 50
    trained = MemBartForConditionalGeneration.from_pretrained(folders["membart"])
    assert not torch.equal(model.model.shared.weight, trained.model.shared.weight)
    assert model.config.d_model == 16


def test_a_folder_alone_rebuilds_the_model(folders, tmp_path):
    for memory in ("carry", "off"):
        which, found = family(folders["membart"], memory, prior="conditional")
        model, _ = which.build(found)
        model.save_pretrained(tmp_path / memory)
        again = AutoModelForSeq2SeqLM.from_pretrained(tmp_path / memory)
        assert isinstance(again, DiorForConditionalGeneration)
        assert again.config.to_dict().keys() == model.config.to_dict().keys()
        ours, theirs = model.state_dict(), again.state_dict()
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_fresh_weights_are_drawn_small_and_biases_are_zero(folders):
    which, found = family(folders["membart"], latent_init_std=0.02, posterior_width=512)
    model, _ = which.build(found)
    for name, tensor in model.latent.named_parameters():
        if name.endswith("bias"):
            assert not tensor.any(), name
        elif tensor.numel() > 1000:
            assert float(tensor.detach().std()) == pytest.approx(0.02, rel=0.1), name
    assert all(bool(layer.weight.any()) for layer in model.latent.infuse.layers)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"self_infusion": False, "cross_infusion": False}, "idle"),
        ({"cross_infusion": False, "cross_memory_dropout": 1.0}, "nothing is left"),
        ({"beta_start": 0.5, "beta_end": 0.4}, "beta"),
        ({"config": {**SHAPE, "encoder_layers": 3}}, "groups: last"),
        ({"config": {**SHAPE, "max_position_embeddings": 32}}, "positions"),
    ],
)
def test_settings_that_cannot_be_are_refused(settings, words):
    which, found = family("scratch", **settings)
    with pytest.raises(UserError, match=words):
        which.build(found)


def test_a_backbone_of_another_shape_is_refused(tmp_path):
    tokenizer = backbones.find("scratch", str(made.tokenizer_folder())).tokenizer
    GPT2LMHeadModel(GPT2Config(vocab_size=len(tokenizer), n_embd=8, n_layer=1, n_head=1)).save_pretrained(
        tmp_path
    )
    tokenizer.save_pretrained(tmp_path)
    which, found = family(f"hf:{tmp_path}")
    with pytest.raises(UserError, match="gpt2"):
        which.build(found)


def test_the_printed_schedule_warns_once(caplog):
    which, found = family("scratch", schedule="paper", diffusion_steps=50)
    with caplog.at_level(logging.WARNING):
        model, _ = which.build(found)
    assert [record for record in caplog.records if "0.975" in record.getMessage()]
    assert model.config.beta_end == 1e-3


# --- layout ---


@pytest.fixture(scope="module")
def bart_tokenizer() -> Any:
    """A tokenizer of BART's size and special tokens that knows a few words."""
    words = ["<s>", "<pad>", "</s>", "<unk>", "hello", "there", "i", "like", "tea", "you", "do"]
    words += [f"w{number}" for number in range(50_261 - len(words))]
    words += ["madeupword0000", "madeupword0001", "madeupword0002", "<mask>"]
    core = Tokenizer(WordLevel({word: number for number, word in enumerate(words)}, unk_token="<unk>"))
    core.pre_tokenizer = Whitespace()
    return PreTrainedTokenizerFast(
        tokenizer_object=core, bos_token="<s>", eos_token="</s>", pad_token="<pad>", unk_token="<unk>"
    )


TALK = Dialogue(
    "talk",
    (Turn(0, "hello there"), Turn(1, "hello"), Turn(0, "do you like tea"), Turn(1, "i do")),
    ((), ("i like tea",)),
)


def test_speakers_are_marked_by_spare_tokens_and_turns_end_with_the_end_token(bart_tokenizer):
    layout = Layout(bart_tokenizer)
    assert layout.marks == ((50262,), (50263,))
    assert len(bart_tokenizer) == 50265
    ids = layout.context(TALK, 3, persona=True, limit=64)
    words = bart_tokenizer.convert_ids_to_tokens(ids)
    assert " ".join(words) == (
        "<s> i like tea </s> madeupword0001 hello there </s> madeupword0002 hello </s> "
        "madeupword0001 do you like tea </s>"
    )
    assert layout.clean([2, 0, 50263, *layout.text.ids("i do"), 2, 1]) == "i do"


def test_whole_turns_are_cut_from_the_front_and_the_persona_stays(bart_tokenizer):
    layout = Layout(bart_tokenizer)

    def context(limit: int) -> str:
        return " ".join(
            bart_tokenizer.convert_ids_to_tokens(layout.context(TALK, 3, persona=True, limit=limit))
        )

    persona, last = "<s> i like tea </s>", "madeupword0001 do you like tea </s>"
    assert context(14) == f"{persona} madeupword0002 hello </s> {last}"
    assert context(13) == context(11) == f"{persona} {last}"
    assert context(10) == f"{persona} do you like tea </s>"
    assert layout.context(TALK, 0, persona=False, limit=64) == [0]


def test_decoder_inputs_are_the_labels_shifted_behind_the_end_token(bart_tokenizer):
    labels = torch.tensor([Layout(bart_tokenizer).reply("i do", 8)])
    assert labels.tolist() == [[0, 6, 10, 2]]
    assert dior.model(vocab_size=50).shift(labels).tolist() == [[2, 0, 6, 10]]


def test_other_tokenizers_mark_speakers_in_plain_text():
    tokenizer = backbones.find("scratch", str(made.tokenizer_folder())).tokenizer
    layout = Layout(tokenizer)
    assert [tokenizer.decode(mark) for mark in layout.marks] == ["A:", "B:"]
    assert layout.clean([2, *layout.reply("fine, and you?", 16)]) == "fine, and you?"


# --- schedules ---


def test_weight_of_the_divergence_grows_to_one_and_spares_the_reconstruction():
    which, _ = family("scratch", kl_anneal_steps=20_000)
    which.steps = 50_000
    for update, wanted in ((0, 0.0), (10_000, 0.5), (20_000, 1.0), (40_000, 1.0)):
        assert which.part_weights(update).tolist() == pytest.approx([0.9, 0.1, wanted, wanted])
    assert which.part_weights(50_000).tolist() == [1.0, 0.0, 1.0, 1.0]
    by_epochs = which.data.model_copy(update={"epochs": 2.0})
    validated = Family(which.settings, by_epochs, which.text.tokenizer, 10)
    assert validated.part_weights(10).tolist() == [1.0, 0.0, 1.0, 1.0]


def test_learning_rate_falls_with_the_square_root_after_the_warm_up():
    which, _ = family("scratch", inverse_sqrt_after=100)
    assert which.rates(99) == {}
    assert which.rates(399) == {"": pytest.approx(0.5), "latent": pytest.approx(0.5)}


def test_shipped_recipes_have_settings_that_the_family_knows():
    for name in ("dior_cvae", "dior_cvae_paper"):
        content = recipes.read(name, "finetune")
        DiorSettings.model_validate(content["model"])
        assert content["family"] == "dior_cvae"


def test_metrics_of_the_family_exist():
    assert set(Family.metrics) <= METRICS.keys()


# --- replies ---


@pytest.fixture(scope="module")
def trained() -> tuple[Family, Any]:
    """Not trained at all, but with latents that are heard."""
    which, found = family("scratch", latent_init_std=1.0)
    torch.manual_seed(0)
    model, _ = which.build(found)
    return which, model.eval()


def turns(which: Family, number: int = 3) -> Any:
    talks = made.dialogues(number, seed=4)
    examples = [which.example(talk, len(talk.turns) - 1) for talk in talks]
    return examples, lambda rows: collate(
        [examples[row] if row is not None else None for row in rows],
        [int(row is None) for row in rows],
        which.pads,
        which.numbers,
    )


@pytest.mark.parametrize(
    "how",
    [
        GenerationSection(beams=3, max_new_tokens=6, replies=2),
        GenerationSection(sample=True, top_k=20, top_p=0.9, temperature=1.3, max_new_tokens=6, replies=3),
    ],
    ids=["beam", "sampling"],
)
def test_a_row_is_answered_alike_in_every_batch(trained, how):
    which, model = trained
    _, batch = turns(which)
    memory = torch.randn(4, 4, 16, generator=torch.Generator().manual_seed(0))
    together = which.generate(model, batch([0, 1, 2, None]), memory, how, ("one",))
    assert together.texts[3] == []
    assert all(len(row) == how.replies for row in together.texts[:3])
    for row in range(3):
        alone = which.generate(model, batch([row]), memory[row : row + 1], how, ("other",))
        assert alone.texts[0] == together.texts[row]
    other = which.generate(model, batch([0, 1, 2]), memory[:3], how.model_copy(update={"seed": 2}), ("one",))
    assert other.texts != together.texts[:3]


def test_sampling_follows_the_models_distribution():
    scores = torch.log(torch.tensor([0.5, 0.3, 0.15, 0.05])).expand(4000, 4)
    keys = [(number,) for number in range(4000)]
    processors = drawing(GenerationSection(sample=True, top_k=3), keys)
    chosen = processors(torch.zeros(4000, 1, dtype=torch.long), scores.clone()).argmax(dim=1)
    shares = torch.bincount(chosen, minlength=4) / 4000
    assert torch.allclose(shares, torch.tensor([0.5, 0.3, 0.15, 0.0]) / 0.95, atol=0.03)


def test_evaluation_figures_tell_living_latents_from_dead_ones(trained):
    which, model = trained
    _, batch = turns(which)
    memory = model.construct_memory(3)
    found = which.figures(model, batch([0, 1, 2]), memory)
    assert all(len(values) == 3 for values in found.values())
    alone = which.figures(model, batch([1]), memory[:1])
    for name in ("nll_posterior", "nll_prior", "nll_words", "divergence"):
        assert torch.allclose(found[name][1], alone[name][0], rtol=1e-4), name
    summary = which.summary(found)
    assert summary["nll_swapped_excess"] != 0
    assert summary["kl_slack"] == pytest.approx(model.latent.prior.objective.slack(8))
    assert summary["elbo_token"] > math.log(summary["perplexity_content"]) - 5
    dead = which.summary({**found, "posterior_mean": torch.zeros(3, 8)})
    assert dead["active_units"] == 0 < summary["active_units"]
    for name in ("means_at_limit", "variances_at_limit"):
        assert summary[name] == pytest.approx(float(found[name].mean()))
    assert len([name for name in summary if name.startswith("kl_standard_group_")]) == 2


def test_words_are_counted_without_the_marks_at_both_ends(trained):
    which, model = trained
    _, batch = turns(which)
    found = which.figures(model, batch([0]), model.construct_memory(1))
    assert int(found["word_tokens"][0]) == int(found["tokens"][0]) - 2
    assert float(found["nll_words"][0]) < float(found["nll_posterior"][0])


def test_counts_are_target_tokens_for_every_part(trained):
    which, _ = trained
    _, batch = turns(which)
    both = batch([0, 1, None])
    tokens = (both.labels != -100).sum(dim=1)
    assert which.count(both).tolist() == [int(tokens.sum())] * 4
    assert which.count(both, per_row=True).tolist() == [tokens.tolist()] * 4
