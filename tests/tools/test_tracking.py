"""`membart report`, `membart sync` and `membart bench tracking` as a user types them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from pretrain.errors import UserError
from pretrain.tracking import Tracker
from tools import tracking
from tools.bench.tracking import tracking as bench

app = typer.Typer()
app.command()(tracking.report)
app.command()(tracking.sync)
app.command()(bench)


def run(*words: object) -> str:
    result = CliRunner().invoke(app, [str(word) for word in words])
    if isinstance(result.exception, UserError):
        raise result.exception
    assert result.exit_code == 0, result.output
    return result.stdout


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    folder = tmp_path / "runs" / "tiny"
    folder.mkdir(parents=True)
    tracker = Tracker.start(
        folder, experiment="e", run_name="tiny", params={}, tags={}, upload=False, system_interval=None
    )
    tracker.log(1, "train", {"loss": 2.0})
    tracker.finish("FINISHED", timeout=0)
    return folder


def test_report_prints_the_summary_and_keeps_the_samples(run_dir: Path, tmp_path: Path) -> None:
    samples = tmp_path / "fill.json"
    samples.write_text(json.dumps({"title": "Masks", "text": "with memory: <a>"}))
    first = run("report", run_dir, "--samples", samples)
    assert "Run tiny: step 1, finished" in first
    assert "Masks\n  with memory: <a>" in first
    assert run("report", run_dir) == first
    assert "with memory: &lt;a&gt;" in (run_dir / "report.html").read_text()


def test_sync_says_what_it_sent(run_dir: Path, tmp_path: Path) -> None:
    uri = f"sqlite:///{tmp_path / 'a.db'}"
    first, second = (run("sync", run_dir, "--tracking-uri", uri) for _ in range(2))
    assert first.startswith("1 metric values sent to MLflow run ")
    assert second.startswith("0 metric values sent to MLflow run ")
    assert first.endswith(f": mlflow ui --backend-store-uri {uri}\n")


@pytest.mark.parametrize("command", ["report", "sync"])
def test_a_folder_that_is_no_run_is_refused(tmp_path: Path, command: str) -> None:
    with pytest.raises(UserError, match=str(tmp_path)):
        run(command, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_bench_prints_one_ratio(tmp_path: Path) -> None:
    ratio = next(
        line
        for line in run("tracking", "--seconds", 1, "--rounds", 1).splitlines()
        if line.startswith("ratio")
    )
    wall, processor = map(float, ratio.split()[1:3])
    assert 0.1 < wall < 100
    assert 0.1 < processor < 100
