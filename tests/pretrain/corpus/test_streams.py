"""Decompression: told by content, members joined, damage reported after everything before it."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import random
from collections.abc import Callable

import pytest
import zstandard

from pretrain.corpus.documents import BadRecordError
from pretrain.corpus.streams import Stream

PLAIN = b"".join(b"line %d %d\n" % (n, random.Random(n).getrandbits(64)) for n in range(5_000))
PACKERS: dict[str, Callable[[bytes], bytes]] = {
    "gzip": lambda data: gzip.compress(data, mtime=0),
    "zstd": zstandard.ZstdCompressor().compress,
    "xz": lzma.compress,
    "bz2": bz2.compress,
}


class _Trickle:
    """Delivers at most `most` bytes at a time, as sockets do."""

    def __init__(self, data: bytes, most: int):
        self._file, self._most = io.BytesIO(data), most

    def read(self, size: int, /) -> bytes:
        return self._file.read(min(size, self._most))

    def close(self) -> None:
        self._file.close()


def _read(stream: Stream, size: int = 1 << 16) -> tuple[bytes, BadRecordError | None]:
    parts = []
    try:
        while data := stream.read(size):
            parts.append(data)
    except BadRecordError as error:
        return b"".join(parts), error
    return b"".join(parts), None


@pytest.mark.parametrize("packer", [None, *PACKERS])
def test_content_tells_the_compression(packer: str | None) -> None:
    packed = PACKERS[packer](PLAIN) if packer else PLAIN
    stream = Stream(io.BytesIO(packed))
    assert stream.peek(8) == PLAIN[:8]
    assert _read(stream) == (PLAIN, None)
    assert stream.consumed == len(packed)


@pytest.mark.parametrize("packer", PACKERS)
def test_several_members_are_one_file(packer: str) -> None:
    pack = PACKERS[packer]
    packed = pack(PLAIN[:1000]) + pack(b"") + pack(PLAIN[1000:])
    assert _read(Stream(io.BytesIO(packed))) == (PLAIN, None)


@pytest.mark.parametrize("packer", [None, *PACKERS])
def test_pieces_are_full_however_the_bytes_arrive(packer: str | None) -> None:
    packed = PACKERS[packer](PLAIN) if packer else PLAIN
    stream = Stream(_Trickle(packed, 701))
    sizes = []
    while data := stream.read(10_000):
        sizes.append(len(data))
    assert set(sizes[:-1]) == {10_000}
    assert sum(sizes) == len(PLAIN)


@pytest.mark.parametrize("packer", PACKERS)
@pytest.mark.parametrize("share", [0.3, 0.7, 0.999])
def test_a_truncated_file_gives_what_it_holds_and_then_fails(packer: str, share: float) -> None:
    packed = PACKERS[packer](PLAIN)
    data, error = _read(Stream(io.BytesIO(packed[: int(len(packed) * share)])))
    assert PLAIN.startswith(data)
    assert error is not None
    assert (error.reason, error.byte) == (f"broken_{packer}", len(data))


@pytest.mark.parametrize("packer", ["gzip", "xz", "bz2"])
def test_a_flipped_bit_is_noticed(packer: str) -> None:
    packed = bytearray(PACKERS[packer](PLAIN))
    packed[len(packed) // 2] ^= 4
    _, error = _read(Stream(io.BytesIO(bytes(packed))))
    assert error is not None
    assert error.reason == f"broken_{packer}"


def test_a_flipped_bit_in_zstd_with_a_checksum_is_noticed() -> None:
    packed = bytearray(zstandard.ZstdCompressor(write_checksum=True).compress(PLAIN))
    packed[len(packed) // 2] ^= 4
    _, error = _read(Stream(io.BytesIO(bytes(packed))))
    assert error is not None
    assert error.reason == "broken_zstd"


def test_garbage_after_the_last_member() -> None:
    data, error = _read(Stream(io.BytesIO(gzip.compress(PLAIN) + b"garbage")))
    assert data == PLAIN
    assert error is not None


def test_padding_after_the_last_member_is_none_of_our_business() -> None:
    assert _read(Stream(io.BytesIO(gzip.compress(PLAIN) + bytes(600)))) == (PLAIN, None)


def test_a_bomb_comes_in_small_pieces() -> None:
    import tracemalloc

    packed = {
        "zstd": zstandard.ZstdCompressor().compress(bytes(1 << 26)),
        "gzip": gzip.compress(bytes(1 << 26), 1),
    }
    for data in packed.values():
        stream = Stream(io.BytesIO(data))
        tracemalloc.start()
        while stream.read(1 << 20):
            pass
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert peak < 32 << 20


def test_an_unreadable_disk_is_a_bad_record() -> None:
    class Broken(io.RawIOBase):
        def read(self, size: int = -1, /) -> bytes:
            raise OSError(5, "Input/output error")

    with pytest.raises(BadRecordError) as caught:
        Stream(Broken()).read(1)
    assert caught.value.reason == "unreadable"
