"""`membart study fusion-methods` from the command line: what is trained, and what stands beside it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from finetune.families.fusion import FusionSettings
from finetune.metrics import METRICS, papers
from pretrain import recipe as recipes
from pretrain.errors import UserError
from tests.support import dialogues as made
from tests.support import families
from tools import study_fusion
from tools.cli import app


def test_rows_are_settings_of_the_family_and_stand_in_the_paper() -> None:
    (printed,) = papers.tables("fusion")
    for name, switches in study_fusion.METHODS.items():
        assert study_fusion.PRINTED.get(name, f"GPT2-{name}") in printed.rows
        content: dict[str, object] = {}
        for switch in switches:
            recipes.apply(content, switch)
        FusionSettings.model_validate(content["model"])
    assert set(study_fusion.METRICS) <= METRICS.keys()


def test_a_method_is_trained_and_set_beside_the_papers(tmp_path: Path) -> None:
    source = made.write(tmp_path / "data", train=4, valid=2)
    content = made.recipe("fusion", source, tmp_path, **families.TINY["fusion"])
    changes = [
        f"{section}.{key}={json.dumps(value)}"
        for section in ("model", "data", "optimizer", "tracking", "generation")
        for key, value in content[section].items()
        if key != "sources"
    ]
    words = ["--from", "scratch", "--data", source, "--rows", "sw", "--out", str(tmp_path / "out")]
    steps = ["train.steps=1", "checkpoint.every=1", "train.deepspeed=zero0"]
    done = CliRunner().invoke(
        app,
        ["study", "fusion-methods", *words, f"tokenizer={made.tokenizer_folder()}", *changes, *steps],
        catch_exceptions=False,
    )
    assert done.exit_code == 0, done.output
    found = json.loads((tmp_path / "out" / "methods.json").read_text(encoding="utf-8"))
    assert found["sw"]["facts"]["settings"]["fusion"] == "sw"
    assert "GPT2-sw (paper)" in done.output


def test_an_unknown_row_is_named() -> None:
    with pytest.raises(UserError, match="no row mean"):
        study_fusion.fusion_methods("scratch", [], rows="mean")
