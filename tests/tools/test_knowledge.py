"""`membart ki`: the whole way by commands, and what a user reads when something is wrong."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from typer.testing import CliRunner

from finetune.dialogue import jsonl
from finetune.dialogue.dialogue import Dialogue, Turn
from finetune.knowledge.annotate import annotate
from pretrain.errors import UserError
from tests.support import knowledge
from tools.knowledge import app


def membart_ki(*arguments: object) -> str:
    result = CliRunner().invoke(app, [str(each) for each in arguments], catch_exceptions=True)
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == 0, result.output
    return result.output


@pytest.fixture
def data(tmp_path: Path) -> str:
    jsonl.write(tmp_path / "talk.jsonl", knowledge.dialogues()[:4])
    return f"jsonl:{tmp_path / 'talk.jsonl'}"


def test_from_an_encyclopedia_to_a_picture(tmp_path: Path, data: str) -> None:
    base, retriever, index, out = (tmp_path / name for name in ("base", "retriever", "index", "annotations"))
    told = membart_ki("base", knowledge.table(tmp_path / "wiki.tsv"), "--out", base)
    assert "64 items of 64 articles" in told
    settings = [*knowledge.SETTINGS, "steps=4"]
    model = knowledge.model_folder()
    told = membart_ki("train-retriever", "--base", base, "--from", model, "--out", retriever, *settings)
    assert f"membart ki index --base {base} --retriever {retriever}" in told
    told = membart_ki("index", "--base", base, "--retriever", retriever, "--out", index, "--workers", 1)
    assert "64 items, Flat" in told
    assert "recall@1 1.0000" in told
    told = membart_ki("annotate", "--index", index, "--data", data, "--out", out, "--pos", "--workers", 1)
    assert re.search(r"12 utterances, \d+ of \d+ words \(\d+\.\d%\) with one of \d+ items, 12 by title", told)
    told = membart_ki("inspect", out, "--data", data, "--control", "all")
    assert all(name in told for name in ("none", "random", "sentence", "factual", "linguistic"))
    assert "title  baban: A baban is a bird of the north." in told
    png = tmp_path / "figure.png"
    where = ("--annotations", out, "--data", data, "--word", "north", "--out", png)
    told = membart_ki("picture", model, *where)
    assert re.search(r"north: A \w+ is a \w+ of the \w+\.", told)
    assert png.stat().st_size > 10_000


def test_released_items_need_no_index(tmp_path: Path) -> None:
    said = Turn(0, "jalepenos are hot", pieces=("jale", "##penos", "are", "hot"), vokens=(5, 6, 0, 7))
    jsonl.write(tmp_path / "wow.jsonl", [Dialogue("a", (said, Turn(1, "yes")))])
    told = membart_ki(
        "annotate", "--released", "--data", f"jsonl:{tmp_path / 'wow.jsonl'}", "--out", tmp_path / "a"
    )
    assert "keys are random unit vectors" in told
    assert "1 utterances, 3 of 4 words (75.0%) with one of 3 items" in told


def test_mistakes_are_one_line(tmp_path: Path, data: str) -> None:
    with pytest.raises(UserError, match="give either --index or --released"):
        membart_ki("annotate", "--data", data, "--out", tmp_path / "a")
    with pytest.raises(UserError, match=r"no knowledge index here -- make it with `membart ki index"):
        membart_ki("annotate", "--index", tmp_path, "--data", data, "--out", tmp_path / "a")
    with pytest.raises(UserError, match="no knowledge base here"):
        membart_ki("train-retriever", "--base", tmp_path, "--from", "x", "--out", tmp_path / "r")
    with pytest.raises(UserError, match="no annotations here"):
        membart_ki("inspect", tmp_path / "a", "--data", data)


def test_other_dialogues_are_refused_before_anything_is_printed(tmp_path: Path, data: str) -> None:
    jsonl.write(tmp_path / "other.jsonl", knowledge.dialogues()[4:8])
    annotate(knowledge.index(), knowledge.dialogues()[:4], tmp_path / "known")
    result = CliRunner().invoke(
        app, ["inspect", str(tmp_path / "known"), "--data", f"jsonl:{tmp_path / 'other.jsonl'}"]
    )
    assert isinstance(result.exception, UserError)
    assert "turn 0 was not annotated" in str(result.exception)
    assert not result.output


def test_a_picture_that_cannot_be_written_is_refused_first(tmp_path: Path, data: str) -> None:
    (tmp_path / "there.png").write_bytes(b"mine")
    for place, message in (("there.png", "exists already"), ("there.png/p.png", "a file, not a folder")):
        out = tmp_path / place
        with pytest.raises(UserError, match=message):
            membart_ki("picture", "m", "--annotations", "k", "--data", data, "--word", "w", "--out", out)
    assert (tmp_path / "there.png").read_bytes() == b"mine"
