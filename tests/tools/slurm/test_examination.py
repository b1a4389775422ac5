"""Nodes examine one another: who is bad, hangs or stays away has no `ok`, and nobody else is blamed."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from tests.support import forked, tiny
from tests.tools.slurm.nodes import NODES, node

PATIENT, HASTY = 600, 8
"""Seconds of an examination: where all answer, and where some never do and it lasts to its end."""


def answers(
    tmp_path: Path, shards: Path, behaviour: dict[str, str], seconds: int = PATIENT
) -> dict[str, str]:
    """The file that each node left: its kind and text."""
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(yaml.safe_dump(tiny.recipe(shards, tmp_path)))
    forked.start(node, (tmp_path, recipe, behaviour, seconds), len(NODES)).wait()
    files = [file for name in NODES for file in tmp_path.glob(f"{name}.*") if file.suffix != ".tmp"]
    return {file.stem: f"{file.suffix[1:]}: {file.read_text().strip()}" for file in files}


def test_good_nodes_answer_and_the_first_tells_bandwidths_and_the_lead(tmp_path: Path, shards: Path) -> None:
    assert answers(tmp_path, shards, {}) == dict.fromkeys(NODES, "ok: well")
    assert (tmp_path / "network").read_text().startswith("all-reduce over 3 ranks ")
    assert "slowest link n" in (tmp_path / "network").read_text()
    assert (tmp_path / "lead").read_text() == "77\n"


def test_a_node_that_does_not_see_the_shards_says_so(tmp_path: Path, shards: Path) -> None:
    found = answers(tmp_path, shards, {"n1": "blind"})
    assert (found["n0"], found["n2"]) == ("ok: well", "ok: well")
    assert found["n1"].startswith("bad: ")
    assert "nowhere: no shard set here" in found["n1"]


@pytest.mark.parametrize("behaviour", ["absent", pytest.param("mute", marks=pytest.mark.punish)])
def test_a_node_that_stays_away_or_hangs_is_the_one_without_an_answer(
    tmp_path: Path, shards: Path, behaviour: str
) -> None:
    assert answers(tmp_path, shards, {"n2": behaviour}, HASTY) == {"n0": "ok: well", "n1": "ok: well"}


def test_nodes_that_cannot_reach_the_first_one_are_lost_not_bad(tmp_path: Path, shards: Path) -> None:
    found = answers(tmp_path, shards, {"n0": "absent"}, HASTY)
    assert sorted(found) == ["n1", "n2"]
    assert all(text.startswith("lost: 127.0.0.1:") and "cannot be reached" in text for text in found.values())
