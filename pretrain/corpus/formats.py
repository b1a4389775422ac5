"""The native formats: how a stream falls into blocks, a block into documents, and how a format is told."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import replace

from pretrain.corpus import textfiles as text
from pretrain.corpus.archives import slice_members, split_tar
from pretrain.corpus.docs import parse_module
from pretrain.corpus.documents import BadRecordError, Block, Document, Passage, ReadOptions, Reject
from pretrain.corpus.jsonl import parse_jsonl, parse_rows
from pretrain.corpus.lines import line_blocks
from pretrain.corpus.streams import Stream

Item = Document | Passage | Reject
Split = Callable[[Stream, str, ReadOptions], Iterator[Block | Reject]]
Parse = Callable[[Block, ReadOptions], Iterator[Item]]

HEAD_BYTES = 1 << 14
NOT_TEXT = {
    b"%PDF": "a PDF",
    b"PK\x03\x04": "a zip archive",
    b"PAR1": "a Parquet file (name its folder as hf://FOLDER)",
    b"ARROW1": "an Arrow file (name its folder as hf://FOLDER)",
}
JSON_START = re.compile(rb'(?:\xef\xbb\xbf)?\s*\{\s*["}]')
JSON_ARRAY = re.compile(rb"(?:\xef\xbb\xbf)?\s*\[\s*(?:\{|\r?\n|$)")
WIKITEXT_START = re.compile(rb"\s*\n? = [^=\n][^\n]* = \r?\n")
BOOK_LINES = re.compile(r"books_large_p\d+\b")


def split_stream(stream: Stream, name: str, format: str, options: ReadOptions) -> Iterator[Block | Reject]:
    """Blocks of one input; damage ends it with a reject after all that came before."""
    try:
        yield from SPLIT[format](stream, name, options)
    except BadRecordError as error:
        yield Reject.of(name, error)


def parse_block(block: Block, options: ReadOptions) -> Iterator[Item]:
    """Documents of one block and rejects between them; damage ends it with a reject."""
    try:
        yield from PARSE[block.format](block, options)
    except BadRecordError as error:
        yield Reject.of(block.file, error)


def detect(name: str, stream: Stream) -> str:
    """Name of the format of an input, from its content first and its name then.

    Raises BadRecordError("unknown_format") for what is certainly none of them.
    """
    head = stream.peek(HEAD_BYTES)
    for magic, what in NOT_TEXT.items():
        if head.startswith(magic):
            raise BadRecordError("unknown_format", what, byte=0)
    if head[257:262] == b"ustar":
        return "tar"
    if text.RECORD.match(head):
        return "wet"
    if JSON_START.match(head) or (_suffix_is_json(name) and not JSON_ARRAY.match(head)):
        return "jsonl"
    if b"\0" in head:
        raise BadRecordError("unknown_format", "binary data", byte=head.index(b"\0"))
    if WIKITEXT_START.match(head):
        return "wikitext"
    if BOOK_LINES.search(name) or _looks_like_sentences(head):
        return "sentences"
    if _suffix_is_json(name):
        raise BadRecordError("unknown_format", "a JSON array, not one object a line", byte=0)
    return "text"


def _suffix_is_json(name: str) -> bool:
    return bool(re.search(r"\.(jsonl?|ndjson)(\.(gz|zst|xz|bz2))?$", name.lower()))


def _looks_like_sentences(head: bytes) -> bool:
    """BooksCorpus: every line one lower-case sentence whose punctuation stands apart, and no blank line."""
    lines = head.split(b"\n")[:-1]
    full = [line for line in lines if line.strip()]
    if len(full) < 20 or len(full) < len(lines):
        return False
    spaced = sum(line.rstrip().endswith((b" .", b" ?", b" !", b" ''")) for line in full)
    return all(line == line.lower() for line in full) and spaced > len(full) / 2


def _split_jsonl(stream: Stream, name: str, options: ReadOptions) -> Iterator[Block | Reject]:
    return line_blocks(stream, "jsonl", name, longest=options.max_document_bytes)


def _split_module(stream: Stream, name: str, options: ReadOptions) -> Iterator[Block | Reject]:
    for block in text.split_whole(stream, name, options):
        yield replace(block, format="module") if isinstance(block, Block) else block


def _parse_tar(block: Block, options: ReadOptions) -> Iterator[Item]:
    for name, stream in slice_members(block, options.max_document_bytes):
        try:
            format = detect(name, stream)
        except BadRecordError as error:
            yield Reject.of(name, error)
        else:
            yield from stream_items(stream, name, format, options)


def stream_items(stream: Stream, name: str, format: str, options: ReadOptions) -> Iterator[Item]:
    """Everything in one file, read and parsed in this process."""
    for block in split_stream(stream, name, format, options):
        if isinstance(block, Reject):
            yield block
        else:
            yield from parse_block(block, options)


SPLIT: dict[str, Split] = {
    "jsonl": _split_jsonl,
    "text": text.split_whole,
    "sentences": text.split_sentences,
    "wet": text.split_wet,
    "tar": split_tar,
    "wikitext": text.split_articles,
    "pages": text.split_pages,
    "module": _split_module,
}
"""From a stream to blocks; runs where the input is read."""

PARSE: dict[str, Parse] = {
    "jsonl": parse_jsonl,
    "text": text.parse_text,
    "sentences": text.parse_sentences,
    "wet": text.parse_wet,
    "tar": _parse_tar,
    "wikitext": text.parse_articles,
    "pages": text.parse_pages,
    "module": lambda block, options: parse_module(block),
    "rows": parse_rows,
}
"""From a block to documents; runs in the workers."""
