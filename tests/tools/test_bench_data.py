"""The data benchmark and the simulation: contenders do the same work, and the figures mean something."""

from __future__ import annotations

import json
from itertools import islice

import numpy as np
import pytest
from typer.testing import CliRunner

from pretrain.corpus.build import build
from pretrain.corpus.shardset import ShardSet, Window
from pretrain.corpus.sources import SourceSpec
from pretrain.corpus.tokenizer import train_tokenizer
from pretrain.dispatch import Dispatcher
from pretrain.noise import NoiseConfig, Vocabulary
from tools.bench.data import measure, peak_memory
from tools.bench.webdataset_pipeline import pipeline
from tools.cli import app


@pytest.fixture(scope="module")
def shard_set(tmp_path_factory: pytest.TempPathFactory) -> ShardSet:
    folder, random = tmp_path_factory.mktemp("bench"), np.random.default_rng(0)
    words = [f"word{number}" for number in range(300)]
    texts = [" ".join(random.choice(words, random.integers(100, 900))) for _ in range(60)]
    (folder / "text.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    build(
        [SourceSpec("text", (str(folder / "text.jsonl"),))],
        train_tokenizer(texts, 700),
        folder / "set",
        window=Window(128, 32),
        min_tokens=64,
        held_out=0.0,
        shard_tokens=4000,
    )
    return ShardSet.open(folder / "set")


def test_the_webdataset_pipeline_does_the_dispatchers_work(shard_set: ShardSet):
    tokenizer, batches = shard_set.tokenizer(), 60
    theirs = list(islice(pipeline(shard_set, Vocabulary.of(tokenizer), NoiseConfig(), 8), batches))
    ours = list(islice(Dispatcher(shard_set, lanes=1, agents_per_lane=8, seed=1), batches))
    for batch in theirs:
        labels, inputs = batch["labels"], batch["decoder_input_ids"]
        assert batch["tokens"] == int((labels != -100).sum())
        assert (labels[:, 0] == 0).all()
        assert (inputs[:, :2] == labels.new_tensor([2, 0])).all()
        assert (inputs[:, 1:] == labels[:, :-1].where(labels[:, :-1] >= 0, 1))[labels[:, 1:] != -100].all()
        assert ((batch["input_ids"] != 1) == (batch["attention_mask"] == 1)).all()

    def figures(tokens: int, ids: list, masks: list) -> tuple[float, float]:
        sources = sum(int(mask.sum()) for mask in masks)
        hidden = sum(int((row == tokenizer.mask).sum()) for row in ids)
        return sources / tokens, hidden / tokens

    mine = figures(
        sum(b.target_tokens for b in ours), [b.input_ids for b in ours], [b.attention_mask for b in ours]
    )
    other = figures(
        sum(b["tokens"] for b in theirs),
        [b["input_ids"] for b in theirs],
        [b["attention_mask"] for b in theirs],
    )
    assert mine == pytest.approx(other, rel=0.03)


def test_speeds_are_measured_side_by_side(shard_set: ShardSet):
    speed = measure(shard_set, rows=8, seconds=0.05, rounds=1)
    assert 0 < speed.webdataset < speed.copy
    assert 0 < speed.dispatcher < speed.copy
    assert speed.ratio == speed.dispatcher / speed.webdataset


def test_memory_does_not_grow_with_the_shards(shard_set: ShardSet):
    few, many = (peak_memory(shard_set, count, 8) for count in (1, 8))
    assert 0 < few < 100
    assert many < few + 4


def test_the_simulation_reports_what_it_planned():
    small = "--ranks 4 --agents 4 --lanes-per-rank 2 --shards 30 --documents 20 --timesteps 50"
    result = CliRunner().invoke(app, ["simulate", *small.split()])
    assert result.exit_code == 0, result.output
    lines = {line[:38].strip(): line[38:] for line in result.output.splitlines()}
    steps, planned = lines["timesteps of an epoch"].replace(",", "").split(" (planned ")
    assert int(steps) == int(planned.rstrip(")")) > 50
    assert 0 < float(lines["padding, to a rank's longest row"].rstrip("%")) < 50
    assert "MiB" in lines["memory of a rank's plan"]
