"""A model of the hub that cannot be had is one line at once; one in the cache needs no hub."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from huggingface_hub import constants

from finetune import backbone
from pretrain import hub
from pretrain.errors import CheckpointError
from pretrain.importing import import_model
from tests.support import tiny

NAME = "someone/some-model"


@pytest.fixture
def cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Path]:
    """An empty cache, and a hub at whose port nobody listens."""
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{nobody.getsockname()[1]}")
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(hub, "ATTEMPTS", 1)
        hub.out_of_reach.cache_clear()
        yield tmp_path / "cache"
        hub.out_of_reach.cache_clear()


def asked(start: str) -> None:
    """The ways to a model of the hub."""
    if start == "finetune":
        backbone.find(f"hf:{NAME}")
    elif start == "tokenizer":
        backbone.tokenizer_of(NAME)
    else:
        import_model(NAME, Path("ours"))


@pytest.mark.parametrize("start", ["finetune", "tokenizer", "import"])
def test_a_hub_out_of_reach_is_one_line_that_says_so(cache: Path, start: str) -> None:
    with pytest.raises(CheckpointError) as refused:
        asked(start)
    said = str(refused.value)
    assert said.startswith(
        f"{NAME}: no such folder, not in the hub's cache, and the hub is out of reach (http:"
    )
    assert f"into {cache}" in said
    assert "\n" not in said


@pytest.mark.parametrize("path", ["/nowhere", "./nowhere", "~/nowhere", "no/such/folder"])
def test_a_path_that_does_not_exist_is_no_name_of_the_hub(cache: Path, tmp_path: Path, path: str) -> None:
    for ask in (lambda: backbone.find(f"hf:{path}"), lambda: import_model(path, tmp_path / "ours")):
        with pytest.raises(CheckpointError) as refused:
            ask()
        assert str(refused.value) == f"{path}: no such folder -- name a model folder, or one of the hub"


def test_forbidden_to_ask_the_hub_is_said_so(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(CheckpointError, match=r"out of reach \(HF_HUB_OFFLINE is set\)"):
        hub.check(NAME)


def test_a_model_in_the_cache_is_taken_from_it_without_the_hub(cache: Path, tmp_path: Path) -> None:
    home = cache / "models--someone--some-model"
    (home / "refs").mkdir(parents=True)
    (home / "refs" / "main").write_text("0" * 40)
    tiny.model(vocab_size=280).save_pretrained(home / "snapshots" / ("0" * 40))
    made = import_model(NAME, tmp_path / "ours")
    assert made.no_tokenizer
    assert {origin.source for origin in made.weights.tensors} == {o.name for o in made.weights.tensors}
    with pytest.raises(CheckpointError, match="out of reach"):
        hub.check("someone/another-model")


def test_a_hub_that_answers_anything_is_left_to_the_library(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from http.server import BaseHTTPRequestHandler, HTTPServer
    from threading import Thread

    class Busy(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self.send_error(503)

        def log_message(self, *_: object) -> None: ...

    with HTTPServer(("127.0.0.1", 0), Busy) as server:
        Thread(target=server.handle_request, daemon=True).start()
        monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{server.server_port}")
        hub.check(NAME)


def test_a_folder_is_not_looked_for_on_the_hub(cache: Path, tmp_path: Path) -> None:
    hub.check(str(tmp_path))
