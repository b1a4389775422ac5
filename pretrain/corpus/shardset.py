"""Reading a shard set: the only thing that pretraining reads.

A shard set is a folder of `manifest.json`, `tokenizer/`, and for each shard `{split}/{source}-{number}.tar`
(a plain WebDataset tar, one `.npy` member a document) with `{split}/{source}-{number}.index.zst` beside it.
"""

from __future__ import annotations

import hashlib
import io
import json
import mmap
import os
import zlib
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import zstandard
from numpy.typing import NDArray

from pretrain.corpus.tokenizer import TOKENIZER_FOLDER, Tokenizer, load_tokenizer, token_dtype
from pretrain.errors import ShardError, UserError

FORMAT, VERSION = "membart-shards", 1
MANIFEST = "manifest.json"
SPLITS = ("train", "validation")
INDEX_DTYPE = np.dtype([("length", "<u4"), ("offset", "<u8"), ("document", "<u8"), ("checksum", "<u4")])
REBUILD = "restore the file or build the set again (`membart shards verify` lists all damage)"
CACHED_SHARDS = 64
"""Indexes and memory maps kept open by one `ShardSet`: bounds memory and file descriptors."""

Length = TypeVar("Length", int, NDArray[np.int64])


@dataclass(frozen=True)
class Window:
    """How documents are cut into segments: `size` counts `<s>` and `</s>`; neighbours share `overlap`.

    A document ends with the first segment that reaches its end; that last one may be short and is kept: 1,000
    tokens under 512/128 are (0, 510) (382, 892) (764, 1000).
    """

    size: int = 512
    overlap: int = 128

    def __post_init__(self) -> None:
        if self.size < 3 or not 0 <= self.overlap < self.body:
            raise UserError(
                f"window of {self.size} tokens with {self.overlap} shared is impossible",
                mend="size must be at least 3 and overlap from 0 to size - 3",
            )

    @property
    def body(self) -> int:
        """Tokens of the document in one full segment."""
        return self.size - 2

    @property
    def step(self) -> int:
        """Distance between the starts of neighbouring segments."""
        return self.body - self.overlap

    def segments(self, length: Length) -> Length:
        """Segments of a document of `length` body tokens: none if it is empty, one if it fits a window.

        A number, or int64 `[n]` for as many documents.
        """
        beyond = -(-(length - self.body) // self.step)
        if isinstance(length, int):
            return 1 + max(beyond, 0) if length else 0
        return np.where(length == 0, 0, 1 + np.maximum(beyond, 0))

    def bounds(self, length: Length, segment: Length) -> tuple[Length, Length]:
        """(start, stop) of a segment in the body tokens of a document of `length`; numbers or int64 `[n]`."""
        start = segment * self.step
        stop = start + self.body
        return start, min(stop, length) if isinstance(stop, int) else np.minimum(stop, length)


@dataclass(frozen=True)
class ShardInfo:
    """One shard of the manifest; `tokens` are body tokens (no specials), `checksum` is the tar's sha256."""

    name: str
    split: str
    source: str
    documents: int
    tokens: int
    bytes: int
    checksum: str


@dataclass(frozen=True)
class ShardIndex:
    """Per document of one shard, in file order."""

    lengths: np.ndarray
    """uint32 `[documents]`: body tokens."""
    offsets: np.ndarray
    """uint64 `[documents]`: byte position of the first token in the tar."""
    documents: np.ndarray
    """uint64 `[documents]`: 63-bit document ids, from the content hash."""
    checksums: np.ndarray
    """uint32 `[documents]`: crc32 of the token bytes."""


class _Payload:
    """Memory map of one shard, and which of its documents have been checked."""

    def __init__(self, file: Path, documents: int):
        with file.open("rb") as handle:
            self.map = mmap.mmap(handle.fileno(), 0, access=mmap.ACCESS_READ)
        self.checked = np.zeros(documents, dtype=bool)


class ShardSet:
    """One or several shard set folders, joined; safe to pickle into worker processes."""

    def __init__(self, folders: tuple[Path, ...], manifests: tuple[dict[str, Any], ...]):
        self.folders, self.manifests = folders, manifests
        rows = [
            (folder, row)
            for folder, manifest in zip(folders, manifests, strict=True)
            for row in manifest["shards"]
        ]
        self._roots = tuple(folder for folder, _ in rows)
        self.shards = tuple(ShardInfo(**row) for _, row in rows)
        self.sources = tuple(dict.fromkeys(name for manifest in manifests for name in manifest["sources"]))
        first = manifests[0]
        self.window = Window(**first["window"])
        self.min_tokens = min(int(manifest["min_tokens"]) for manifest in manifests)
        self.vocab_size = int(first["tokenizer"]["vocab_size"])
        self.tokenizer_hash = str(first["tokenizer"]["hash"])
        self.dtype = token_dtype(self.vocab_size)
        hashes = [str(manifest["hash"]) for manifest in manifests]
        self.hash = hashes[0] if len(hashes) == 1 else hashlib.sha256(" ".join(hashes).encode()).hexdigest()
        self._indexes: OrderedDict[int, ShardIndex] = OrderedDict()
        self._payloads: OrderedDict[int, _Payload] = OrderedDict()

    @classmethod
    def open(cls, *paths: str | os.PathLike[str]) -> ShardSet:
        """Open the folders and join them. Reads manifests only.

        Raises UserError when a folder is no shard set, is given twice, or does not fit the first one.
        """
        if not paths:
            raise UserError("no shard set given", mend="name at least one shard set folder")
        folders = tuple(Path(path) for path in paths)
        manifests = tuple(read_manifest(folder) for folder in folders)
        _check_fit(folders, manifests)
        return cls(folders, manifests)

    def select(self, split: str) -> tuple[int, ...]:
        """Numbers of the shards of `split` ("train" or "validation"), in order."""
        if split not in SPLITS:
            raise UserError(f"no split {split!r}", mend=f"choose one of {', '.join(SPLITS)}")
        return tuple(number for number, shard in enumerate(self.shards) if shard.split == split)

    def path(self, shard: int) -> Path:
        """The tar file of `shard`."""
        return self._roots[shard] / f"{self.shards[shard].name}.tar"

    def tokenizer(self) -> Tokenizer:
        """The tokenizer that made the shards (from the copy inside the first folder)."""
        tokenizer = load_tokenizer(self.folders[0] / TOKENIZER_FOLDER)
        if tokenizer.fingerprint != self.tokenizer_hash:
            raise ShardError(
                "its tokenizer is not the one the shards were made with",
                where=str(self.folders[0] / TOKENIZER_FOLDER),
                mend=REBUILD,
            )
        return tokenizer

    def lengths(self, shard: int) -> np.ndarray:
        """uint32 `[documents]`: body tokens of each document of `shard`."""
        return self.index(shard).lengths

    def index(self, shard: int) -> ShardIndex:
        """Where the documents of `shard` are. Raises ShardError when the index is missing or damaged."""
        found = self._indexes.get(shard)
        if found is None:
            found = read_index(self._roots[shard], self.shards[shard])
            _remember(self._indexes, shard, found)
        self._indexes.move_to_end(shard)
        return found

    def tokens(self, shard: int, document: int) -> np.ndarray:
        """Body tokens of one document `[length]`, a read-only view of the memory map.

        The checksum is compared on the first touch. Raises ShardError naming shard, document and offset.
        """
        index, info = self.index(shard), self.shards[shard]
        length, offset = int(index.lengths[document]), int(index.offsets[document])
        payload = self._payload(shard)
        end = offset + length * self.dtype.itemsize
        if end > len(payload.map):
            raise self._damage(
                shard, document, f"the file ends at byte {len(payload.map)}, {info.bytes} expected"
            )
        tokens = np.frombuffer(payload.map, dtype=self.dtype, count=length, offset=offset)
        if not payload.checked[document]:
            if zlib.crc32(tokens.data) != int(index.checksums[document]):
                raise self._damage(shard, document, "its tokens do not match their checksum")
            payload.checked[document] = True
        return tokens

    def _payload(self, shard: int) -> _Payload:
        found = self._payloads.get(shard)
        if found is None:
            info = self.shards[shard]
            try:
                found = _Payload(self.path(shard), info.documents)
            except (OSError, ValueError) as error:
                reason = "missing" if isinstance(error, FileNotFoundError) else f"unreadable ({error})"
                raise ShardError(
                    f"shard {info.name} is {reason}", where=str(self.path(shard)), mend=REBUILD
                ) from None
            _remember(self._payloads, shard, found)
        self._payloads.move_to_end(shard)
        return found

    def _damage(self, shard: int, document: int, what: str) -> ShardError:
        index = self.index(shard)
        number = f"{document} (id {int(index.documents[document]):016x})"
        return ShardError(
            f"shard {self.shards[shard].name}, document {number}, byte {index.offsets[document]}: {what}",
            where=str(self.path(shard)),
            mend=REBUILD,
        )

    def __getstate__(self) -> dict[str, Any]:
        return {"folders": self.folders, "manifests": self.manifests}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["folders"], state["manifests"])  # type: ignore[misc]


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a shard set folder. Raises UserError when there is none or it is not ours."""
    file = folder / MANIFEST
    mend = "name a folder made by `membart shards build`"
    try:
        manifest = json.loads(file.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        raise UserError("no shard set here (no manifest.json)", where=str(folder), mend=mend) from None
    except (OSError, ValueError) as error:
        raise UserError(f"the manifest cannot be read ({error})", where=str(file), mend=REBUILD) from None
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise UserError("this manifest is not that of a shard set", where=str(file), mend=mend)
    if manifest.get("version") != VERSION:
        raise UserError(
            f"shard set version {manifest.get('version')}, this program reads {VERSION}",
            where=str(file),
            mend="build the set again with this version",
        )
    if manifest.get("hash") != manifest_hash(manifest):
        raise ShardError("the manifest was changed after the build", where=str(file), mend=REBUILD)
    return manifest


def manifest_hash(manifest: dict[str, Any]) -> str:
    """sha256 over what training depends on: tokenizer, window, filter and the shards with their checksums."""
    bound = {
        key: manifest.get(key) for key in ("format", "version", "tokenizer", "window", "min_tokens", "shards")
    }
    return hashlib.sha256(json.dumps(bound, sort_keys=True).encode()).hexdigest()


def index_name(shard_name: str) -> str:
    """File of the index that belongs to a shard, relative to the set's folder."""
    return f"{shard_name}.index.zst"


