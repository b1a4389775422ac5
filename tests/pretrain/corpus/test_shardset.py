"""Reading shard sets: cheap to open, exact, and loud about damage."""

from __future__ import annotations

import json
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from pretrain.corpus import shardset as module
from pretrain.corpus.build import build
from pretrain.corpus.shardset import ShardSet, Window
from pretrain.corpus.sources import SourceSpec
from pretrain.corpus.tokenizer import Tokenizer, train_tokenizer
from pretrain.errors import ShardError, UserError
from tests.pretrain.corpus.conftest import jsonl, text_of

TEXTS = [text_of(number, 40 + number) for number in range(60)]


@pytest.fixture(scope="module")
def made(tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two sources, several shards, both splits."""
    folder = tmp_path_factory.mktemp("made")
    (folder / "a.jsonl").write_bytes(jsonl([{"text": text} for text in TEXTS[:40]]))
    (folder / "b.jsonl").write_bytes(jsonl([{"text": text} for text in TEXTS[40:]]))
    sources = [SourceSpec("web", (str(folder / "a.jsonl"),)), SourceSpec("books", (str(folder / "b.jsonl"),))]
    build(sources, tokenizer, folder / "set", min_tokens=10, held_out=0.2, shard_tokens=1000, workers=1)
    return folder / "set"


@pytest.fixture
def copy(made: Path, tmp_path: Path) -> Path:
    """A copy that may be damaged."""
    return shutil.copytree(made, tmp_path / "set")


def test_every_document_comes_back_as_its_text(made: Path, tokenizer: Tokenizer) -> None:
    shards = ShardSet.open(made)
    found = {}
    for split in ("train", "validation"):
        for shard in shards.select(split):
            info, index = shards.shards[shard], shards.index(shard)
            assert (info.split, len(index.lengths), int(index.lengths.sum())) == (
                split,
                info.documents,
                info.tokens,
            )
            assert shards.lengths(shard).tolist() == index.lengths.tolist()
            for document in range(info.documents):
                tokens = shards.tokens(shard, document)
                assert tokens.dtype == shards.dtype == np.uint16
                assert len(tokens) == index.lengths[document]
                found[tokenizer.decode(tokens)] = info.source
    assert found == {text: "web" if number < 40 else "books" for number, text in enumerate(TEXTS)}
    assert shards.sources == ("web", "books")
    assert (shards.vocab_size, shards.tokenizer_hash) == (tokenizer.vocab_size, tokenizer.fingerprint)
    assert (shards.window, shards.min_tokens) == (Window(512, 128), 10)
    assert shards.tokenizer().fingerprint == tokenizer.fingerprint


def test_tokens_are_an_aligned_read_only_view(made: Path) -> None:
    tokens = ShardSet.open(made).tokens(0, 1)
    assert not tokens.flags.writeable
    assert not tokens.flags.owndata
    assert tokens.ctypes.data % 64 == 0


def test_opening_reads_manifests_only(copy: Path) -> None:
    for file in copy.glob("*/*.tar"):
        file.unlink()
    assert ShardSet.open(copy).hash == ShardSet.open(copy).hash


def test_views_outlive_the_cache(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CACHED_SHARDS", 2)
    shards = ShardSet.open(made)
    assert len(shards.shards) > 4
    views = [shards.tokens(shard, 0) for shard in range(len(shards.shards))]
    again = [shards.tokens(shard, 0) for shard in range(len(shards.shards))]
    assert all((one == two).all() for one, two in zip(views, again, strict=True))


def test_travels_into_other_processes(made: Path) -> None:
    shards = ShardSet.open(made)
    shards.tokens(0, 0)
    other = pickle.loads(pickle.dumps(shards))
    assert other.hash == shards.hash
    assert other.tokens(0, 0).tolist() == shards.tokens(0, 0).tolist()


def test_several_folders_are_one_set(made: Path, tokenizer: Tokenizer, tmp_path: Path) -> None:
    (tmp_path / "c.jsonl").write_bytes(jsonl([{"text": text_of(99, 50)}]))
    build(
        [SourceSpec("web", (str(tmp_path / "c.jsonl"),))],
        tokenizer,
        tmp_path / "more",
        min_tokens=5,
        workers=1,
    )
    one, two, both = (
        ShardSet.open(made),
        ShardSet.open(tmp_path / "more"),
        ShardSet.open(made, tmp_path / "more"),
    )
    assert both.shards == one.shards + two.shards
    assert both.sources == ("web", "books")
    assert both.min_tokens == 5
    assert both.hash not in (one.hash, two.hash)
    assert tokenizer.decode(both.tokens(len(one.shards), 0)) == text_of(99, 50)


def test_folders_that_do_not_fit(made: Path, tmp_path: Path, tokenizer: Tokenizer) -> None:
    (tmp_path / "c.jsonl").write_bytes(jsonl([{"text": text_of(99, 50)}]))
    source = [SourceSpec("web", (str(tmp_path / "c.jsonl"),))]
    other = train_tokenizer([text_of(1)], 300)
    build(source, other, tmp_path / "other", min_tokens=5, workers=1)
    build(source, tokenizer, tmp_path / "window", min_tokens=5, window=Window(64, 16), workers=1)
    with pytest.raises(UserError, match="another tokenizer"):
        ShardSet.open(made, tmp_path / "other")
    with pytest.raises(UserError, match="window"):
        ShardSet.open(made, tmp_path / "window")
    with pytest.raises(UserError, match="the same shard set"):
        ShardSet.open(made, made)
    with pytest.raises(UserError, match="no shard set given"):
        ShardSet.open()


def test_folders_that_are_no_shard_set(copy: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no shard set here"):
        ShardSet.open(tmp_path / "nowhere")
    manifest = copy / "manifest.json"
    content = json.loads(manifest.read_text())
    cases = {
        "{": "cannot be read",
        "[]": "not that of a shard set",
        json.dumps({**content, "version": 99}): "version 99",
        json.dumps({**content, "min_tokens": 1}): "changed after the build",
    }
    for text, said in cases.items():
        manifest.write_text(text)
        with pytest.raises(UserError, match=said):
            ShardSet.open(copy)
    with pytest.raises(UserError, match="no split 'test'"):
        ShardSet(*_valid(copy, content)).select("test")


def _valid(
    folder: Path, content: dict[str, object]
) -> tuple[tuple[Path, ...], tuple[dict[str, object], ...]]:
    return (folder,), (content,)


def _cut(file: Path, size: int) -> None:
    os.truncate(file, size)


def _flip(file: Path, position: int) -> None:
    data = bytearray(file.read_bytes())
    data[position] ^= 1
    file.write_bytes(data)


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda file, at: file.unlink(), "is missing"),
        (lambda file, at: _cut(file, 0), "unreadable"),
        (lambda file, at: _cut(file, 1), "the file ends at byte 1"),
        (lambda file, at: _cut(file, at + 1), "the file ends at byte"),
        (lambda file, at: _flip(file, at), "do not match their checksum"),
    ],
)
def test_damage_is_named_with_its_place(copy: Path, damage: Callable[[Path, int], None], said: str) -> None:
    shards = ShardSet.open(copy)
    position = int(shards.index(1).offsets[2])
    damage(shards.path(1), position)
    with pytest.raises(ShardError, match=said) as caught:
        shards.tokens(1, 2)
    line = str(caught.value)
    assert shards.shards[1].name in line
    assert "restore the file or build the set again" in line
    if "missing" not in said and "unreadable" not in said:
        assert f"document 2 (id {int(shards.index(1).documents[2]):016x}), byte {position}" in line


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda file: file.unlink(), "has lost its index"),
        (lambda file: _cut(file, file.stat().st_size // 2), "is damaged"),
        (lambda file: _flip(file, file.stat().st_size // 2), "is damaged"),
        (lambda file: shutil.copy(file.with_name("web-000000.index.zst"), file), "not that of the manifest"),
    ],
)
def test_a_bad_index_is_named(copy: Path, damage: Callable[[Path], None], said: str) -> None:
    shards = ShardSet.open(copy)
    damage(copy / "train/web-000001.index.zst")
    with pytest.raises(ShardError, match=said):
        shards.tokens(1, 0)


def test_a_changed_tokenizer_is_noticed(copy: Path) -> None:
    train_tokenizer([text_of(1)], 300).save(copy / "tokenizer")
    with pytest.raises(ShardError, match="not the one the shards were made with"):
        ShardSet.open(copy).tokenizer()
