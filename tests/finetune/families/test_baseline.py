"""Plain models of transformers as controls: what they are scored on, read and write."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    BartConfig,
    BertConfig,
    GPT2Config,
    GPT2LMHeadModel,
    LEDConfig,
    PreTrainedConfig,
    PreTrainedTokenizerFast,
    T5Config,
)

from finetune import backbone as backbones
from finetune.batch import Example, TurnBatch, collate
from finetune.dialogue.dialogue import Dialogue, Turn
from finetune.families.baseline import BaselineSettings, Family
from finetune.families.baseline.cell import logits
from finetune.families.baseline.models import AnyLanguageModel, auto_class
from finetune.families.membart import Family as MemBartFamily
from finetune.families.membart import MemBartSettings
from finetune.recipe import DialogueSection, FineTuneRecipe, GenerationSection
from pretrain import recipe as recipes
from pretrain.errors import CheckpointError, UserError
from pretrain.export import named_tensors
from pretrain.replay import back_propagate
from tests.support import dialogues as made

BART = {
    "d_model": 16,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 32,
    "decoder_ffn_dim": 32,
    "init_std": 0.2,
}
LED = {"max_encoder_position_embeddings": 64, "max_decoder_position_embeddings": 64, "attention_window": 12}
GPT2 = {"n_layer": 2, "n_embd": 16, "n_head": 2, "n_positions": 64, "initializer_range": 0.2}
T5 = {"d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 2, "num_heads": 2, "initializer_factor": 3.0}
KINDS = ("bart", "led", "gpt2", "t5")
DATA = DialogueSection(memory="reset", context_tokens=40, target_tokens=16)
TALKS = made.dialogues(4, seed=3)
TALK = TALKS[0]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """A tiny model of each kind with a tokenizer, as `hf:` backbones; GPT-2's has no padding token."""
    root = tmp_path_factory.mktemp("hub")
    tokenizer = backbones.find("scratch", str(made.tokenizer_folder())).tokenizer
    size = {"vocab_size": len(tokenizer)}
    ends = {"bos_token_id": tokenizer.eos_token_id, "eos_token_id": tokenizer.eos_token_id}
    configs: dict[str, PreTrainedConfig] = {
        "bart": BartConfig(**size, **BART, max_position_embeddings=64),
        "led": LEDConfig(**size, **BART, **LED),
        "gpt2": GPT2Config(**size, **GPT2, **ends),
        "t5": T5Config(**size, **T5, decoder_start_token_id=0),
    }
    for name, config in configs.items():
        torch.manual_seed(0)
        auto_class(config).from_config(config).save_pretrained(root / name)
        if name != "gpt2":
            tokenizer.save_pretrained(root / name)
    words = made.tokenizer_folder() / "tokenizer.json"
    end = tokenizer.eos_token
    bare = PreTrainedTokenizerFast(tokenizer_file=str(words), bos_token=end, eos_token=end)
    bare.save_pretrained(root / "gpt2")
    return {name: f"hf:{root / name}" for name in configs}


def build(place: str, data: DialogueSection = DATA, **settings: Any) -> tuple[Family, Any]:
    found = backbones.find(place)
    which = Family(BaselineSettings(**settings), data, found.tokenizer, 10)
    model, _ = which.build(found)
    which.prepare(model)
    return which, model.eval()


def batch_of(which: Any, examples: list[Example | None]) -> TurnBatch:
    return collate(examples, [1] * len(examples), which.pads, which.numbers)


def first_and_last(which: Any) -> list[Example]:
    """Short and long histories side by side."""
    return [which.example(talk, which.targets(talk, 1)[place]) for talk in TALKS[:2] for place in (0, -1)]


def scored(which: Family, model: Any, batch: TurnBatch) -> Tensor:
    with torch.no_grad():
        nll, _, _ = which.cell(model)(batch, torch.zeros(len(batch.labels), 0, 16), ("test",), per_row=True)
    return nll


