"""Writing one shard: a WebDataset tar that grows by documents and survives being cut off."""

from __future__ import annotations

import hashlib
import io
import os
import tarfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from pretrain.corpus.shardset import INDEX_DTYPE, ShardInfo, index_name, pack_index
from pretrain.errors import UserError
from pretrain.files import sync, write_atomically

BLOCK = tarfile.BLOCKSIZE
END_OF_TAR = bytes(2 * BLOCK)


class ShardWriter:
    """Appends documents to `{name}.tar.partial`; `finish` turns it into `{name}.tar` and its index.

    Files of one shard are equal byte for byte whenever the documents are, interrupted or not.
    """

    def __init__(self, folder: Path, name: str, *, kept_bytes: int = 0):
        """Start a shard, or go on with one of which the first `kept_bytes` are known to be good."""
        self.name, self.documents, self.tokens = name, 0, 0
        self._split, _, stem = name.partition("/")
        self._source = stem.rsplit("-", 1)[0]
        self._length = kept_bytes
        self._final = folder / f"{name}.tar"
        self._index = folder / index_name(name)
        self._partial = self._final.with_name(self._final.name + ".partial")
        self._rows: list[tuple[int, int, int, int]] = []
        self._hash = hashlib.sha256()
        self._final.parent.mkdir(parents=True, exist_ok=True)
        if kept_bytes:
            self._recover(kept_bytes)
        self._file = self._partial.open("ab" if kept_bytes else "wb")
        sync(self._final.parent)

    def add(self, document: int, tokens: np.ndarray) -> None:
        """Append one document: its id and its body tokens."""
        data = tokens.tobytes()
        head = member_head(self._source, document, len(tokens), tokens.dtype)
        start = self._length + len(head)
        self._write(head + data + bytes(-(len(head) + len(data)) % BLOCK))
        self._count(document, len(tokens), start, zlib.crc32(data))

    def flush(self) -> int:
        """Bring everything to disk; returns the length that is now safe."""
        self._file.flush()
        os.fsync(self._file.fileno())
        return self._file.tell()

    def finish(self) -> ShardInfo:
        """Complete the shard under its final name and describe it."""
        self._write(END_OF_TAR)
        size = self.flush()
        self._file.close()
        rows = np.array(self._rows, dtype=INDEX_DTYPE)
        write_atomically(self._index, pack_index(rows))
        os.replace(self._partial, self._final)
        sync(self._final.parent)
        return ShardInfo(
            self.name,
            self._split,
            self._source,
            self.documents,
            self.tokens,
            size,
            self._hash.hexdigest(),
        )

    def close(self) -> None:
        """Let go of the file and leave the partial shard as it is."""
        self._file.close()

    def _write(self, data: bytes) -> None:
        self._file.write(data)
        self._hash.update(data)
        self._length += len(data)

    def _count(self, document: int, length: int, start: int, checksum: int) -> None:
        self._rows.append((length, start, document, checksum))
        self.documents += 1
        self.tokens += length

    def _recover(self, kept_bytes: int) -> None:
        if not self._partial.exists() and self._final.exists():
            # Killed between the rename and the note of it: take the shard back to where the note says.
            os.replace(self._final, self._partial)
        if not self._partial.exists() or self._partial.stat().st_size < kept_bytes:
            raise self._lost("it has shrunk")
        os.truncate(self._partial, kept_bytes)
        with self._partial.open("rb") as file:
            try:
                for name, start, tokens in read_members(file):
                    number = int(name.rsplit("-", 1)[1], 16)
                    self._count(number, len(tokens), start, zlib.crc32(tokens.tobytes()))
            except ValueError as error:
                raise self._lost(str(error)) from None
            file.seek(0)
            while chunk := file.read(1 << 20):
                self._hash.update(chunk)

    def _lost(self, what: str) -> UserError:
        mend = "build again with --restart"
        return UserError(f"this unfinished shard is damaged ({what})", where=str(self._partial), mend=mend)


def read_members(file: BinaryIO) -> Iterator[tuple[str, int, np.ndarray]]:
    """Key, byte position of the first token, and tokens of each document of a shard, in file order.

    Raises ValueError saying what is wrong at which byte.
    """
    while True:
        at = file.tell()
        header = file.read(BLOCK)
        if not header or not header.strip(b"\0"):
            return
        try:
            member = tarfile.TarInfo.frombuf(header, "utf-8", "strict")
        except tarfile.HeaderError as error:
            raise ValueError(f"bad tar header at byte {at} ({error})") from None
        data = file.read(member.size)
        if len(data) < member.size:
            raise ValueError(f"the file ends inside the document at byte {at}")
        stream = io.BytesIO(data)
        tokens = np.lib.format.read_array(stream, allow_pickle=False)
        file.seek(-member.size % BLOCK, os.SEEK_CUR)
        yield member.name.removesuffix(".npy"), at + BLOCK + member.size - tokens.nbytes, tokens


def member_head(source: str, document: int, length: int, dtype: np.dtype[Any]) -> bytes:
    """What stands before the tokens of a document: the tar header and that of `.npy`.

    Its length is a multiple of 64 bytes, so that memory-mapped tokens are aligned.
    """
    stream = io.BytesIO()
    description = {"descr": dtype.str, "fortran_order": False, "shape": (length,)}
    np.lib.format.write_array_header_1_0(stream, description)
    member = tarfile.TarInfo(f"{source}-{document:016x}.npy")
    member.size = stream.tell() + length * dtype.itemsize
    return member.tobuf(tarfile.USTAR_FORMAT) + stream.getvalue()
