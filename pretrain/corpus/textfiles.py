"""Plain text corpora: whole books, sentence lines, WikiText articles, blank-line pages, and Common
Crawl's WET.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from pretrain.corpus.documents import BadRecordError, Block, Document, Passage, ReadOptions, Reject
from pretrain.corpus.lines import line_blocks, marked_blocks, marked_parts
from pretrain.corpus.streams import Stream

ARTICLE = re.compile(rb"^ = [^=\n][^\n]* = \r?\n(?=[ \t]*\r?\n)", re.MULTILINE)
"""Title line of a WikiText article; section titles have two or more equals signs."""
PAGE = re.compile(rb"(?<=\n\n)(?=[^\n])|(?<=\n\r\n)(?=[^\r\n])")
"""The first character after a blank line."""
RECORD = re.compile(rb"^WARC/1\.[01]\r?\n(?=WARC-Type:)", re.MULTILINE)
"""First line of a WARC record. The stated lengths only confirm it: re-encoded copies get them wrong."""
HEADERS = re.compile(rb"^([A-Za-z-]+): *([^\r\n]*)\r?$", re.MULTILINE)
BLANK_LINE = re.compile(rb"\r?\n\r?\n")

_BOOK = r"TH(?:E|IS) PROJECT GUTENBERG E(?:BOOK|TEXT)"
PG_START = re.compile(rf"\*\*\* ?START OF {_BOOK}[^*]{{0,400}}\*\*\*[^\n]*\n", re.IGNORECASE)
PG_END = re.compile(rf"\n[^\n]{{0,80}}\*\*\* ?END OF {_BOOK}", re.IGNORECASE)
PG_END_LINE = re.compile(r"\nEnd of (?:the |this )?Project Gutenberg[^\n]*\s*$", re.IGNORECASE)
BYTES_PER_TOKEN = 4


def split_whole(stream: Stream, name: str, options: ReadOptions) -> Iterator[Block | Reject]:
    """The file as one block. Raises BadRecordError when it is longer than the limit or damaged."""
    data = stream.read(options.max_document_bytes + 1)
    if len(data) > options.max_document_bytes:
        raise BadRecordError("document_too_long", f"more than {options.max_document_bytes} bytes", byte=0)
    stream.read(1)  # a damaged file ends in an error here
    yield Block("text", name, data)


def parse_text(block: Block, options: ReadOptions) -> Iterator[Document]:
    """One document: the file without byte order mark, carriage returns and Project Gutenberg's frame."""
    yield Document(cut_gutenberg(_decode(block.payload)).strip())


def cut_gutenberg(text: str) -> str:
    """The book itself, without the licence that Project Gutenberg puts before and after it."""
    start, ends = PG_START.search(text), list(PG_END.finditer(text))
    if ends:
        text = text[: ends[-1].start() + 1]
    if start and (not ends or start.end() <= ends[-1].start() + 1):
        text = text[start.end() :]
    if start or ends:
        text = PG_END_LINE.sub("", text).strip()
    return text


def split_sentences(stream: Stream, name: str, options: ReadOptions) -> Iterator[Block | Reject]:
    """Blocks of lines; each is cut into documents by itself, so a block holds several budgets."""
    budgets = 8 * BYTES_PER_TOKEN * options.document_tokens
    return line_blocks(stream, "sentences", name, longest=options.max_document_bytes, at_least=budgets)


def parse_sentences(block: Block, options: ReadOptions) -> Iterator[Passage | Reject]:
    """The lines of the block, to be cut by the token budget; lines that are no UTF-8 are left out."""
    lines, position = [], block.byte or 0
    for number, raw in enumerate(block.payload.split(b"\n"), start=block.line or 1):
        try:
            line = _decode(raw).strip()
        except BadRecordError as error:
            yield Reject(block.file, error.reason, error.detail, number, position)
        else:
            if line:
                lines.append(line)
        position += len(raw) + 1
    if lines:
        yield Passage(tuple(lines))


def split_articles(stream: Stream, name: str, options: ReadOptions) -> Iterator[Block | Reject]:
    """Blocks of whole WikiText articles."""
    return marked_blocks(stream, "wikitext", name, ARTICLE, longest=options.max_document_bytes)


def split_pages(stream: Stream, name: str, options: ReadOptions) -> Iterator[Block | Reject]:
    """Blocks of whole pages, with blank lines between them."""
    return marked_blocks(stream, "pages", name, PAGE, longest=options.max_document_bytes)


def parse_articles(block: Block, options: ReadOptions) -> Iterator[Document | Reject]:
    """A document for each article, title and section titles included."""
    return _documents(block, ARTICLE)


def parse_pages(block: Block, options: ReadOptions) -> Iterator[Document | Reject]:
    """A document for each run of lines between blank lines."""
    return _documents(block, PAGE)


def split_wet(stream: Stream, name: str, options: ReadOptions) -> Iterator[Block | Reject]:
    """Blocks of whole WARC records."""
    return marked_blocks(stream, "wet", name, RECORD, longest=options.max_document_bytes)


def parse_wet(block: Block, options: ReadOptions) -> Iterator[Document | Reject]:
    """A document for each `conversion` record; raw HTML is refused, other records are no text."""
    for data, line, byte in marked_parts(block, RECORD):
        try:
            text = _wet_text(data)
        except BadRecordError as error:
            yield Reject(block.file, error.reason, error.detail, line, byte)
        else:
            if text is not None:
                yield Document(text)


def _wet_text(record: bytes) -> str | None:
    border = BLANK_LINE.search(record)
    if not RECORD.match(record) or not border:
        raise BadRecordError("bad_warc", "no WARC header")
    headers = {key.lower(): value for key, value in HEADERS.findall(record[: border.start()])}
    kind, length = headers.get(b"warc-type", b""), headers.get(b"content-length", b"0")
    if kind == b"response":
        raise BadRecordError("bad_warc", "raw HTML: the .warc.wet files of the crawl hold its text")
    if kind != b"conversion":
        return None
    body = record[border.end() :]
    if not length.isdigit() or len(body) < int(length):
        raise BadRecordError("bad_warc", f"{len(body)} of {length.decode(errors='replace')} bytes are there")
    return _decode(body).strip()


def _documents(block: Block, mark: re.Pattern[bytes]) -> Iterator[Document | Reject]:
    for data, line, byte in marked_parts(block, mark):
        try:
            text = _decode(data).strip()
        except BadRecordError as error:
            yield Reject(block.file, error.reason, error.detail, line, byte)
        else:
            if text:
                yield Document(text)


def _decode(data: bytes) -> str:
    """Strict UTF-8, without byte order mark, lines ended by `\\n`. Raises BadRecordError("invalid_utf8")."""
    try:
        return data.decode("utf-8").removeprefix("\ufeff").replace("\r\n", "\n")
    except UnicodeDecodeError as error:
        raise BadRecordError("invalid_utf8", f"byte {error.start} of the record") from None
