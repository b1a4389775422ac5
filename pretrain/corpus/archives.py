"""Tar archives, also inside each other: `openwebtext.tar.xz` holds `urlsf_subset*_data.xz`, which hold
texts.
"""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass

from pretrain.corpus.documents import BadRecordError, Block, ReadOptions, Reject
from pretrain.corpus.lines import BLOCK_BYTES
from pretrain.corpus.sources import looks_like_text
from pretrain.corpus.streams import Stream

UNIT = tarfile.BLOCKSIZE
SKIP_BYTES = 1 << 20


@dataclass(frozen=True)
class Member:
    """One regular file of an archive: its name, its position, and its bytes with the headers before them."""

    name: str
    byte: int
    size: int
    raw: bytes
    data: bytes | None
    """None when the member was passed over: no text by its name, or too long."""


def split_tar(stream: Stream, name: str, options: ReadOptions) -> Iterator[Block | Reject]:
    """Slices of the archive of about a mebibyte, cut between members; a slice is read like an archive."""
    parts: list[bytes] = []
    start, length, texts = 0, 0, 0
    damage: BadRecordError | None = None
    walk = members(stream, options.max_document_bytes)
    while True:
        try:
            member = next(walk, None)
        except BadRecordError as error:
            damage, member = error, None
        if parts and (member is None or length >= BLOCK_BYTES):
            yield Block("tar", name, b"".join(parts), byte=start)
            parts, length = [], 0
        if member is None:
            break
        texts += looks_like_text(member.name)
        if member.data is not None:
            start = start if parts else member.byte
            parts.append(member.raw)
            length += len(member.raw)
        elif looks_like_text(member.name):
            detail = f"{member.size} bytes"
            yield Reject(f"{name}!{member.name}", "document_too_long", detail, byte=member.byte)
    if damage:
        raise damage
    if not texts:
        raise BadRecordError("no_text", "no member of this archive is a text by its name", byte=0)


def slice_members(block: Block, longest: int) -> Iterator[tuple[str, Stream]]:
    """The text files in a slice made by `split_tar`, each with the name rejects give it."""
    for member in members(Stream(io.BytesIO(block.payload)), longest, ends=False):
        if member.data is not None:
            yield f"{block.file}!{member.name}", Stream(io.BytesIO(member.data))


def members(stream: Stream, longest: int, *, ends: bool = True) -> Iterator[Member]:
    """Regular files of a tar stream; those that are longer than `longest` come without data.

    `tarfile` takes damage after the first member for the end of the archive, so headers are walked here.
    `ends` says that the archive must have its end mark. Raises BadRecordError("broken_tar").
    """
    at, pending, long_name = 0, b"", ""
    while True:
        header = stream.read(UNIT)
        if len(header) < UNIT or not header.strip(b"\0"):
            if len(header) < UNIT:
                stream.read(1)  # damage of the compression is the better reason
            if header.strip(b"\0") or (ends and not header):
                raise BadRecordError("broken_tar", "the archive ends without its end mark", byte=at)
            return
        info = _parse_header(header, at)
        padded = info.size + -info.size % UNIT
        if info.type in (tarfile.GNUTYPE_LONGNAME, tarfile.XHDTYPE):
            data = _exactly(stream, padded, at) if padded <= SKIP_BYTES else b""
            long_name = _long_name(info, data[: info.size]) or long_name
            pending += header + data
            at += UNIT + padded
            continue
        start, name = at - len(pending), long_name or info.name
        take = info.isreg() and looks_like_text(name) and info.size <= longest
        data = _exactly(stream, padded, at) if take else b""
        if not take:
            _pass_over(stream, padded, at)
        if info.isreg():
            raw = pending + header + data if take else b""
            yield Member(name, start, info.size, raw, data[: info.size] if take else None)
        at, pending, long_name = at + UNIT + padded, b"", ""


def _parse_header(header: bytes, at: int) -> tarfile.TarInfo:
    try:
        return tarfile.TarInfo.frombuf(header, "utf-8", "surrogateescape")
    except tarfile.HeaderError as error:
        raise BadRecordError("broken_tar", f"{error}", byte=at) from None


def _long_name(info: tarfile.TarInfo, data: bytes) -> str:
    """The name that a GNU or pax header gives to the member after it; empty when it gives none."""
    if info.type == tarfile.GNUTYPE_LONGNAME:
        return data.rstrip(b"\0").decode("utf-8", "surrogateescape")
    for field in data.split(b"\n"):
        key, found, value = field.partition(b" ")[2].partition(b"=")
        if found and key == b"path":
            return value.decode("utf-8", "surrogateescape")
    return ""


def _exactly(stream: Stream, size: int, at: int) -> bytes:
    data = stream.read(size)
    if len(data) < size:
        stream.read(1)  # damage of the compression is the better reason
        raise BadRecordError("broken_tar", "the archive ends inside a member", byte=at)
    return data


def _pass_over(stream: Stream, size: int, at: int) -> None:
    while size:
        size -= len(_exactly(stream, min(size, SKIP_BYTES), at))
