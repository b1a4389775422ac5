"""A fine-tune in MLflow answers as in a chat: a history, a memory and a persona for each conversation."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas  # type: ignore[import-untyped]
import pytest
import yaml
from transformers import AutoTokenizer

from finetune import fitted, serving
from finetune.chat import Chat
from pretrain.serving import Conversations
from tests.support import dialogues as made
from tests.support import tiny

TURNS = ["hello, i am anna.", "do you like tea?", "what is my name?"]
Model = Conversations[serving.Talk]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An exported MemBART fine-tune that nobody trained."""
    folder = tmp_path_factory.mktemp("model")
    tokenizer = AutoTokenizer.from_pretrained(made.tokenizer_folder())
    tokenizer.save_pretrained(folder)
    model = tiny.model(vocab_size=len(tokenizer), max_position_embeddings=128, memory_len=16)
    model.save_pretrained(folder)
    content = made.recipe("membart", "jsonl:none", folder, data__persona=True)
    (folder / "recipe.yaml").write_text(yaml.safe_dump(content))
    return folder


@pytest.fixture(scope="module")
def loaded(folder: Path) -> fitted.Fitted:
    return fitted.load(folder)


@pytest.fixture
def model(loaded: fitted.Fitted) -> Model:
    return Conversations(serving.Speaker(loaded).say)


@pytest.fixture
def chat(loaded: fitted.Fitted) -> Callable[..., list[str]]:
    """What a chat of its own answers to some turns."""

    def answers(*turns: str, persona: tuple[str, ...] = ()) -> list[str]:
        talk = Chat(loaded, persona)
        return [talk.say(turn)[0] for turn in turns]

    return answers


def ask(model: Model, *rows: dict[str, Any], **options: Any) -> list[str]:
    return model.predict(pandas.DataFrame(rows), options)


def row(conversation: str, text: str, **more: Any) -> dict[str, Any]:
    return {"conversation": conversation, "text": text, **more}


def test_conversations_are_chats_that_do_not_mix(model: Model, chat: Callable[..., list[str]]) -> None:
    expected, backwards = chat(*TURNS), chat(*reversed(TURNS))
    assert expected[2] != backwards[0], "what was said before must show in the reply"
    mixed = [
        ask(model, row("a", text), row("b", back)) for text, back in zip(TURNS, reversed(TURNS), strict=True)
    ]
    assert [replies[0] for replies in mixed] == expected
    assert [replies[1] for replies in mixed] == backwards
    assert ask(model, row("a", TURNS[2], reset=True)) == backwards[:1]


def test_a_persona_is_heard_where_the_conversation_begins(
    model: Model, chat: Callable[..., list[str]]
) -> None:
    persona = ("i sing in a band.", "i like coffee.")
    expected = chat(*TURNS[:2], persona=persona)
    assert expected != chat(*TURNS[:2])
    found = ask(model, row("a", TURNS[0], persona="\n".join(persona)), row("a", TURNS[1], persona=math.nan))
    assert found == expected


def test_options_are_those_of_the_recipe(model: Model, folder: Path) -> None:
    options = serving.options(folder)
    assert options["beams"] == 2
    assert options["max_new_tokens"] == 8
    asked_for = serving._load_pyfunc(str(folder)).predict(pandas.DataFrame([row("a", TURNS[0])]), options)
    assert asked_for == ask(model, row("b", TURNS[0]))
    [short] = ask(model, row("c", TURNS[0]), max_new_tokens=2)
    assert len(short) < len(ask(model, row("d", TURNS[0]))[0])
    with pytest.raises(ValueError, match="beams"):
        ask(model, row("e", TURNS[0]), beams=0)
