"""`membart evaluate` and `membart generate`: what is written and what is refused; the console's memory."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from finetune.chat import Chat
from pretrain.errors import UserError
from tests.support import dialogues as made
from tests.support.fitted import export, fitted
from tools.finetuning import describe_memory, evaluate, generate


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An exported MemBART."""
    return export(fitted(), tmp_path_factory.mktemp("exported") / "model")


def test_without_replies_only_perplexities_are_found(model: Path, tmp_path: Path) -> None:
    source = made.write(tmp_path / "data")
    evaluate(model, data=[source], out=tmp_path / "found", dialogues=2, replies=False)
    found = json.loads((tmp_path / "found" / "evaluation.json").read_text(encoding="utf-8"))
    assert found["figures"]["perplexity"] > 1
    assert found["metrics"] == {}
    assert (tmp_path / "found" / "predictions.jsonl").read_text(encoding="utf-8") == ""


def test_replies_go_to_a_new_file_that_is_whole(model: Path, tmp_path: Path) -> None:
    source, out = made.write(tmp_path / "data"), tmp_path / "new" / "replies.jsonl"
    generate(model, ["generation.max_new_tokens=2"], source=f"{source}/test.jsonl", out=out)
    lines = out.read_text(encoding="utf-8").splitlines()
    assert all(json.loads(line)["replies"] for line in lines)
    assert [path.name for path in out.parent.iterdir()] == ["replies.jsonl"]
    with pytest.raises(UserError, match="the output exists already"):
        generate(model, source=source, out=out)


def test_a_place_that_cannot_be_written_is_refused_before_the_work(model: Path, tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("")
    for out in (file, file / "below"):
        with pytest.raises(UserError, match="a file, not a folder"):
            evaluate(model, data=["jsonl:none"], out=out)
    with pytest.raises(UserError, match="a file, not a folder"):
        generate(model, source="jsonl:none", out=file / "replies.jsonl")


def test_the_console_says_how_much_of_a_conversation_only_memory_holds() -> None:
    chat = Chat(fitted())
    assert describe_memory(chat) == (
        "0 turns, 0 of them outside the context window of 24 tokens; 4 slots, norms 0.00 to 0.00"
    )
    for text in ("hello, i am anna.", "do you like tea?", "what is my name?"):
        chat.say(text)
    out = chat.window().turns.count("none")
    assert out > 0
    assert describe_memory(chat).startswith(f"6 turns, {out} of them outside the context window of 24 tokens")
    assert describe_memory(Chat(fitted(data__memory="reset"))) == "no memory is carried (data.memory=reset)"
