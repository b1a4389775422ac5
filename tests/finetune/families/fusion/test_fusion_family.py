"""The family in the frame: recipes, optimizer, schedule, figures. Numbers are those of the fact sheet."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from finetune.chat import Chat
from finetune.families.fusion import Family, FusionSettings
from finetune.families.fusion.watch import source_weights
from finetune.job import FineTuning
from finetune.metrics import papers
from finetune.metrics.catalogue import METRICS
from finetune.recipe import FineTuneRecipe
from pretrain import recipe as recipes
from pretrain.engine import parameter_groups
from tests.finetune.families.fusion import fusion_rates
from tests.support import dialogues as made
from tests.support import forked, fusion
from tests.support.fusion import METHODS


@pytest.mark.parametrize(
    ("name", "tokenizer", "parts"),
    [("fusion", "membart", 3), ("fusion_gpt2", "gpt2", 3), ("fusion_seq2seq", "membart", 1)],
)
def test_shipped_recipes_are_what_the_family_knows(name: str, tokenizer: str, parts: int):
    wanted = recipes.load(name, [], FineTuneRecipe)
    which = Family(
        FusionSettings.model_validate(wanted.model),
        wanted.data,
        fusion.tokenizer(tokenizer),
        wanted.train.steps,
    )
    assert len(which.parts) == parts
    assert wanted.family == "fusion"
    assert wanted.generation.beams == 3
    assert wanted.generation.max_new_tokens == 32


def test_metrics_are_the_columns_of_the_papers_table():
    assert set(Family.metrics) <= METRICS.keys()
    (table,) = papers.tables("fusion")
    assert set(table.figures("GPT2-linear")) <= set(Family.metrics)


@pytest.mark.parametrize(
    ("settings", "rows"),
    [
        ({"fusion": "att"}, ("GPT2-avg", "GPT2-att")),
        ({"fusion": "avg"}, ("GPT2-avg",)),
        ({}, ("GPT2-avg", "GPT2-linear")),
        ({"fusion": "avg", "shared_attention": True}, ("MI-GPT", "GPT2-avg")),
        ({"inputs": "single", "fusion": "none"}, ("Seq2seq", "TransferTransfo", "TransferGPT2")),
    ],
)
def test_a_model_stands_beside_the_papers_rows_of_its_kind(settings: dict[str, Any], rows: tuple[str, ...]):
    assert papers.rows_beside("fusion", settings) == rows
    (table,) = papers.tables("fusion")
    assert set(rows) <= set(table.rows)


# --- 15: optimizer ---


def test_the_schedule_is_the_papers():
    which = fusion.family("gpt2", warmup_share=0.002)
    which.steps = 2567
    found = [which.rates(step - 1) for step in (1, 5, 6, 1283)]
    for rates, wanted in zip(found, (0.1948, 0.9739, 0.9977, 0.5002), strict=True):
        assert rates == {"": pytest.approx(wanted, abs=5e-5), "fusion": pytest.approx(wanted, abs=5e-5)}
    assert which.rates(2566)["fusion"] == 0
    assert fusion.family("gpt2").rates(0) == {}


@pytest.mark.parametrize("method", ["sw", "dw", "linear", "att"])
def test_fusion_is_a_group_of_its_own_and_weights_of_sources_do_not_decay(method: str):
    which, model = fusion.built(fusion=method)
    wanted = recipes.load("fusion", [], FineTuneRecipe).optimizer
    groups = parameter_groups(which.cell(model), wanted)
    inside = {id(p) for layer in model.decoder.layers for p in layer.fusion.parameters()}
    for group in groups:
        assert {id(p) in inside for p in group["params"]} == {group["name"] == "fusion"}
        assert group["rate"] == (5.0 if group["name"] == "fusion" else 1.0)
        assert {p.dim() >= 2 for p in group["params"]} == {group["weight_decay"] > 0}
    decaying = [g for g in groups if g["name"] == "fusion" and g["weight_decay"]]
    assert bool(decaying) is (method in ("linear", "att"))


def test_inside_deepspeed_the_fusion_learns_five_times_as_fast_at_every_stage():
    [output] = forked.run(fusion_rates.main, (), 1)
    stages = json.loads(next(line for line in output.splitlines() if line.startswith("[[")))
    assert len(stages) == 3
    for found in stages:
        shares = [rates[""] / 5e-4 for rates in found]
        assert shares == pytest.approx([0.1948, 0.9739, 0.9977, 0.5002, 0.0], abs=5e-5)
        for rates in found:
            assert rates["fusion"] == pytest.approx(5 * rates[""], rel=1e-9)


def test_the_schedule_knows_the_updates_that_epochs_decide(tmp_path: Path):
    source = made.write(tmp_path / "data", train=6)
    content = made.recipe("fusion", source, tmp_path, data__epochs=3, train__steps=999, model__fusion="avg")
    job = FineTuning(recipes.parse(content, "test", FineTuneRecipe), 1)
    assert job.recipe.train.steps == math.ceil(3 * job.train.turns / (4 * 2)) != 999
    assert isinstance(job.family, Family)
    assert job.family.steps == job.recipe.train.steps


# --- talking ---


def test_a_conversation_keeps_the_latest_utterances_and_a_memory():
    which, model = fusion.built("membart", "carry", fusion="sw", max_history=3)
    chat = Chat(fusion.fitted(which, model, "jsonl:nowhere"), ("i like tea.",))
    before = chat.memory
    for words in ("hello", "nice to meet you", "yes"):
        chat.hear(words)
        chat.answer()
        chat.reply("i sing")
    assert not torch.equal(chat.memory, before)
    assert chat.window().turns == ("none",) * 3 + ("whole",) * 3
    assert chat.window().persona == ("whole",)


# --- figures ---


@pytest.mark.parametrize("method", METHODS)
def test_shares_of_sources_add_up_to_one_in_every_layer(method: str):
    _, model = fusion.built(fusion=method)
    found = source_weights(model)
    assert bool(found) is (method in ("sw", "dw", "linear"))
    for layer in (1, 2):
        shares = [value for name, value in found.items() if name.endswith(f"/{layer}")]
        assert sum(shares) == pytest.approx(1 if found else 0, abs=1e-5)


def test_shares_are_the_weights_over_their_sum():
    _, model = fusion.built(fusion="sw", weight_norm="code", lively=False)
    with torch.no_grad():
        model.decoder.layers[1].fusion.weight.copy_(torch.tensor([1.0, 2.0, 5.0]))
    found = source_weights(model)
    assert [found[f"source_weight_by_layer/{name}/2"] for name in ("reply", "persona", "history")] == (
        pytest.approx([0.125, 0.25, 0.625])
    )
    assert found["source_weight_by_layer/persona/1"] == pytest.approx(1 / 3)
    assert found["source_sum_by_layer/least/2"] == pytest.approx(8)


@pytest.mark.parametrize("settings", [{"fusion": "sw"}, {"inputs": "single", "fusion": "none"}])
def test_figures_say_what_each_source_is_worth(settings: dict[str, Any]):
    which, model = fusion.built("gpt2", **settings)
    batch = fusion.batch(which, dry=1)
    with torch.no_grad():
        gathered = which.figures(model, batch, fusion.memory(which, model, 4))
    found = which.summary({name: values[:3] for name, values in gathered.items()})
    hidden = {name for name in found if "without" in name}
    wanted = {f"perplexity_content_without_{name}" for name in model.config.contexts}
    assert hidden == wanted
    for name in hidden:
        assert found[name] != pytest.approx(found["perplexity_content"], rel=1e-4)
    labels = batch.labels.masked_fill(batch.labels == which.text.eos, -100)
    with torch.no_grad():
        logits = fusion.logits(which, model, batch)
    nll = torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten())
    assert found["perplexity_content"] == pytest.approx(float(nll.exp()), rel=1e-4)
