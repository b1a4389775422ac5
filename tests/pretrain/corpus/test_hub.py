"""`hf://`: a data set folder on this disk, streamed by the `datasets` library."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from pretrain.corpus.sources import SourceSpec, expand
from pretrain.errors import UserError
from tests.pretrain.corpus.conftest import jsonl, text_of
from tests.pretrain.corpus.test_formats import read

TEXTS = [text_of(number, 30) for number in range(50)]


@pytest.fixture
def folder(write: Callable[[str, bytes], Path], tmp_path: Path) -> Path:
    write("set/train.jsonl", jsonl([{"text": text, "deep": {"body": [text]}} for text in TEXTS]))
    write("set/test.jsonl", jsonl([{"text": "held out", "deep": {"body": []}}, {"text": None, "deep": None}]))
    return tmp_path / "set"


def test_rows_of_a_split(folder: Path) -> None:
    assert read(f"hf://{folder}") == (TEXTS, {"rows": 1}, [])
    assert read(f"hf://{folder}:default:train")[0] == TEXTS
    assert read(f"hf://{folder}", text_field="deep.body")[0] == TEXTS


def test_bad_rows_are_told_by_number(folder: Path) -> None:
    texts, _, rejects = read(f"hf://{folder}::test")
    assert texts == ["held out"]
    assert [(r.reason, r.line) for r in rejects] == [("missing_field", 2)]


@pytest.mark.parametrize("address", ["{}/missing", "{}:default:nosplit", "{}:noconfig:train"])
def test_what_does_not_exist(folder: Path, address: str) -> None:
    with pytest.raises(UserError, match="cannot be opened"):
        expand(SourceSpec("x", ("hf://" + address.format(folder),)))


def test_a_data_set_that_breaks_half_way(write: Callable[[str, bytes], Path], tmp_path: Path) -> None:
    write("broken/train.jsonl", jsonl([{"text": "x" * 1000}] * 40_000) + b'{"text": "cut')
    with pytest.raises(UserError, match="reading stopped after row"):
        read(f"hf://{tmp_path / 'broken'}")
