"""A model in MLflow: logged with its run, registered, and answering with the memory of each conversation."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas  # type: ignore[import-untyped]
import pytest
from torch import Tensor
from transformers import AutoTokenizer

from pretrain.errors import UserError
from pretrain.export.registry import Registered, register
from pretrain.model import MemBartForConditionalGeneration
from pretrain.serving import Conversations, Writer

TURNS = ["ka dan lo vel.", "mi mor nu sin ka vel lo gar.", "so gar ra mor."]
SHORT = {"max_new_tokens": 8}


def row(conversation: str, text: str, **more: Any) -> dict[str, Any]:
    return {"conversation": conversation, "text": text, **more}


def ask(model: Conversations[Tensor], *rows: dict[str, Any]) -> list[str]:
    return model.predict(pandas.DataFrame(rows), SHORT)


@pytest.fixture(scope="module")
def writer(exported: Path) -> Writer:
    model = MemBartForConditionalGeneration.from_pretrained(exported)
    return Writer(model, AutoTokenizer.from_pretrained(exported))


@pytest.fixture
def conversations(writer: Writer) -> Conversations[Tensor]:
    return Conversations(writer.say)


@pytest.fixture(scope="module")
def registered(exported: Path, trained: Path) -> Iterator[Registered]:
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        yield register(exported, trained, name="tiny")


def test_two_conversations_do_not_mix_and_one_can_begin_anew(conversations: Conversations[Tensor]) -> None:
    alone = [ask(conversations, row("alone", text))[0] for text in TURNS]
    others = [ask(conversations, row("other", text))[0] for text in reversed(TURNS)]
    mixed = [
        ask(conversations, row("a", text), row("b", back))
        for text, back in zip(TURNS, reversed(TURNS), strict=True)
    ]
    assert [replies[0] for replies in mixed] == alone
    assert [replies[1] for replies in mixed] == others
    fresh = ask(conversations, row("new", TURNS[2]))
    assert fresh != [alone[2]], "a reply must depend on what was said before"
    assert ask(conversations, row("a", TURNS[2], reset=True)) == fresh
    assert (
        ask(conversations, row("a", TURNS[0], reset=True), row("a", TURNS[1], reset=float("nan")))
        == alone[:2]
    )


def test_the_longest_silent_conversation_is_forgotten(writer: Writer) -> None:
    many, few = Conversations(writer.say), Conversations(writer.say, limit=2)
    whole = [ask(many, row("a", text))[0] for text in TURNS]
    first = ask(few, row("a", TURNS[0]), row("b", TURNS[0]), row("a", TURNS[1]))
    assert first == [whole[0], whole[0], whole[1]]
    ask(few, row("c", TURNS[0]))
    assert ask(few, row("a", TURNS[2])) == whole[2:]
    assert ask(few, row("b", TURNS[0])) == whole[:1], "b was forgotten: the same text, the same reply"


def test_a_text_longer_than_the_positions_is_read_in_pieces(
    writer: Writer, conversations: Conversations[Tensor]
) -> None:
    most = writer.model.config.max_position_embeddings
    long = " ".join(TURNS * most)
    pieces = writer.pieces(long)
    assert all(len(piece) <= most for piece in pieces)
    ids = writer.tokenizer(long, add_special_tokens=False)["input_ids"]
    assert [token for piece in pieces for token in piece[1:-1]] == ids
    assert writer.pieces("") == [[0, 2]]
    last = writer.tokenizer.decode(pieces[-1][1:-1])
    assert ask(conversations, row("long", long)) != ask(conversations, row("last piece alone", last))
    assert conversations.predict(pandas.DataFrame([row("x", "ka")]), {"max_new_tokens": 10 * most})


def test_it_is_logged_with_its_run(registered: Registered, trained: Path) -> None:
    from mlflow import MlflowClient

    assert registered.uri == "models:/tiny/1"
    client = MlflowClient(registered.tracking_uri)
    run = client.get_run(registered.run_id)
    assert run.info.run_name == "run"
    assert run.info.status == "FINISHED"
    [output] = run.outputs.model_outputs
    assert output.step == 2
    model = client.get_logged_model(output.model_id)
    assert model.tags["update"] == "2"
    figures = {metric.key: metric.value for metric in model.metrics}
    assert figures["validation/perplexity"] == run.data.metrics["validation/perplexity"]
    assert len(client.get_metric_history(run.info.run_id, "validation/perplexity")) == 1
    version = client.get_model_version("tiny", "1")
    assert version.run_id == run.info.run_id
    files = list(Path(version.source.removeprefix("file://")).rglob("*"))
    assert files
    assert not [file for file in files if file.suffix in (".pkl", ".pickle", ".bin", ".pt")]
    assert "MLFLOW_TRACKING_URI" not in os.environ


def test_a_name_that_mlflow_refuses_is_one_line(
    exported: Path, trained: Path, registered: Registered
) -> None:
    with pytest.raises(UserError, match=r"the model is not registered: .*name"):
        register(exported, trained, name="a:b/c", tracking_uri=registered.tracking_uri)


def test_pyfunc_loads_it_anywhere_and_it_remembers(
    registered: Registered, conversations: Conversations[Tensor], tmp_path: Path
) -> None:
    calls = [
        [row("a", TURNS[0]), row("b", TURNS[2]), row("a", TURNS[1])],
        [row("a", TURNS[2]), row("b", TURNS[1])],
        [row("a", TURNS[2], reset=True)],
    ]
    variables = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, str(Path(__file__).with_name("served.py")), registered.uri, json.dumps(calls)],
        env={**variables, "MLFLOW_TRACKING_URI": registered.tracking_uri, "OMP_NUM_THREADS": "1"},
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout.splitlines()[-1])
    assert "mlartifacts" in said["code"], "the model brings its own code"
    expected = [
        ask(conversations, *({**row, "conversation": f"pyfunc {row['conversation']}"} for row in call))
        for call in calls
    ]
    assert said["replies"] == expected
    assert said["replies"][2] != said["replies"][1][:1]
