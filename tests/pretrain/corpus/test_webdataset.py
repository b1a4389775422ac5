"""Shards are plain WebDataset archives: the stock library and plain `tar` read them without us."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import numpy as np
import webdataset

from pretrain.corpus.build import build
from pretrain.corpus.documents import document_id
from pretrain.corpus.shardset import ShardSet
from pretrain.corpus.sources import SourceSpec
from pretrain.corpus.tokenizer import Tokenizer
from tests.pretrain.corpus.conftest import jsonl, text_of


def test_stock_webdataset_reads_the_shards(tokenizer: Tokenizer, tmp_path: Path) -> None:
    texts = [text_of(number, 50) for number in range(30)]
    (tmp_path / "a.jsonl").write_bytes(jsonl([{"text": text} for text in texts]))
    source = SourceSpec("open-web", (str(tmp_path / "a.jsonl"),))
    build([source], tokenizer, tmp_path / "set", min_tokens=1, held_out=0.0, shard_tokens=1500, workers=1)
    shards = ShardSet.open(tmp_path / "set")
    files = [str(shards.path(shard)) for shard in shards.select("train")]
    assert len(files) > 1
    samples = list(webdataset.WebDataset(files, shardshuffle=False).decode())
    assert [tokenizer.decode(sample["npy"]) for sample in samples] == texts
    assert [sample["__key__"] for sample in samples] == [
        f"open-web-{document_id(text.encode()):016x}" for text in texts
    ]
    assert {sample["npy"].dtype for sample in samples} == {np.dtype(np.uint16)}


def test_plain_tar_reads_the_shards(tokenizer: Tokenizer, tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(jsonl([{"text": text_of(1)}]))
    build([SourceSpec("web", (str(tmp_path / "a.jsonl"),))], tokenizer, tmp_path / "set", min_tokens=1,
          held_out=0.0, workers=1)  # fmt: skip
    with tarfile.open(tmp_path / "set/train/web-000000.tar") as archive:
        (member,) = archive.getmembers()
        data = archive.extractfile(member)
        assert data is not None
        np.testing.assert_array_equal(
            np.load(io.BytesIO(data.read())), tokenizer.encode_batch([text_of(1)])[0]
        )
