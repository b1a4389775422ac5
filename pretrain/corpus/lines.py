"""Blocks of whole lines or whole documents from a stream, in bounded memory.

Lines end at `\\n` and nowhere else: corpora hold U+2028, form feeds and lone `\\r` inside their lines.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise

from pretrain.corpus.documents import Block, Reject
from pretrain.corpus.streams import Stream

BLOCK_BYTES = 1 << 20
MARK_BYTES = 1 << 12
"""No mark is longer: so much is searched again when more of a stream has come."""


@dataclass(frozen=True)
class Border:
    """Finds where records start: the first or the last place from a position on, -1 when there is none."""

    first: Callable[[bytes, int], int]
    last: Callable[[bytes, int], int]


LINE_BORDER = Border(
    first=lambda data, begin: data.find(b"\n", begin) + 1 or -1,
    last=lambda data, begin: data.rfind(b"\n", begin) + 1 or -1,
)


def line_blocks(
    stream: Stream, format: str, file: str, *, longest: int, at_least: int = 0
) -> Iterator[Block | Reject]:
    """Cut a stream into blocks that end with a line, of about a mebibyte or of `at_least` bytes.

    A line of more than `longest` bytes becomes a reject ("line_too_long"), skipped without being held.
    """
    reason = ("line_too_long", f"more than {longest} bytes")
    for block in _blocks(stream, format, file, LINE_BORDER, longest, max(BLOCK_BYTES, at_least), reason):
        if isinstance(block, Block) and len(block.payload) > longest:
            yield from _single_lines(block, longest)
        else:
            yield block


def marked_blocks(
    stream: Stream, format: str, file: str, mark: re.Pattern[bytes], *, longest: int
) -> Iterator[Block | Reject]:
    """Cut a stream into blocks that begin where `mark` matches, so that no document is torn.

    More than `longest` bytes without a mark become a reject ("document_too_long") and are skipped.
    """
    reason = ("document_too_long", f"more than {longest} bytes without a border")
    return _blocks(stream, format, file, _mark_border(mark), longest, BLOCK_BYTES, reason)


def marked_parts(block: Block, mark: re.Pattern[bytes]) -> Iterator[tuple[bytes, int, int]]:
    """The documents of a block made by `marked_blocks`, each with the line and byte at which it starts."""
    data = block.payload
    starts = [0, *(match.start() for match in mark.finditer(data) if match.start() > 0), len(data)]
    line = block.line or 1
    for start, stop in pairwise(starts):
        yield data[start:stop], line, (block.byte or 0) + start
        line += data.count(b"\n", start, stop)


def _blocks(
    stream: Stream,
    format: str,
    file: str,
    border: Border,
    longest: int,
    block_bytes: int,
    reason: tuple[str, str],
) -> Iterator[Block | Reject]:
    rest, searched, line, byte = b"", 0, 1, 0
    while True:
        data = stream.read(block_bytes)
        buffer = rest + data
        cut = border.last(buffer, searched) if data else len(buffer)
        if cut > 0:
            yield Block(format, file, buffer[:cut], line, byte)
            line, byte = line + buffer.count(b"\n", 0, cut), byte + cut
        if not data:
            return
        rest = buffer[cut:] if cut > 0 else buffer
        searched = len(rest)
        if len(rest) > longest:
            yield Reject(file, *reason, line, byte)
            rest, lines, skipped = _skip(stream, rest, border, block_bytes)
            searched, line, byte = 0, line + lines, byte + skipped


def _skip(stream: Stream, held: bytes, border: Border, block_bytes: int) -> tuple[bytes, int, int]:
    """Read on to where a record starts: what follows it, and the lines and bytes passed over."""
    lines, length = held.count(b"\n"), len(held)
    tail = held[-MARK_BYTES:]
    while data := stream.read(block_bytes):
        window = tail + data
        start = border.first(window, len(tail))
        stop = start if start > 0 else len(window)
        lines += window.count(b"\n", 0, stop) - tail.count(b"\n")
        length += stop - len(tail)
        if start > 0:
            return window[start:], lines, length
        tail = window[-MARK_BYTES:]
    return b"", lines, length


def _mark_border(mark: re.Pattern[bytes]) -> Border:
    def starts(data: bytes, begin: int) -> list[int]:
        found = mark.finditer(data, max(0, begin - MARK_BYTES))
        return [match.start() for match in found if match.start() > 0]

    return Border(
        first=lambda data, begin: min(starts(data, begin), default=-1),
        last=lambda data, begin: max(starts(data, begin), default=-1),
    )


def _single_lines(block: Block, longest: int) -> Iterator[Block | Reject]:
    """The lines of a block one by one, those that are too long as rejects."""
    line, start = block.line or 1, 0
    data, byte = block.payload, block.byte or 0
    while start < len(data):
        end = data.find(b"\n", start) + 1 or len(data)
        if end - start > longest:
            yield Reject(block.file, "line_too_long", f"more than {longest} bytes", line, byte + start)
        else:
            yield Block(block.format, block.file, data[start:end], line, byte + start)
        line, start = line + 1, end
