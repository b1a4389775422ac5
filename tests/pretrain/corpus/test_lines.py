"""Blocks of lines and of documents: nothing lost, nothing torn, nothing held that is too long."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pretrain.corpus import lines as lines_module
from pretrain.corpus.documents import Block, Reject
from pretrain.corpus.lines import line_blocks, marked_blocks, marked_parts
from pretrain.corpus.streams import Stream

MARK = re.compile(rb"^#", re.MULTILINE)
Lines = st.lists(st.binary(max_size=30).map(lambda line: line.replace(b"\n", b"")), max_size=30)


@pytest.fixture(autouse=True, scope="module")
def _blocks_of_any_size() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lines_module, "BLOCK_BYTES", 1)
        yield


@given(Lines, st.integers(1, 40), st.integers(5, 40))
def test_lines_come_back_or_are_refused(lines: list[bytes], block_bytes: int, longest: int) -> None:
    data = b"\n".join([b"{", *lines])  # the first byte keeps it from looking compressed
    found = list(line_blocks(Stream(io.BytesIO(data)), "jsonl", "f", longest=longest, at_least=block_bytes))
    kept = {}
    for block in found:
        if isinstance(block, Block):
            assert data[block.byte :].startswith(block.payload)
            assert data.count(b"\n", 0, block.byte) + 1 == block.line
            for number, line in enumerate(block.payload.removesuffix(b"\n").split(b"\n"), block.line or 0):
                kept[number] = line
    refused = {block.line for block in found if isinstance(block, Reject)}
    assert all(reject.reason == "line_too_long" for reject in found if isinstance(reject, Reject))
    spelled = data.removesuffix(b"\n").split(b"\n")
    for number, line in enumerate(spelled, 1):
        ended = number < len(spelled) or data.endswith(b"\n")
        if len(line) + ended <= longest:
            assert kept.get(number) == line
        else:
            assert number in refused
    assert not refused & kept.keys()


@given(st.lists(st.sampled_from([b"#title", b"word", b"", b"a # b"]), max_size=40))
def test_documents_are_never_torn(lines: list[bytes]) -> None:
    data = b"\n".join(lines)
    found = list(marked_blocks(Stream(io.BytesIO(data)), "wikitext", "f", MARK, longest=10_000))
    assert b"".join(block.payload for block in found if isinstance(block, Block)) == data
    parts = [part for block in found if isinstance(block, Block) for part, _, _ in marked_parts(block, MARK)]
    assert sum(part.startswith(b"#") for part in parts) == sum(line.startswith(b"#") for line in lines)
    assert all(b"\n#" not in part for part in parts)


def test_a_document_without_end_is_refused_and_the_next_one_is_read() -> None:
    data = b"#a\nshort\n#b\n" + b"x" * 30_000 + b"\n#c\nlast\n"
    found = list(marked_blocks(Stream(io.BytesIO(data)), "wikitext", "f", MARK, longest=1000))
    refused = [item for item in found if isinstance(item, Reject)]
    parts = [part for item in found if isinstance(item, Block) for part in marked_parts(item, MARK)]
    assert [(item.reason, item.line, item.byte) for item in refused] == [("document_too_long", 3, 9)]
    assert parts == [(b"#a\nshort\n", 1, 0), (b"#c\nlast\n", 5, data.index(b"#c"))]


def test_only_line_feeds_end_lines() -> None:
    data = "one\u2028still one\x0c\x85 and \r here\ntwo\u2028\x0c".encode()
    blocks = list(line_blocks(Stream(io.BytesIO(data)), "jsonl", "f", longest=1000))
    assert [block.line for block in blocks] == [1, 2]


class _Endless:
    """A line of `size` bytes that is made while it is read."""

    def __init__(self, size: int):
        self.left = size

    def read(self, size: int, /) -> bytes:
        size = min(size, self.left)
        self.left -= size
        return b"x" * size

    def close(self) -> None:
        """Nothing to close."""


def test_a_huge_line_is_refused_without_being_held() -> None:
    import tracemalloc

    size = 1 << 30
    stream = Stream(_Endless(size))
    tracemalloc.start()
    found = list(line_blocks(stream, "jsonl", "f", longest=4 << 20, at_least=1 << 20))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert [type(item) for item in found] == [Reject]
    assert stream.consumed == size
    assert peak < 32 << 20
