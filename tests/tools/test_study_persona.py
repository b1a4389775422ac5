"""`membart study posterior-collapse` from the command line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from pretrain.errors import UserError
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
