"""`membart export` and `membart import` as a user types them; what they make, `tests/pretrain` tests."""

from __future__ import annotations

from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from pretrain.errors import UserError
from pretrain.export import Kind
from tests.support import tiny
from tools import export

app = typer.Typer()
app.command()(export.export)
app.command("import")(export.import_)


def run(*words: object) -> str:
    result = CliRunner().invoke(app, [str(word) for word in words])
    if isinstance(result.exception, UserError):
        raise result.exception
    assert result.exit_code == 0, result.output
    return result.stdout


def test_import_prints_where_the_tensors_came_from(tmp_path: Path) -> None:
    tiny.model().save_pretrained(tmp_path / "source")
    printed = run("import", tmp_path / "source", tmp_path / "model", "memory_len=6", "--dtype", "bf16")
    assert "every tensor equal" in printed
    assert f"weights from {tmp_path / 'source'}: 131 tensors" in printed
    assert "taken   model.encoder.memory_bias: resized from 4 slots" in printed
    assert "no tokenizer: " in printed
    assert (tmp_path / "model" / "model.safetensors").is_file()


def test_a_fine_tune_is_known_by_its_recipe_and_served_as_a_dialogue(tmp_path: Path) -> None:
    folder = tmp_path / "checkpoints" / "step-00000001"
    folder.mkdir(parents=True)
    (folder / "COMMIT.json").write_text('{"files": {}}')
    (folder / "recipe.yaml").write_text("family: membart\n")
    assert export._found(tmp_path) == (tmp_path, Kind(server="finetune.serving"))
    (folder / "recipe.yaml").write_text("name: pretraining\n")
    assert export._found(tmp_path) == (tmp_path, Kind())


@pytest.mark.parametrize("form", ["folder", "mlflow", "bart"])
def test_what_is_no_run_is_refused_and_leaves_nothing(tmp_path: Path, form: str) -> None:
    with pytest.raises(UserError, match="no committed checkpoint here"):
        run("export", tmp_path, tmp_path / "model", "--to", form)
    assert list(tmp_path.iterdir()) == []


def test_options_of_mlflow_need_mlflow(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--name and --tracking-uri belong to --to mlflow"):
        run("export", tmp_path, tmp_path / "model", "--name", "mine")