def theirs(model: Any, example: Example) -> float:
    """transformers' own loss of one example without any padding, summed over the reply's tokens."""
    source, target = (torch.tensor([example.fields[name]]) for name in ("input_ids", "labels"))
    with torch.no_grad():
        if not model.config.is_encoder_decoder:
            ids = torch.cat([source[:, :-1], target], dim=1)
            labels = ids.clone()
            labels[:, : source.shape[1] - 1] = -100
            loss = model(input_ids=ids, labels=labels).loss
        else:
            more = {}
            if model.config.model_type == "led":
                first = torch.zeros_like(source)
                first[:, 0] = 1
                more["global_attention_mask"] = first
            started = torch.tensor([example.fields["decoder_input_ids"]])
            loss = model(input_ids=source, decoder_input_ids=started, labels=target, **more).loss
    return float(loss) * target.shape[1]


# --- losses ---


@pytest.mark.parametrize("kind", KINDS)
def test_a_padded_batch_loses_what_transformers_loses_on_each_row_without_padding(folders, kind):
    which, model = build(folders[kind])
    examples = first_and_last(which)
    batch = batch_of(which, [*examples, None])
    found = scored(which, model, batch)
    assert found[:-1].tolist() == pytest.approx([theirs(model, one) for one in examples], rel=1e-5)
    assert float(found[-1]) == 0.0
    assert which.count(batch, per_row=True).tolist() == [*(len(one.fields["labels"]) for one in examples), 0]


def test_gpt2_is_scored_on_the_tokens_of_the_reply_alone(folders):
    which, model = build(folders["gpt2"])
    assert which.text.tokenizer.pad_token_id is None
    example = first_and_last(which)[1]
    source, target = example.fields["input_ids"][:-1], example.fields["labels"]
    assert which.text.tokenizer.decode(target).startswith("B:your name is")
    with torch.no_grad():
        out = model(input_ids=torch.tensor([[*source, *target]])).logits.log_softmax(-1)[0]
    expected = -sum(float(out[len(source) - 1 + place, token]) for place, token in enumerate(target))
    assert float(scored(which, model, batch_of(which, [example]))) == pytest.approx(expected, rel=1e-5)


def test_gpt2_and_bart_are_asked_for_the_same_text_after_the_same_history(folders):
    for turn in (1, len(TALK.turns) - 1):
        bart, gpt2 = (build(folders[kind])[0].example(TALK, turn) for kind in ("bart", "gpt2"))
        assert gpt2.fields["labels"] == bart.fields["labels"]
        assert gpt2.fields["input_ids"][1:-1] == bart.fields["input_ids"][1:-1]
        assert len(gpt2.fields["input_ids"]) <= DATA.context_tokens


def test_bart_as_a_baseline_is_membart_with_its_memory_off(folders):
    which, model = build(folders["bart"])
    off = DATA.model_copy(update={"memory": "off"})
    found = backbones.find(folders["bart"])
    other = MemBartFamily(MemBartSettings(), off, found.tokenizer, 10)
    membart, _ = other.build(found)
    other.prepare(membart)
    batch = batch_of(which, first_and_last(which))
    with torch.no_grad():
        nll, _, _ = other.cell(membart.eval())(batch, torch.zeros(4, 0, 16), ("test",), per_row=True)
    assert scored(which, model, batch).tolist() == pytest.approx(nll.tolist(), rel=1e-5)


def test_content_perplexity_leaves_role_mark_and_end_out(folders):
    which, model = build(folders["gpt2"])
    batch = batch_of(which, first_and_last(which))
    gathered = which.figures(model, batch, torch.zeros(4, 0, 16))
    words = [len(which.text.ids(one.about.references[0])) for one in batch.examples if one]
    assert gathered["content_tokens"].tolist() == words
    assert bool((gathered["content_nll"] < scored(which, model, batch)).all())
    mean = float(gathered["content_nll"].sum()) / sum(words)
    assert which.summary(gathered)["perplexity_content"] == pytest.approx(torch.tensor(mean).exp().item())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("mode", ["replay", "bptt"])
