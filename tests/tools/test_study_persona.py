"""`membart study posterior-collapse|persona-fader|persona-map` from the command line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from pretrain.errors import UserError
from tests.support import dialogues as made
from tests.support import fitted
from tools.cli import app


def test_the_table_of_remedies_is_printed_beside_the_papers(tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("\n\n".join(f"there are {n} cups . i drink tea ." for n in range(20)), encoding="utf-8")
    words = ["study", "posterior-collapse", "--text", str(text), "--out", str(tmp_path / "out")]
    words += ["--updates", "2", "--width", "8", "--latent", "2", "--only", "standard", "--only", "BOW"]
    done = CliRunner().invoke(app, words, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    assert "48.637, 11, 11.165" in done.output
    found = json.loads((tmp_path / "out" / "results.json").read_text(encoding="utf-8"))
    assert set(found["results"]) == {"standard", "BOW"}
    assert found["sentences"] == 32
    assert (tmp_path / "out" / "kl.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "what to learn from"),
        (["--text", "x", "--data", "ptb:x"], "what to learn from"),
        (["--text", "x", "--only", "GAN"], "no row 'GAN'"),
    ],
)
def test_what_cannot_be_studied_is_refused(words: list[str], said: str) -> None:
    with pytest.raises(UserError, match=said):
        CliRunner().invoke(app, ["study", "posterior-collapse", *words], catch_exceptions=False)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """An exported model, and its dialogues."""
    root = tmp_path_factory.mktemp("persona")
    source = made.write(root / "data", train=6, valid=2)
    found = fitted.fitted("persona_cvae", generation__max_new_tokens=4)
    return str(fitted.export(found, root / "model")), source


def test_the_fader_is_swept_from_none_to_all(model: tuple[str, str], tmp_path: Path) -> None:
    folder, source = model
    words = ["study", "persona-fader", folder, "--data", source, "--contexts", "3", "--steps", "2"]
    done = CliRunner().invoke(app, [*words, "--out", str(tmp_path)], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    found = json.loads((tmp_path / "fader.json").read_text(encoding="utf-8"))
    assert [one["level"] for one in found["levels"]] == [0, 0.5, 1]
    assert all(one["contexts"] == 3 for one in found["levels"])
    assert {"length", "shown"} <= found["slopes"].keys()
    assert "p_distance: needs word vectors" in done.output
    assert (tmp_path / "fader.png").read_bytes().startswith(b"\x89PNG")


def test_profiles_are_drawn_by_category(model: tuple[str, str], tmp_path: Path) -> None:
    folder, source = model
    words = ["study", "persona-map", folder, "--data", source, "--out", str(tmp_path)]
    done = CliRunner().invoke(app, words, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    found = json.loads((tmp_path / "map.json").read_text(encoding="utf-8"))
    assert sum(found["categories"].values()) == found["profiles"] > 3
    assert (tmp_path / "map.png").read_bytes().startswith(b"\x89PNG")
