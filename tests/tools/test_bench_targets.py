"""`membart bench targets` judges what benchmarks print."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pretrain.errors import UserError
from tools.bench.targets import AT_LEAST, AT_MOST, Target, benchmarks, row, targets


def test_figures_are_taken_from_the_benchmarks_own_output(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "targets.json"
    targets(only="replay", quick=True, out=out)
    table = [line for line in capsys.readouterr().out.splitlines() if line.startswith("|")][2:]
    kept = json.loads(out.read_text())
    modes = {one["mode"]: one for one in kept["printed"]["replay"]["modes"]}
    figures = {(one["what"], one["against"]): one["figure"] for one in kept["targets"]}
    assert len(table) == len(figures) == 2
    assert figures["replay step, T = 6, base", "BPTT"] == modes["replay"]["ratio"]
    authors = modes["authors"]["seconds"] / modes["replay"]["seconds"]
    assert figures["training step, base", "the authors' form"] == authors
    assert all(one["command"].endswith("--rounds 1") for one in kept["targets"])


@pytest.mark.parametrize(
    ("sense", "figure", "held"), [(AT_MOST, 1.1, True), (AT_MOST, 1.2, False), (AT_LEAST, 1.1, False)]
)
def test_a_row_is_held_or_not(sense: str, figure: float, held: bool) -> None:
    found = row(Target("it", "that", sense, 1.15, lambda one: one["ratio"]), {"ratio": figure}, "command")
    assert found["held"] is held
    assert found["figure"] == figure


def test_a_gpu_has_targets_of_its_own() -> None:
    bounds = {
        cuda: {t.what: t.bound for one in benchmarks(cuda).values() for t in one.targets}
        for cuda in (False, True)
    }
    assert bounds[True]["MFU, base, bf16"] == 0.45
    assert bounds[False]["training step, base"] < bounds[True]["training step, base"]


def test_an_unknown_benchmark_is_named() -> None:
    with pytest.raises(UserError, match="no benchmark sleep"):
        targets(only="sleep")
