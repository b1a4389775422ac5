"""`membart study ki-...` from the command line: what is trained, and what stands beside it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

from finetune.dialogue.load import load
from finetune.families.ki import KiSettings
from finetune.metrics import METRICS, papers
from pretrain import recipe as recipes
from pretrain.errors import UserError
from tests.support import dialogues as made
from tests.support import ki
from tools import study_ki
from tools.cli import app

SMALL = (
    *("data.lanes=2", "data.agents_per_lane=2", "data.context_tokens=24", "data.target_tokens=16"),
    *("data.epochs=null", "train.steps=1", "train.deepspeed=zero0", "checkpoint.every=1"),
    *("replay.agent_chunks=1", "validation.max_timesteps=1", "tracking.mlflow=false"),
    *("generation.beams=1", "generation.max_new_tokens=4"),
)


def study(name: str, root: Path, *more: str) -> tuple[str, Path]:
    """What a study printed, and its folder."""
    source = made.write(root / "data", train=4, valid=2)
    ki.write(root / "knowledge", load(source), tagged=True)
    words = [
        "--data",
        source,
        "--knowledge",
        str(root / "knowledge"),
        "--out",
        str(root / "out"),
        *more,
        *SMALL,
    ]
    done = CliRunner().invoke(app, ["study", name, *words], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.stdout, root / "out"


def test_rows_are_those_of_the_paper_and_metrics_are_ours() -> None:
    (printed,) = (table for table in papers.tables("ki") if table.number == "Table 5")
    assert set(printed.rows) <= set(study_ki.CONTROLS)
    rows = {row for table in papers.tables("ki") if table.number == "Table 1" for row in table.rows}
    names = {name for name, _, _ in study_ki.BODIES.values()}
    assert rows == {name for row in names & rows for name in (row, f"{row}+KI")}
    assert set(study_ki.METRICS) <= METRICS.keys()


def test_controls_differ_in_their_knowledge_alone(tmp_path: Path) -> None:
    shape = json.dumps(ki.MEMBART)
    start = ("--from", "scratch", f"tokenizer={made.tokenizer_folder()}", f"model.config={shape}")
    output, out = study("ki-controls", tmp_path, "--rows", "Base,Factual", *start)
    content = json.loads((out / "controls.json").read_text(encoding="utf-8"))
    settings = {name: one["facts"]["settings"] for name, one in content.items()}
    assert list(settings) == ["Base", "Factual"]
    assert settings["Base"].get("knowledge") is None
    assert settings["Factual"]["knowledge_control"] == "factual"
    changed = {key for key in settings["Factual"] if settings["Factual"][key] != settings["Base"].get(key)}
    assert changed == {"knowledge", "knowledge_hash", "knowledge_control"}
    assert 0 < content["Factual"]["figures"]["knowledge_coverage"] < 100
    assert "knowledge_coverage" not in content["Base"]["figures"]
    assert "Factual" in output.splitlines()[0]


def test_a_body_is_trained_without_and_with_knowledge_from_where_it_can() -> None:
    place, known = Path("tokenizer"), Path("known")
    for body, (name, recipe, taken) in study_ki.BODIES.items():
        plain, internal = study_ki.pair(body, "RUN", place, known).items()
        assert (plain[0], internal[0]) == (name, f"{name}+KI")
        added = ("model.knowledge=known", "model.knowledge_control=none")
        assert internal[1] == replace(plain[1], switches=(*plain[1].switches, *added))
        assert (plain[1].recipe, plain[1].start) == (recipe, "RUN" if taken else "scratch")
        content = recipes.read(recipe, "finetune")
        for switch in internal[1].switches:
            recipes.apply(content, switch)
        assert KiSettings.model_validate(content["model"]).body == body
        assert ("tokenizer" in content) != taken


def test_changes_may_be_for_one_body_alone() -> None:
    given = [
        "train.steps=3",
        "lstm:model.config={hidden: 8}",
        "data.sources=[jsonl:x]",
        "bart:optimizer.lr=1",
    ]
    assert study_ki.changes_of(given, "lstm") == [given[0], "model.config={hidden: 8}", given[2]]
    assert study_ki.changes_of(given, "bart") == [given[0], given[2], "optimizer.lr=1"]


def test_wrong_knowledge_is_refused_before_any_body_is_trained(tmp_path: Path) -> None:
    source = made.write(tmp_path / "data", train=4, valid=2)
    ki.write(tmp_path / "other", ki.TALK[:1])
    for folder, message in (("none", "no annotations here"), ("other", "was not annotated")):
        words = ["--from", "x", "--data", source, "--knowledge", str(tmp_path / folder), "--split", "valid"]
        out = tmp_path / "out"
        with pytest.raises(UserError, match=message):
            CliRunner().invoke(app, ["study", "ki-bodies", *words, "--out", str(out)], catch_exceptions=False)
        assert not out.exists()


def test_a_row_that_is_none_is_one_line() -> None:
    words = ["--from", "x", "--data", "x:y", "--knowledge", "k"]
    for study, option in (("ki-controls", "--rows"), ("ki-bodies", "--bodies")):
        with pytest.raises(UserError, match=r"no 'Cake' -- .*some of: "):
            CliRunner().invoke(app, ["study", study, *words, option, "Cake"], catch_exceptions=False)
