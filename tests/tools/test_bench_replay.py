"""`membart bench replay` compares what it says it compares."""

from __future__ import annotations

import json
import sys

import pytest
import torch

from pretrain.errors import UserError
from pretrain.replay import Cell
from tools.bench.replay import Setting, peak_of, prepare, replay, step

SMALL = {"shape": "small", "batch": 2, "window": 12}
SETTING = Setting("small", 2, 12, "float32", "cpu")


def test_every_mode_is_timed_and_counted(capsys: pytest.CaptureFixture[str]) -> None:
    replay(**SMALL, horizon=3, rounds=1, horizons="", as_json=True)  # type: ignore[arg-type]
    found = json.loads(capsys.readouterr().out)
    rows = {row["mode"]: row for row in found["modes"]}
    assert list(rows) == ["bptt", "replay", "checkpoint", "written", "authors"]
    assert all(row["seconds"] > 0 for row in rows.values())
    assert rows["bptt"]["ratio"] == rows["bptt"]["flops_ratio"] == 1
    assert 1 < rows["replay"]["flops_ratio"] < rows["checkpoint"]["flops_ratio"]
    assert rows["written"]["flops_ratio"] == pytest.approx(4 / 3)
    assert rows["replay"]["utilization"] > rows["replay"]["useful"]
    replay(**SMALL, horizon=2, rounds=1, horizons="")  # type: ignore[arg-type]
    assert "written" in capsys.readouterr().out


def test_all_modes_give_the_same_gradients() -> None:
    model, rollout, memory = prepare(SETTING, 3)
    cell, found = Cell(model), {}
    for mode in ("bptt", "replay", "checkpoint", "written"):
        cell.zero_grad(set_to_none=True)
        step(cell, rollout, memory, mode, SETTING)
        found[mode] = torch.cat([p.grad.flatten() for p in cell.parameters() if p.grad is not None])
    for mode, gradient in found.items():
        assert torch.allclose(gradient, found["bptt"], rtol=1e-4, atol=1e-7), mode


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the resident set is read from /proc")
def test_bptt_needs_more_memory_than_replay() -> None:
    setting = Setting("small", 4, 256, "float32", "cpu")
    kept, replayed = peak_of(setting, "bptt", 6), peak_of(setting, "replay", 6)
    assert kept is not None
    assert replayed is not None
    assert kept > 2 * replayed


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"shape": "huge"}, "one of: base, large, small"),
        ({"dtype": "float8"}, "one of: float32, bfloat16"),
        ({"modes": "bppt"}, "no mode bppt"),
    ],
)
def test_a_wrong_option_is_one_line(changes: dict[str, str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        replay(**{**SMALL, "rounds": 0, "horizons": "", **changes})  # type: ignore[arg-type]
