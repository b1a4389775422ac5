"""`verify`: silent about a good set, exact about a damaged one."""

from __future__ import annotations

import io
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import zstandard

from pretrain.corpus.build import build
from pretrain.corpus.shardset import INDEX_DTYPE, ShardSet, manifest_hash, pack_index
from pretrain.corpus.sources import SourceSpec
from pretrain.corpus.tokenizer import Tokenizer, train_tokenizer
from pretrain.corpus.verify import Problem, verify
from tests.pretrain.corpus.conftest import jsonl, text_of


@pytest.fixture(scope="module")
def made(tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("made")
    (folder / "a.jsonl").write_bytes(jsonl([{"text": text_of(number, 60)} for number in range(80)]))
    source = SourceSpec("web", (str(folder / "a.jsonl"),))
    build([source], tokenizer, folder / "set", min_tokens=10, held_out=0.2, shard_tokens=2000, workers=1)
    return folder / "set"


@pytest.fixture
def copy(made: Path, tmp_path: Path) -> Path:
    return shutil.copytree(made, tmp_path / "set")


def problems(folder: Path) -> list[str]:
    return [str(finding) for finding in verify(ShardSet.open(folder)) if isinstance(finding, Problem)]


def test_a_good_set(made: Path) -> None:
    assert problems(made) == []
    assert list(verify(ShardSet.open(made))) == list(ShardSet.open(made).shards)


def _flip(file: Path, position: int) -> None:
    data = bytearray(file.read_bytes())
    data[position] ^= 1
    file.write_bytes(data)


@pytest.mark.parametrize(
    ("damage", "what"),
    [
        (lambda file, at: _flip(file, at), "its tokens do not match their checksum"),
        (lambda file, at: _flip(file, at - 640), "its header is damaged"),
        (lambda file, at: _flip(file, at - 100), "its header is damaged"),
        (lambda file, at: os.truncate(file, at + 1), "the file ends before or inside it"),
    ],
)
def test_the_exact_document_is_named(copy: Path, damage: Callable[[Path, int], None], what: str) -> None:
    shards = ShardSet.open(copy)
    index = shards.index(1)
    damage(shards.path(1), int(index.offsets[3]))
    found = problems(copy)
    place = (
        f"{shards.shards[1].name}, document 3 (id {int(index.documents[3]):016x}, byte {index.offsets[3]})"
    )
    assert f"{place}: {what}" in found
    assert not [
        line for line in found if ", document 2 " in line or not line.startswith(shards.shards[1].name)
    ]


def test_a_truncated_shard_names_the_first_documents_and_counts_the_rest(copy: Path) -> None:
    shards = ShardSet.open(copy)
    documents = shards.shards[0].documents
    os.truncate(shards.path(0), 0)
    found = problems(copy)
    assert found[0].endswith(f"0 bytes instead of {shards.shards[0].bytes}")
    assert len(found) == 1 + min(10, documents) + (documents > 10)
    assert documents <= 10 or found[-1].endswith(f"{documents - 10} more broken documents")


@pytest.mark.parametrize("where", [-1, -1000])
def test_the_end_of_an_archive(copy: Path, where: int) -> None:
    file = ShardSet.open(copy).path(0)
    _flip(file, file.stat().st_size + where)
    assert [line for line in problems(copy) if "the end of the archive is damaged" in line]


def test_padding_behind_a_document(copy: Path) -> None:
    shards = ShardSet.open(copy)
    end = int(shards.index(0).offsets[0]) + 2 * int(shards.index(0).lengths[0])
    assert end % 512
    _flip(shards.path(0), end)
    assert "the padding behind it is damaged" in problems(copy)[0]


def test_missing_files_and_strangers(copy: Path) -> None:
    (copy / "train/web-000000.tar").unlink()
    (copy / "train/web-000001.index.zst").unlink()
    (copy / "train/web-000077.tar").write_bytes(b"")
    found = problems(copy)
    assert [line for line in found if line.startswith("train/web-000000: the file is missing")]
    assert [line for line in found if line.startswith("train/web-000001:") and "has lost its index" in line]
    assert [line for line in found if "web-000077.tar: is not part of this set" in line]
    assert len(found) == 3


def test_another_tokenizer(copy: Path) -> None:
    train_tokenizer([text_of(1)], 300).save(copy / "tokenizer")
    assert [line for line in problems(copy) if line.endswith("is not the tokenizer that made the shards")]
    shutil.rmtree(copy / "tokenizer")
    assert [line for line in problems(copy) if "no such tokenizer folder" in line]


def _change(folder: Path, change: Callable[[dict[str, object]], None]) -> None:
    file = folder / "manifest.json"
    manifest = json.loads(file.read_text())
    change(manifest)
    file.write_text(json.dumps({**manifest, "hash": manifest_hash(manifest)}))


def test_counts_that_do_not_add_up(copy: Path) -> None:
    _change(copy, lambda manifest: manifest["sources"]["web"].update(tokens=7))  # type: ignore[attr-defined,index]
    assert [line for line in problems(copy) if "source web: 7 tokens, its shards hold" in line]


def test_documents_in_the_wrong_split(copy: Path) -> None:
    _change(copy, lambda manifest: manifest.update(held_out=0.9))
    assert [line for line in problems(copy) if line.endswith("belongs to the other split")]


def test_tokens_outside_the_vocabulary(copy: Path) -> None:
    """A file that is whole, with an index that fits, of another vocabulary."""
    _change(copy, lambda manifest: manifest["tokenizer"].update(vocab_size=100))  # type: ignore[attr-defined]
    assert [line for line in problems(copy) if "a token that the vocabulary does not have" in line]


def test_an_index_that_points_elsewhere(copy: Path) -> None:
    file = copy / "train/web-000000.index.zst"
    rows = np.load(io.BytesIO(zstandard.ZstdDecompressor().decompress(file.read_bytes())))
    assert rows.dtype == INDEX_DTYPE
    rows["offset"][2] += 64
    file.write_bytes(pack_index(rows))
    assert [line for line in problems(copy) if "document 2 " in line and "the index places it" in line]
