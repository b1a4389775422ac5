"""Figures of a set, against counting by hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from pretrain.corpus.build import build
from pretrain.corpus.shardset import ShardSet, Window
from pretrain.corpus.sources import SourceSpec
from pretrain.corpus.stats import plot_lengths, set_stats
from pretrain.corpus.tokenizer import Tokenizer
from tests.pretrain.corpus.conftest import jsonl, text_of

WINDOW = Window(64, 16)


@pytest.fixture(scope="module")
def shards(tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> ShardSet:
    folder = tmp_path_factory.mktemp("made")
    specs = []
    for name, numbers in (("web", range(100)), ("books", range(100, 120))):
        file = folder / f"{name}.jsonl"
        file.write_bytes(jsonl([{"text": text_of(number, 10 + 3 * (number % 50))} for number in numbers]))
        specs.append(SourceSpec(name, (str(file),)))
    build(specs, tokenizer, folder / "set", window=WINDOW, min_tokens=1, held_out=0.2, workers=1)
    return ShardSet.open(folder / "set")


def test_each_source_and_split(shards: ShardSet) -> None:
    found = {(row.split, row.source): row for row in set_stats(shards, batch=4, horizon=2).sources}
    assert set(found) == {(split, source) for split in ("train", "validation") for source in ("web", "books")}
    for (split, source), row in found.items():
        numbers = [n for n in shards.select(split) if shards.shards[n].source == source]
        lengths = [int(length) for n in numbers for length in shards.lengths(n)]
        assert (row.shards, row.documents, row.tokens) == (len(numbers), len(lengths), sum(lengths))
        assert row.segments == sum(WINDOW.segments(length) for length in lengths)
        assert (row.shortest, row.median, row.longest) == (min(lengths), np.median(lengths), max(lengths))
        assert row.histogram == {
            low: sum(1 << low <= length < 2 << low for length in lengths) for low in row.histogram
        }
        assert sum(row.histogram.values()) == len(lengths)
    train = [row for (split, _), row in found.items() if split == "train"]
    assert sum(row.share_of_tokens for row in train) == pytest.approx(1)
    assert sum(row.share_of_documents for row in train) == pytest.approx(1)


@pytest.mark.parametrize("batch", [1, 7, 40])
def test_epoch_cost_against_drawing_batches(shards: ShardSet, batch: int) -> None:
    cost = set_stats(shards, batch=batch, horizon=3).epoch
    assert cost is not None
    rows = []
    for shard in shards.select("train"):
        for length in shards.lengths(shard):
            for segment in range(WINDOW.segments(int(length))):
                rows.append(min(WINDOW.body, int(length) - segment * WINDOW.step) + 2)
    assert cost.segments == len(rows)
    assert cost.timesteps == -(-len(rows) // batch)
    assert cost.optimizer_steps == -(-cost.timesteps // 3)
    drawn = np.random.default_rng(0).choice(rows, size=(4000, batch))
    filled = -(-drawn.max(axis=1) // 8) * 8 * batch
    assert cost.padding_share == pytest.approx(1 - drawn.sum() / filled.sum(), abs=0.01)
    assert cost.tokens_per_step == pytest.approx(np.mean(rows) * batch * 3, rel=0.01)


def test_the_histogram_is_a_picture(shards: ShardSet, tmp_path: Path) -> None:
    plot_lengths(shards, tmp_path / "lengths.png")
    assert (tmp_path / "lengths.png").read_bytes().startswith(b"\x89PNG")
