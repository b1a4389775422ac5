"""`membart study dior-...` and `membart bench dior` from the command line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from finetune.families.dior_cvae import DiorSettings
from finetune.metrics import METRICS, papers
from pretrain import recipe as recipes
from pretrain.errors import UserError
from tests.support import dialogues as made
from tests.support import families
from tools import study_dior
from tools.cli import app


def test_ablations_are_those_of_the_paper_and_settings_of_the_family():
    (printed,) = (table for table in papers.tables("dior_cvae") if table.number == "Table 3")
    assert set(study_dior.ABLATIONS) == set(printed.rows)
    for switches in study_dior.ABLATIONS.values():
        content: dict[str, object] = {}
        for switch in switches:
            recipes.apply(content, switch)
        settings = DiorSettings.model_validate(content.get("model", {}))
        assert bool(switches) == (settings != DiorSettings())
    assert {*study_dior.ABLATION_METRICS, *study_dior.DROPOUT_METRICS} <= METRICS.keys()


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """Output of `dior-dropout` at one rate."""
    root = tmp_path_factory.mktemp("study")
    source = made.write(root / "data", train=4, valid=2)
    content = made.recipe("dior_cvae", source, root, **families.TINY["dior_cvae"])
    changes = [
        f"{section}.{key}={json.dumps(value)}"
        for section in ("model", "data", "optimizer", "tracking", "generation")
        for key, value in content[section].items()
        if key != "sources"
    ]
    words = ["--from", "scratch", "--data", source, "--rates", "1.0", "--out", str(root / "out")]
    steps = ["train.steps=1", "checkpoint.every=1", "train.deepspeed=zero0", "model.inverse_sqrt_after=0"]
    done = CliRunner().invoke(
        app,
        ["study", "dior-dropout", *words, f"tokenizer={made.tokenizer_folder()}", *changes, *steps],
        catch_exceptions=False,
    )
    assert done.exit_code == 0, done.output
    return root, done.output


def test_dropout_study_sets_rates_beside_the_papers(study: tuple[Path, str]) -> None:
    root, output = study
    assert "equal_pairs" in output
    assert "1.0, paper" in output
    assert "0.880" in output
    content = json.loads((root / "out" / "dropout.json").read_text(encoding="utf-8"))["1.0"]
    assert all(len(sample["replies"]) == 5 for sample in content["replies"])
    assert content["facts"]["generation"]["replies"] == 5
    assert (root / "out" / "dropout.png").read_bytes().startswith(b"\x89PNG")


def test_a_legend_of_two_axes_covers_neither_of_them() -> None:
    columns = {
        "0.1": {"equal_pairs": 30.0, "similarity": 0.9},
        "0.7": {"equal_pairs": 12.0, "similarity": 0.85},
        "0.7, paper": {"similarity": 0.86},
    }
    curves = {"dior_cvae": [30.0, 31.5], "without-diffusion": [33.0, 36.0]}
    for figure in (study_dior.draw_dropout(columns), study_dior.draw_references(curves, [1.0, 0.8])):
        figure.draw_without_rendering()
        (legend,) = figure.legends
        box = legend.get_window_extent()
        assert len(legend.get_texts()) == 3
        assert figure.bbox.contains(*box.min)
        assert figure.bbox.contains(*box.max)
        assert len(figure.axes) == 2
        for axes in figure.axes:
            drawn = axes.get_tightbbox()
            assert drawn is not None
            assert not box.overlaps(drawn)


def test_trained_models_are_looked_at(study: tuple[Path, str]) -> None:
    root, _ = study
    run, source = str(root / "out" / "memory-dropout-1.0"), f"jsonl:{root / 'data'}"
    shown = CliRunner().invoke(
        app, ["study", "dior-steps", run, "--data", source, "--contexts", "1", "--steps", "1,10"]
    )
    assert "step   10" in shown.output
    some = CliRunner().invoke(app, ["study", "dior-steps", run, "--data", source, "--contexts", "1"])
    assert [line.split()[1] for line in some.output.splitlines() if line.startswith("step")] == [
        *("1", "2", "4", "6", "8", "10"),
    ]
    told = CliRunner().invoke(
        app,
        [
            *("study", "dior-references", run, run, "--data", source, "--contexts", "2", "--most", "1"),
            *("--samples", "2", "--out", str(root / "references")),
        ],
    )
    assert told.exit_code == 0, told.output
    found = json.loads((root / "references" / "references.json").read_text(encoding="utf-8"))
    assert list(found["perplexity"]) == ["memory-dropout-1.0", run]
    assert len(found["perplexity"]["memory-dropout-1.0"]) == 1


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--rates", "2"], "--rates: '2' is no list of numbers from 0 to 1"),
        (["--rates", "nan"], "--rates: 'nan' is no list"),
        (["--rates", " ,"], "--rates: ' ,' is no list"),
        (["--rates", "a"], "--rates: 'a' is no list"),
        (["--split", "cake"], "no cake split"),
        (["cake=1"], "unknown recipe key 'cake'"),
        (["--from", "cake"], "cake: no such backbone"),
    ],
)
def test_what_cannot_be_studied_is_refused_before_training(
    tmp_path: Path, words: list[str], message: str
) -> None:
    source, out = made.write(tmp_path / "data", train=4, valid=2), tmp_path / "out"
    words = ["--from", "scratch", "--data", source, "--split", "valid", "--out", str(out), *words]
    with pytest.raises(UserError, match=message):
        CliRunner().invoke(app, ["study", "dior-dropout", *words], catch_exceptions=False)
    assert not out.exists()


def test_steps_that_are_none_and_places_that_cannot_be_are_refused(
    study: tuple[Path, str], tmp_path: Path
) -> None:
    root, _ = study
    run, source = str(root / "out" / "memory-dropout-1.0"), f"jsonl:{root / 'data'}"
    for steps in ("0", "11", "1.5", "", "nan"):
        words = ["study", "dior-steps", run, "--data", source, "--steps", steps]
        with pytest.raises(UserError, match="is no list of whole numbers from 1 to 10"):
            CliRunner().invoke(app, words, catch_exceptions=False)
    (tmp_path / "file").write_text("x")
    words = ["study", "dior-references", "none", "--data", source, "--out", str(tmp_path / "file" / "out")]
    with pytest.raises(UserError, match="a file, not a folder"):
        CliRunner().invoke(app, words, catch_exceptions=False)


def test_the_benchmark_knows_its_devices():
    for device, message in (("tpu", "no device 'tpu'"), ("cuda:99", "CUDA device|no device 'cuda:99'")):
        with pytest.raises(UserError, match=message):
            CliRunner().invoke(
                app, ["bench", "dior", "--shape", "small", "--device", device], catch_exceptions=False
            )


def test_the_benchmark_compares_with_the_plain_decoder():
    words = ["bench", "dior", "--shape", "small", "--tokens", "3", "--context", "8", "--rounds", "1"]
    done = CliRunner().invoke(app, [*words, "--steps", "2", "--beams", "1", "--json"])
    writers = json.loads(done.output)["writers"]
    assert [writer["name"] for writer in writers][:2] == ["BART", "Dior-CVAE"]
    assert writers[0]["ratio"] == 1
    assert all(writer["tokens_per_second"] > 0 for writer in writers)
