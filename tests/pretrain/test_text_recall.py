"""Text recall: the recipe and its variants, and that only what flows back through memory teaches it."""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from transformers import BartConfig, BartForConditionalGeneration

from pretrain import preflight, recipe
from pretrain.__main__ import run
from pretrain.build import build_model
from pretrain.corpus.shardset import ShardSet, Window
from pretrain.dispatch.batch import Batch
from pretrain.errors import UserError
from pretrain.model import VARIANTS
from tests.support import tiny
from tools.study_recall import TRIALS, Settings, learn


def test_table_6_of_the_paper() -> None:
    loaded = recipe.load("text_recall")
    config = loaded.model.config
    assert [config[f"{part}_layers"] for part in ("encoder", "decoder")] == [6, 6]
    assert (config["d_model"], config["encoder_attention_heads"], config["memory_len"]) == (768, 12, 32)
    assert config["dropout"] == config["attention_dropout"] == config["activation_dropout"] == 0.0
    assert (loaded.data.objective, loaded.data.window, loaded.data.overlap) == ("recall", 512, 0)
    assert (loaded.agents, loaded.replay.horizon, loaded.train.steps) == (8, 2, 100_000)
    optimizer = loaded.optimizer
    assert (optimizer.lr, optimizer.warmup_steps, optimizer.weight_decay) == (3e-5, 1000, 0.01)


@pytest.mark.parametrize(
    ("variant", "parameters"),
    [
        ("membart", 182_565_121),
        ("shared", 140_037_889),
        ("memformer", 155_992_320),
        ("memformer_rezero", 155_983_110),
    ],
)
def test_a_dry_run_of_each_variant_needs_neither_hub_nor_shards(
    variant: str, parameters: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [f"model.variant={variant}", f"root={tmp_path}"]
    assert run("text_recall", words, dry_run=True) == 0
    assert f"{parameters:,} ({parameters:,} train)" in capsys.readouterr().out


def test_both_places_name_the_variant_but_not_two_of_them(shards: Path, tmp_path: Path) -> None:
    content = tiny.recipe(shards, tmp_path)
    for changes in ({"variant": "shared"}, {"config": {**tiny.MODEL, "variant": "shared"}}):
        wanted = recipe.parse({**content, "model": {**content["model"], **changes}}, "test")
        assert build_model(wanted, tiny.VOCABULARY).config.variant == "shared"
    with pytest.raises(UserError, match=r"variant is membart, config\.variant shared"):
        recipe.load("text_recall", ["model.variant=membart", "model.config.variant=shared"])
    with pytest.raises(UserError, match=f"one of: {', '.join(VARIANTS)}"):
        preflight.check(recipe.load("text_recall", ["model.variant=lstm"]), 1, dry=True)


def test_a_bart_checkpoint_opens_as_the_variant(shards: Path, tmp_path: Path) -> None:
    shape = {**tiny.MODEL, "vocab_size": ShardSet.open(shards).vocab_size}
    bart_fields = {key: value for key, value in shape.items() if key != "memory_len"}
    BartForConditionalGeneration(BartConfig(**bart_fields)).save_pretrained(tmp_path / "bart")
    content = tiny.recipe(shards, tmp_path)
    content["model"] = {
        "init": str(tmp_path / "bart"),
        "variant": "memformer_rezero",
        "config": {"memory_len": 4},
    }
    plan = preflight.check(recipe.parse(content, "test"), 1)
    assert plan.config.variant == "memformer_rezero"
    model = build_model(plan.recipe, shape["vocab_size"])
    assert (model.config.variant, model.config.d_model) == ("memformer_rezero", tiny.MODEL["d_model"])


def test_overlapping_shards_are_cut_anew_without_overlap(shards: Path, tmp_path: Path) -> None:
    wanted = recipe.parse(
        tiny.recipe(shards, tmp_path, data__objective="recall", data__window=16, data__overlap=0), "test"
    )
    plan = preflight.check(wanted, 1)
    assert plan.shard_set is not None
    assert plan.shard_set.window == Window(32, 8)
    assert plan.window == Window(16, 0)


WORDS, BODY = 12, 4
NO_MEMORY = math.log(WORDS) * BODY / (BODY + 2)
"""Nats per target token of a guess: `<s>` and `</s>` cost nothing, the words between are uniform."""
SIZES = Settings(
    updates=450, seed=2, agents=32, window=8, d_model=32, layers=1, heads=2, memory_len=4, lr=5e-3
)


def random_segments() -> Iterator[Batch]:
    """Endless documents of random words: what a timestep asks for is nowhere but in the memory."""
    generator = torch.Generator().manual_seed(1)
    agents = torch.arange(SIZES.agents)
    start, stop = torch.zeros(SIZES.agents, 1).long(), torch.full((SIZES.agents, 1), 2)
    before: torch.Tensor | None = None
    for timestep in itertools.count():
        words = torch.randint(4, 4 + WORDS, (SIZES.agents, BODY), generator=generator)
        source = torch.cat([start, words, stop], dim=1)
        target = source if before is None else before
        yield Batch(
            input_ids=source,
            attention_mask=torch.ones_like(source),
            decoder_input_ids=torch.cat([stop, target[:, :-1]], dim=1),
            labels=torch.full_like(target, -100) if before is None else target,
            memory_resets=torch.full_like(agents, int(before is None)),
            lane=agents,
            agent=agents,
            document=agents,
            segment=torch.full_like(agents, timestep),
            epoch=torch.zeros_like(agents),
            timestep=timestep,
            target_tokens=0 if before is None else target.numel(),
        )
        before = source


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Matrices this small only wait for each other on several threads."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.usefixtures("one_thread")
def test_memory_learns_only_through_gradients_that_cross_it() -> None:
    """Fidelity test 17: no gap to the control where memory is forgotten, or where no gradient crosses it."""
    losses = {
        name: statistics.mean(
            itertools.islice(
                learn(TRIALS[name], SIZES, 4 + WORDS, random_segments()), SIZES.updates - 25, None
            )
        )
        for name in ("membart", "cut", "forget")
    }
    assert losses["forget"] == pytest.approx(NO_MEMORY, abs=0.03)
    assert losses["cut"] == pytest.approx(NO_MEMORY, abs=0.03)
    assert losses["membart"] < 0.5 * NO_MEMORY