def test_every_parameter_has_a_finite_gradient_even_where_all_rows_are_dry(folders, kind, mode):
    which, model = build(folders[kind])
    model.train()
    rollout = [batch_of(which, [first_and_last(which)[1], None]), batch_of(which, [None, None])]
    sides = []
    for batches in (rollout, rollout[1:]):
        model.zero_grad()
        back_propagate(
            which.cell(model),
            batches,
            torch.zeros(2, 0, 16),
            torch.ones(len(batches)),
            [("test", number) for number in range(len(batches))],
            lambda scalar, last: scalar.backward(),
            mode=mode,
        )
        sides.append([parameter.grad for parameter in model.parameters()])
    assert all(gradient is not None and bool(gradient.isfinite().all()) for gradient in sides[0])
    assert all(gradient is not None and not bool(gradient.any()) for gradient in sides[1])
    assert any(bool(gradient.any()) for gradient in sides[0])


# --- generation ---


@pytest.mark.parametrize("how", [{"beams": 3, "replies": 2}, {"beams": 1}], ids=["beams", "greedy"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_row_of_a_batch_is_answered_as_the_row_alone_and_a_dry_one_not_at_all(folders, kind, how):
    which, model = build(folders[kind])
    wanted = GenerationSection(max_new_tokens=6, **how)
    examples = first_and_last(which)[:2]

    def answers(rows: list[Example | None]) -> list[list[str]]:
        batch = batch_of(which, rows)
        return which.generate(model, batch, torch.zeros(len(rows), 0, 16), wanted, ("test",)).texts

    together = answers([examples[0], None, examples[1]])
    assert together == [*answers([examples[0]]), [], *answers([examples[1]])]
    assert [len(row) for row in together] == [wanted.replies, 0, wanted.replies]
    assert any(text for row in together for text in row)


@pytest.mark.parametrize("kind", ["led", "gpt2"])
def test_generation_with_a_cache_writes_what_the_scores_without_one_prefer(folders, kind):
    which, model = build(folders[kind])
    example = first_and_last(which)[1]
    fields = dict(example.fields)
    written: list[int] = []
    for _ in range(5):
        fields["decoder_input_ids"] = [which.text.bos, *written]
        fields["labels"] = [*written, 0]
        batch = batch_of(which, [Example({**fields, "content": [1] * len(fields["labels"])}, example.about)])
        with torch.no_grad():
            written.append(int(logits(model, batch)[0, len(written)].argmax()))
    how = GenerationSection(beams=1, max_new_tokens=5)
    [[text]] = which.generate(model, batch_of(which, [example]), torch.zeros(1, 0, 16), how, ("test",)).texts
    assert text == which.text.clean(written)


def test_sampled_replies_depend_on_the_seed_alone(folders):
    which, model = build(folders["gpt2"])
    batch = batch_of(which, first_and_last(which))

    def drawn(seed: int) -> list[list[str]]:
        how = GenerationSection(sample=True, max_new_tokens=8, seed=seed)
        return which.generate(model, batch, torch.zeros(4, 0, 16), how, ("test",)).texts

    assert drawn(1) == drawn(1)
    assert drawn(1) != drawn(2)


# --- backbones and checkpoints ---


@pytest.mark.parametrize("kind", KINDS)
def test_the_report_names_every_tensor_and_what_was_left(folders, kind):
    found = backbones.find(folders[kind])
    model, report = Family(BaselineSettings(), DATA, found.tokenizer, 10).build(found)
    assert {origin.name for origin in report.tensors} == set(named_tensors(model))
    assert all(origin.source == origin.name for origin in report.tensors)
    assert report.unused == {}
    assert sum(origin.shape == (model.config.vocab_size, 16) for origin in report.tensors) == 1


def test_layers_that_a_smaller_shape_has_no_place_for_are_reported(folders):
    found = backbones.find(folders["gpt2"])
    _, report = Family(BaselineSettings(config={"n_layer": 1}), DATA, found.tokenizer, 10).build(found)
    assert report.unused
    assert all(name.startswith("transformer.h.1.") for name in report.unused)


@pytest.mark.parametrize("kind", KINDS)
def test_a_model_is_rebuilt_from_its_configuration_and_from_its_folder_with_ties(folders, kind, tmp_path):
    which, model = build(folders[kind])
    content = json.loads(model.config.to_json_string(use_diff=False))
    empty = Family.model_class(Family.model_class.config_class.from_dict(content))
    assert type(empty) is type(model)
    places = named_tensors(empty)
    assert {name: place.shape for name, place in places.items()} == {
        name: value.shape for name, value in named_tensors(model).items()
    }
    with torch.no_grad():
        for name, value in named_tensors(model).items():
            places[name].copy_(value)
    model.save_pretrained(tmp_path)
    batch = batch_of(which, first_and_last(which))
    expected = scored(which, model, batch)
    for again in (empty, AnyLanguageModel.from_pretrained(tmp_path, dtype=torch.float32)):
        assert again.get_output_embeddings().weight is again.get_input_embeddings().weight
        assert torch.equal(scored(which, again.eval(), batch), expected)


def test_a_model_from_scratch_takes_its_vocabulary_from_the_tokenizer():
    found = backbones.find("scratch", str(made.tokenizer_folder()))
    which = Family(BaselineSettings(config={"model_type": "gpt2", **GPT2}), DATA, found.tokenizer, 10)
    model, report = which.build(found)
    assert isinstance(model, GPT2LMHeadModel)
    assert model.config.vocab_size == len(found.tokenizer)
    assert {origin.source for origin in report.tensors} == {"fresh"}


# --- refusals ---


def test_a_memory_that_is_carried_is_refused(folders):
    carried = DATA.model_copy(update={"memory": "carry"})
    with pytest.raises(UserError, match="a baseline has no memory") as raised:
        build(folders["bart"], carried)
    assert "data.memory=reset or off" in str(raised.value)


@pytest.mark.parametrize(
    ("kind", "changes", "key"),
    [
        ("gpt2", {"context_tokens": 56}, "70 tokens .* 64 positions of this gpt2.*lower data.context_tokens"),
        ("bart", {"context_tokens": 65}, "72 tokens .* 64 positions of this bart.*lower data.context_tokens"),
        ("led", {"context_tokens": 61}, "72 tokens .* 64 positions of this led.*lower data.context_tokens"),
        ("led", {"target_tokens": 80}, "80 tokens .*lower data.target_tokens"),
    ],
)
def test_sequences_beyond_a_models_positions_are_refused(folders, kind, changes, key):
    with pytest.raises(UserError, match=f"(?s){key}"):
        build(folders[kind], DATA.model_copy(update=changes))


def test_a_text_whose_blocks_are_too_long_for_gpt2_is_refused(folders):
    which, model = build(folders["gpt2"])
    text = Dialogue("text", (Turn(0, "how are you? " * 60),))
    with pytest.raises(UserError, match="do not fit the 64 positions"):
        scored(which, model, batch_of(which, [which.example(text, 1)]))


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"model_type": "gtp2"}, "did you mean 'gpt2'"),
        ({"model_type": "gpt2", "n_layers": 2}, "has no 'model.config.n_layers'.*did you mean 'n_layer'"),
        ({"model_type": "bert"}, "does not write text from left to right"),
        ({"model_type": "membart"}, "a MemBART is no baseline"),
        ({"model_type": "gpt2", "n_embd": 15, "n_head": 2}, "model.config: "),
        ({}, "model_type is None"),
    ],
)
def test_configurations_that_make_no_baseline_are_refused(config, message):
    found = backbones.find("scratch", str(made.tokenizer_folder()))
    with pytest.raises(UserError, match=f"(?s){message}"):
        Family(BaselineSettings(config=config), DATA, found.tokenizer, 10).build(found)


def test_a_backbone_whose_shape_is_changed_beyond_its_weights_is_refused(folders):
    with pytest.raises(CheckpointError, match="cannot be loaded"):
        build(folders["gpt2"], config={"n_embd": 32})


def test_a_decoder_may_be_made_of_an_encoder_only_where_it_says_so():
    assert auto_class(BertConfig(is_decoder=True)) is AutoModelForCausalLM


# --- the shipped recipe ---


def test_the_shipped_recipe_is_membarts_with_another_model():
    found, other = (
        recipes.parse(recipes.read(name, "finetune"), name, FineTuneRecipe).model_dump()
        for name in ("baseline", "membart")
    )
    for content in (found, other):
        for key in ("name", "family"):
            del content[key]
    assert found.pop("data") == {**other.pop("data"), "memory": "reset"}
    assert found == other
