"""Comparing a shard set with its manifest, byte by byte, naming every broken shard and document."""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pretrain.corpus.documents import is_held_out
from pretrain.corpus.shardset import MANIFEST, ShardIndex, ShardInfo, ShardSet, index_name
from pretrain.corpus.shardwriter import BLOCK, END_OF_TAR, member_head
from pretrain.corpus.tokenizer import TOKENIZER_FOLDER, load_tokenizer
from pretrain.corpus.workshop import REJECTS
from pretrain.errors import UserError

LISTED = 10
"""Broken documents that are named one by one in each shard; the rest are counted."""


@dataclass(frozen=True)
class Problem:
    """One thing that is not as the manifest says."""

    place: str
    what: str

    def __str__(self) -> str:
        return f"{self.place}: {self.what}"


def verify(shards: ShardSet) -> Iterator[Problem | ShardInfo]:
    """Check everything: each shard after its problems, if it has any, then the set as a whole.

    Memory is bounded by one shard's index and one document.
    """
    held_out = shards.manifests[0]["held_out"] if len(shards.manifests) == 1 else None
    for number, info in enumerate(shards.shards):
        yield from _shard(shards, number, held_out)
        yield info
    yield from _tokenizers(shards)
    for folder, manifest in zip(shards.folders, shards.manifests, strict=True):
        yield from _totals(folder, manifest)
        yield from _strangers(folder, manifest)


def _shard(shards: ShardSet, number: int, held_out: float | None) -> Iterator[Problem]:
    info = shards.shards[number]
    try:
        index = shards.index(number)
    except UserError as error:
        yield Problem(info.name, str(error))
        return
    file = shards.path(number)
    if not file.is_file():
        yield Problem(info.name, f"the file is missing ({file})")
        return
    size = file.stat().st_size
    if size != info.bytes:
        yield Problem(info.name, f"{size} bytes instead of {info.bytes}")
    whole = hashlib.sha256()
    broken = []
    with file.open("rb") as handle:
        for document, what in _documents(handle, whole, index, info, shards):
            broken.append(Problem(f"{info.name}, document {document}", what))
        rest = handle.read(len(END_OF_TAR) + 1)
        whole.update(rest)
    yield from broken[:LISTED]
    if len(broken) > LISTED:
        yield Problem(info.name, f"{len(broken) - LISTED} more broken documents")
    if not broken and size == info.bytes and whole.hexdigest() != info.checksum:
        whole_end = rest == END_OF_TAR
        yield Problem(info.name, "its checksum differs" if whole_end else "the end of the archive is damaged")
    if held_out is not None:
        for row, identity in enumerate(index.documents):
            if is_held_out(int(identity), held_out) != (info.split == "validation"):
                yield Problem(f"{info.name}, document {row}", "belongs to the other split")
                break


def _documents(
    handle: Any, whole: Any, index: ShardIndex, info: ShardInfo, shards: ShardSet
) -> Iterator[tuple[str, str]]:
    """Number, id and place of each document that is not what the index says, and why."""
    position = 0
    for number in range(info.documents):
        length, offset = int(index.lengths[number]), int(index.offsets[number])
        document = int(index.documents[number])
        head = member_head(info.source, document, length, shards.dtype)
        handle.seek(max(0, offset - len(head)))
        found = handle.read(len(head))
        data = handle.read(length * shards.dtype.itemsize)
        size = len(head) + length * shards.dtype.itemsize
        padding = handle.read(-size % BLOCK)
        for part in (found, data, padding):
            whole.update(part)
        what = ""
        if offset != position + len(head):
            what = f"the index places it at byte {offset}, it should be at {position + len(head)}"
        elif len(data) < length * shards.dtype.itemsize:
            what = "the file ends before or inside it"
        elif zlib.crc32(data) != int(index.checksums[number]):
            what = "its tokens do not match their checksum"
        elif found != head:
            what = "its header is damaged"
        elif int(np.frombuffer(data, shards.dtype).max()) >= shards.vocab_size:
            what = "it holds a token that the vocabulary does not have"
        elif padding.strip(b"\0"):
            what = "the padding behind it is damaged"
        if what:
            yield f"{number} (id {document:016x}, byte {offset})", what
        position += size + -size % BLOCK


def _tokenizers(shards: ShardSet) -> Iterator[Problem]:
    for folder in shards.folders:
        try:
            fingerprint = load_tokenizer(folder / TOKENIZER_FOLDER).fingerprint
        except UserError as error:
            yield Problem(str(folder / TOKENIZER_FOLDER), str(error))
            continue
        if fingerprint != shards.tokenizer_hash:
            yield Problem(str(folder / TOKENIZER_FOLDER), "is not the tokenizer that made the shards")


def _totals(folder: Path, manifest: dict[str, Any]) -> Iterator[Problem]:
    for name, source in manifest["sources"].items():
        rows = [row for row in manifest["shards"] if row["source"] == name]
        for key in ("documents", "tokens"):
            total = sum(row[key] for row in rows)
            if total != source[key]:
                yield Problem(
                    f"{folder / MANIFEST}, source {name}", f"{source[key]} {key}, its shards hold {total}"
                )


def _strangers(folder: Path, manifest: dict[str, Any]) -> Iterator[Problem]:
    known = {MANIFEST, REJECTS}
    for row in manifest["shards"]:
        known |= {f"{row['name']}.tar", index_name(row["name"])}
    for file in sorted(folder.rglob("*")):
        name = file.relative_to(folder).as_posix()
        if file.is_file() and name not in known and not name.startswith(f"{TOKENIZER_FOLDER}/"):
            yield Problem(str(file), "is not part of this set")
