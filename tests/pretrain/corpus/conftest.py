"""Raw corpora in small: a tokenizer trained on made-up English, and documents of it."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path

import pytest

from pretrain.corpus.tokenizer import Tokenizer, train_tokenizer

WORDS = [
    "the",
    "old",
    "captain",
    "walked",
    "along",
    "a",
    "quiet",
    "harbour",
    "while",
    "grey",
    "gulls",
    "cried",
    "over",
    "wet",
    "stones",
    "and",
    "somebody",
    "sang",
    "about",
    "home",
    "letters",
    "rain",
    "silver",
    "lamps",
    "bread",
    "winter",
    "doors",
    "music",
    "ships",
    "islands",
    "morning",
    "evening",
    "laughter",
]


def text_of(seed: int, words: int = 120) -> str:
    """English-looking sentences, the same for the same seed."""
    dice = random.Random(seed)
    sentences = []
    while words > 0:
        length = min(words, dice.randint(4, 12))
        sentences.append(" ".join(dice.choices(WORDS, k=length)).capitalize() + ".")
        words -= length
    return " ".join(sentences)


def jsonl(records: list[object]) -> bytes:
    """Records as JSON lines."""
    return b"".join(json.dumps(record).encode() + b"\n" for record in records)


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    """Byte-level BPE of 420 tokens."""
    return train_tokenizer([text_of(seed) for seed in range(40)], 420)


@pytest.fixture(scope="session")
def tokenizer_folder(tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same tokenizer as files."""
    folder = tmp_path_factory.mktemp("tokenizer")
    tokenizer.save(folder)
    return folder


@pytest.fixture
def write(tmp_path: Path) -> Callable[[str, bytes], Path]:
    """Makes a file under the test's folder."""

    def make(name: str, data: bytes) -> Path:
        file = tmp_path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(data)
        return file

    return make
