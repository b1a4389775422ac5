"""`membart data` as typed at a shell."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from finetune.dialogue.load import load
from pretrain.errors import UserError
from tools.dialogues import app

BLOCK = "1 your persona: i paint.\n2 hello !\thi , i paint .\n3 nice .\tyes .\n"


@pytest.fixture
def convai2(tmp_path: Path) -> Path:
    path = tmp_path / "valid_self_original_no_cands.txt"
    path.write_text(BLOCK * 3 + "1 no tab\n")
    return path


def _run(*words: str | Path) -> str:
    result = CliRunner().invoke(app, [str(word) for word in words])
    if isinstance(result.exception, UserError):
        raise result.exception
    assert result.exit_code == 0, result.output
    return result.output


def test_inspect_as_json_counts_and_names_rejects(convai2: Path) -> None:
    found = json.loads(_run("inspect", f"convai2:{convai2}", "--json"))
    expected = {
        "dialogues": 3,
        "utterances": 12,
        "persona_sentences": 3,
        "sessions": 3,
        "references": 0,
        "rejected": 1,
    }
    assert {key: found[key] for key in expected} == expected
    assert found["splits"] == {"valid": 3}
    assert (found["mean_turns"], found["max_words"]) == (4.0, 11)
    assert found["rejects"] == [
        {
            "file": str(convai2),
            "line": 10,
            "reason": "no_reply",
            "detail": "no tab after what the partner says",
        }
    ]


def test_inspect_prints_counts_rejects_and_a_sample(convai2: Path) -> None:
    text = _run("inspect", f"convai2:{convai2}", "--show", "1", "--turns", "3")
    for part in (
        "12  utterances",
        f"refused {convai2}:10: no reply",
        "persona of you: i paint.",
        "1 you: hi , i paint .",
    ):
        assert part in text
    assert "... 1 more turns" in text
    assert text.count("hello !") == 1


def test_inspect_of_a_split_that_is_not_there(convai2: Path) -> None:
    with pytest.raises(UserError, match="no test split -- there is: valid"):
        _run("inspect", f"convai2:{convai2}", "--split", "test")


def test_converted_dialogues_are_the_same(convai2: Path, tmp_path: Path) -> None:
    out = tmp_path / "new" / "mine.jsonl"
    assert "3 dialogues, 1 malformed" in _run("convert", f"convai2:{convai2}", out, "--max-rejected", "0.5")
    assert list(load(f"jsonl:{out}")) == list(load(f"convai2:{convai2}", max_rejected=0.5))


def test_make_synthetic_writes_three_splits(tmp_path: Path) -> None:
    out = tmp_path / "made"
    assert "10 train, 1 valid, 1 test dialogues" in _run(
        "make-synthetic", out, "--dialogues", "10", "--far", "11"
    )
    text = _run("inspect", f"synthetic:{out}", "--show", "0")
    assert "12  dialogues" in text
    with pytest.raises(UserError, match="values"):
        _run("make-synthetic", out, "--values", "1")
