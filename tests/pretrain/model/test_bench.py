"""The benchmarks run, compare like with like, and say it in both ways."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest

from tools.bench.model import attention, loss

SMALL: list[tuple[Callable[..., None], dict[str, int], list[str]]] = [
    (
        attention,
        {"batch": 1, "length": 16, "slots": 4, "width": 64},
        ["mask, padded", "split, padded", "mask, full rows", "split, full rows"],
    ),
    (loss, {"tokens": 40, "vocabulary": 60, "width": 8}, ["plain", "chunked", "torch, 512 rows"]),
]


@pytest.mark.parametrize(("command", "sizes", "names"), SMALL)
def test_figures_of_every_form(
    command: Callable[..., None],
    sizes: dict[str, int],
    names: list[str],
    capsys: pytest.CaptureFixture[str],
) -> None:
    command(**sizes, rounds=3, as_json=True)
    forms = json.loads(capsys.readouterr().out)["forms"]
    assert [form["name"] for form in forms] == names
    assert forms[0]["ratio"] == 1
    assert all(form["seconds"] > 0 for form in forms)
    command(**sizes, rounds=1)
    printed = capsys.readouterr().out
    assert all(name in printed for name in names)


def test_the_forms_of_the_loss_compute_the_same(capsys: pytest.CaptureFixture[str]) -> None:
    loss(tokens=40, vocabulary=60, width=8, rounds=1, as_json=True)
    sums = list(json.loads(capsys.readouterr().out)["sums"].values())
    assert len(sums) == 3
    assert sums == pytest.approx([sums[0]] * 3, rel=1e-5)
