"""`membart study text-recall` as a user types it, and what it concludes from curves."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from pretrain.corpus.shardset import ShardSet
from pretrain.errors import UserError
from tools import study_recall
from tools.cli import app


def curve(floor: float, reached_at: int) -> list[float]:
    """Falls in a line from 4 nats to `floor`, and stays there from point `reached_at` on."""
    return [floor + (4 - floor) * max(0.0, 1 - (i + 1) / reached_at) for i in range(study_recall.POINTS)]


def curves(**changes: list[float]) -> dict[str, list[float]]:
    made = {
        "memformer": curve(2.0, 50), "memformer_rezero": curve(1.0, 90), "shared": curve(2.5, 50),
        "membart": curve(0.5, 40), "cut": curve(3.1, 50), "forget": curve(3.0, 50),
    }  # fmt: skip
    return {**made, **changes}


def test_the_ranking_puts_the_lowest_final_loss_first() -> None:
    findings = study_recall.judge(curves())
    assert findings["ranking"] == ["membart", "memformer_rezero", "memformer", "shared"]
    assert study_recall.judge(curves(shared=curve(0.1, 50)))["ranking"][0] == "shared"


def test_gains_count_from_what_is_reached_without_memory() -> None:
    gain = study_recall.judge(curves())["gain"]
    assert gain["membart"] == pytest.approx(2.5)
    assert gain["cut"] == pytest.approx(-0.1)
    assert gain["forget"] == 0


@pytest.mark.parametrize(
    ("membart", "share", "words"),
    [
        (curve(1.0, 20), 0.20, "after 20% of the updates"),
        (curve(0.5, 100), 0.86, "after 86% of the updates"),
        (curve(1.5, 20), None, "does not reach the loss that Memformer + ReZero ends with"),
    ],
)
def test_the_share_of_rezeros_updates(membart: list[float], share: float | None, words: str) -> None:
    made = curves(membart=membart)
    findings = study_recall.judge(made)
    assert findings["updates_share"] == share
    assert words in study_recall.table(made, findings)


def test_a_curve_is_means_over_equal_numbers_of_updates() -> None:
    assert study_recall.smooth([float(i) for i in range(200)]) == [2 * i + 0.5 for i in range(100)]
    uneven = study_recall.smooth([1.0] * 250)
    assert len(uneven) == study_recall.POINTS
    assert set(uneven) == {1.0}


@pytest.fixture
def threads() -> Iterator[None]:
    """The command sets torch's threads for its process; other tests keep theirs."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("threads")
def test_the_command_leaves_figure_and_figures(shards: Path, tmp_path: Path) -> None:
    words = ["study", "text-recall", "--shards", shards, "--out", tmp_path, "--updates", 20]
    done = CliRunner().invoke(app, [str(word) for word in words])
    assert done.exit_code == 0, done.output
    written = json.loads((tmp_path / "text-recall.json").read_text())
    assert {name: len(curve) for name, curve in written["curves"].items()} == dict.fromkeys(
        study_recall.TRIALS, 20
    )
    best = study_recall.TRIALS[written["findings"]["ranking"][0]].label
    assert f"1. {best}" in done.stdout
    assert (tmp_path / "text-recall.png").read_bytes().startswith(b"\x89PNG")
    assert sorted(path.suffix for path in tmp_path.iterdir()) == [".json", ".png"]


def test_a_seed_decides_every_loss(shards: Path) -> None:
    shard_set = ShardSet.open(shards)

    def losses(seed: int) -> list[float]:
        settings = study_recall.Settings(updates=3, seed=seed)
        batches = study_recall.recall_batches(shard_set, settings)
        return list(
            study_recall.learn(study_recall.TRIALS["membart"], settings, shard_set.vocab_size, batches)
        )

    assert losses(1) == losses(1)
    assert losses(1) != losses(2)


def test_a_missing_shard_set_is_one_line(tmp_path: Path) -> None:
    words = ["study", "text-recall", "--shards", str(tmp_path / "none"), "--out", str(tmp_path / "out")]
    done = CliRunner().invoke(app, words)
    assert isinstance(done.exception, UserError)
    assert not (tmp_path / "out").exists()
