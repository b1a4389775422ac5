"""Predictions as JSON lines."""

from __future__ import annotations

from pathlib import Path

import pytest

from finetune.metrics.prediction import Prediction, read_predictions, write_predictions
from pretrain.errors import UserError

FULL = Prediction(
    dialogue="d1",
    turn=3,
    context=("hello\u2028there", "hi"),
    replies=("größe", "two"),
    references=("one", "uno"),
    persona=("i am tall .",),
    partner_persona=("i like cats .",),
    knowledge=("a cat is a small animal", "dogs bark"),
    chosen=1,
    selected=-1,
    entities=("cat",),
    session=4,
)


def test_what_is_written_is_read_back(tmp_path: Path):
    path = tmp_path / "predictions.jsonl"
    plain = Prediction("d2", 0, (), ("a",), ())
    write_predictions(path, [FULL, plain])
    assert read_predictions(path) == [FULL, plain]
    assert path.read_bytes().count(b"\n") == 2


def test_optional_fields_may_be_missing(tmp_path: Path):
    path = tmp_path / "p.jsonl"
    path.write_text('{"dialogue": "d", "turn": 1, "context": [], "replies": ["x"], "references": []}\n\n')
    assert read_predictions(path) == [Prediction("d", 1, (), ("x",), ())]


@pytest.mark.parametrize(
    ("line", "what"),
    [
        ("{", "Invalid JSON"),
        ("[]", "object"),
        ('{"dialogue": "d", "turn": 1, "context": "abc", "replies": [], "references": []}', "context"),
        ('{"dialogue": "d", "turn": 1, "context": [], "replies": [], "references": [], "x": 1}', "x"),
        (
            '{"dialogue": "d", "turn": 1, "context": [], "replies": [], "references": [], "chosen": 0}',
            "chosen is 0 of 0",
        ),
    ],
)
def test_a_line_that_is_no_prediction_is_named(tmp_path: Path, line: str, what: str):
    path = tmp_path / "p.jsonl"
    write_predictions(path, [FULL])
    with path.open("a") as file:
        file.write(line)
    with pytest.raises(UserError, match=what) as caught:
        read_predictions(path)
    assert caught.value.where == f"{path}:2"


def test_a_missing_file_is_named(tmp_path: Path):
    with pytest.raises(UserError, match=r"none\.jsonl"):
        read_predictions(tmp_path / "none.jsonl")


def test_the_first_reference_alone():
    assert FULL.first_reference().references == ("one",)
