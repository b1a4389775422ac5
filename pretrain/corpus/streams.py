"""Bytes of an input, decompressed by content, read in full pieces, with damage told apart from the end."""

from __future__ import annotations

import bz2
import lzma
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import zstandard

from pretrain.corpus.documents import BadRecordError

RAW_BYTES = 1 << 16
MAGIC_BYTES = 6
ZSTD_FEED = 1 << 8
"""zstd has no output limit per call, so input goes in by pieces whose output is small whatever they hold."""
ZSTD_WINDOW = 1 << 31
"""Largest window accepted: archives packed with `zstd --long` need more than the library's default."""


class RawInput(Protocol):
    """Bytes as they are stored: a file, or a download."""

    def read(self, size: int, /) -> bytes:
        """Up to `size` bytes; empty at the end."""

    def close(self) -> None:
        """Let go of the input."""


class Stream:
    """Decompressed bytes of one input.

    `read(n)` gives n bytes unless the input ends there, so that blocks are the same whatever the disk or
    the net delivers at a time. When the input is damaged, everything before the damage is delivered first
    and the next call raises BadRecordError("broken_gzip" and the like, with the position).
    """

    def __init__(self, raw: RawInput):
        self.consumed = 0
        """Bytes taken from the input as stored, for progress."""
        self._raw, self._held, self._at = raw, b"", 0
        self._failure: BadRecordError | None = None
        head = b""
        try:
            while len(head) < MAGIC_BYTES and (more := self._take(RAW_BYTES)):
                head += more
        except BadRecordError as failure:
            self._failure = failure
        self._unpack: _Unpacker | None = None
        for magic, name, make in _CODECS:
            if head.startswith(magic):
                self._unpack = _Unpacker(name, make, head, self._take)
        self._plain = b"" if self._unpack else head

    def peek(self, size: int) -> bytes:
        """The next `size` bytes (fewer near the end) without consuming them."""
        if len(self._held) < size:
            self._held += self._fresh(size - len(self._held))
        return self._held[:size]

    def read(self, size: int, /) -> bytes:
        """The next `size` bytes; fewer only at the end or right before damage."""
        if len(self._held) < size:
            if self._failure and not self._held:
                raise self._failure
            self._held += self._fresh(size - len(self._held))
            if self._failure and not self._held:
                raise self._failure
        data, self._held = self._held[:size], self._held[size:]
        self._at += len(data)
        return data

    def close(self) -> None:
        """Let go of the input."""
        self._raw.close()

    def _fresh(self, size: int) -> bytes:
        parts, length = [], 0
        while length < size and not self._failure:
            try:
                part = self._unpack.read(size - length) if self._unpack else self._direct(size - length)
            except BadRecordError as failure:
                failure.byte = self._at + len(self._held) + length
                self._failure = failure
                break
            if not part:
                break
            parts.append(part)
            length += len(part)
        return b"".join(parts)

    def _direct(self, size: int) -> bytes:
        if self._plain:
            data, self._plain = self._plain[:size], self._plain[size:]
            return data
        return self._take(size)

    def _take(self, size: int) -> bytes:
        try:
            data = self._raw.read(size)
        except OSError as error:
            raise BadRecordError("unreadable", error.strerror or str(error)) from None
        self.consumed += len(data)
        return data


def open_file(path: str | Path) -> Stream:
    """Stream of a local file."""
    return Stream(Path(path).open("rb"))


class _Unpacker:
    """Decompresses members one after the other, as gzip, xz and zstd files may hold several."""

    def __init__(self, name: str, make: Callable[[], Any], head: bytes, take: Callable[[int], bytes]):
        self._name, self._make, self._take = name, make, take
        self._codec, self._input = make(), head

    def read(self, size: int) -> bytes:
        """Some bytes, about `size` at most, empty at the end. Raises BadRecordError on damage."""
        while True:
            if self._codec.eof:
                self._input = self._codec.unused_data.lstrip(b"\0") or self._take(RAW_BYTES).lstrip(b"\0")
                if not self._input:
                    return b""
                self._codec = self._make()
            if not self._input and self._codec.needs_input:
                self._input = self._take(RAW_BYTES)
                if not self._input:
                    raise BadRecordError(f"broken_{self._name}", "the file ends inside the compressed data")
            data, self._input = self._input, b""
            try:
                output = self._codec.decompress(data, size)
            except (zlib.error, lzma.LZMAError, OSError, zstandard.ZstdError, EOFError, ValueError) as error:
                raise BadRecordError(f"broken_{self._name}", str(error)) from None
            if output:
                return bytes(output)


class _Gzip:
    """zlib's object with the interface of those of lzma and bz2."""

    def __init__(self) -> None:
        self._object = zlib.decompressobj(wbits=31)

    @property
    def eof(self) -> bool:
        return self._object.eof

    @property
    def unused_data(self) -> bytes:
        return self._object.unused_data

    @property
    def needs_input(self) -> bool:
        return not self._object.unconsumed_tail

    def decompress(self, data: bytes, limit: int) -> bytes:
        return self._object.decompress(self._object.unconsumed_tail + data, limit)


class _Zstd:
    """zstandard's object with the interface of those of lzma and bz2."""

    def __init__(self) -> None:
        self._object = zstandard.ZstdDecompressor(max_window_size=ZSTD_WINDOW).decompressobj()
        self._input, self._at = b"", 0

    @property
    def eof(self) -> bool:
        return bool(self._object.eof)

    @property
    def unused_data(self) -> bytes:
        return bytes(self._object.unused_data) + self._input[self._at :]

    @property
    def needs_input(self) -> bool:
        return self._at >= len(self._input)

    def decompress(self, data: bytes, limit: int) -> bytes:
        if data:
            self._input, self._at = self._input[self._at :] + data, 0
        feed = self._input[self._at : self._at + ZSTD_FEED]
        self._at += len(feed)
        return bytes(self._object.decompress(feed))


_CODECS: tuple[tuple[bytes, str, Callable[[], Any]], ...] = (
    (b"\x1f\x8b", "gzip", _Gzip),
    (b"\x28\xb5\x2f\xfd", "zstd", _Zstd),
    (b"\xfd7zXZ\x00", "xz", lzma.LZMADecompressor),
    (b"BZh", "bz2", bz2.BZ2Decompressor),
)