def pack_index(rows: np.ndarray) -> bytes:
    """Compressed form of index rows (`INDEX_DTYPE`): an `.npy` in a zstd frame with a content checksum."""
    plain = io.BytesIO()
    np.save(plain, rows)
    return zstandard.ZstdCompressor(level=9, write_checksum=True).compress(plain.getvalue())


def read_index(folder: Path, info: ShardInfo) -> ShardIndex:
    """Read and check the index of one shard. Raises ShardError naming it."""
    file = folder / index_name(info.name)
    try:
        plain = zstandard.ZstdDecompressor().decompress(file.read_bytes())
        rows = np.load(io.BytesIO(plain), allow_pickle=False)
    except FileNotFoundError:
        raise ShardError(f"shard {info.name} has lost its index", where=str(file), mend=REBUILD) from None
    except (OSError, ValueError, EOFError, zstandard.ZstdError) as error:
        raise ShardError(
            f"the index of shard {info.name} is damaged ({error})", where=str(file), mend=REBUILD
        ) from None
    fits = (
        rows.dtype == INDEX_DTYPE and len(rows) == info.documents and int(rows["length"].sum()) == info.tokens
    )
    if not fits:
        raise ShardError(
            f"the index of shard {info.name} is not that of the manifest", where=str(file), mend=REBUILD
        )
    columns = [np.ascontiguousarray(rows[name]) for name in ("length", "offset", "document", "checksum")]
    for column in columns:
        column.flags.writeable = False
    return ShardIndex(*columns)


def _check_fit(folders: tuple[Path, ...], manifests: tuple[dict[str, Any], ...]) -> None:
    first = manifests[0]
    seen: dict[str, Path] = {}
    for folder, manifest in zip(folders, manifests, strict=True):
        if manifest["tokenizer"]["hash"] != first["tokenizer"]["hash"]:
            raise UserError(
                f"made with another tokenizer than {folders[0]}",
                where=str(folder),
                mend="build both sets with one tokenizer",
            )
        if manifest["window"] != first["window"]:
            raise UserError(
                f"window {manifest['window']} differs from that of {folders[0]}",
                where=str(folder),
                mend="build both sets with one window",
            )
        if manifest["hash"] in seen:
            raise UserError(
                f"the same shard set as {seen[manifest['hash']]}",
                where=str(folder),
                mend="name each set once",
            )
        seen[manifest["hash"]] = folder


def _remember(cache: OrderedDict[int, Any], key: int, value: Any) -> None:
    cache[key] = value
    while len(cache) > CACHED_SHARDS:
        cache.popitem(last=False)
