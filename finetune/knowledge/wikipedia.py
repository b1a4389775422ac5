"""Articles of encyclopedias in the layouts they are found in: dumps, JSON lines, Parquet, the hub, tables."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal
from xml.etree import ElementTree

import regex
from pyarrow import parquet
from pydantic import TypeAdapter

from finetune.dialogue.files import File, find_files
from finetune.dialogue.records import Line, bad, damaged, from_json, lines
from finetune.knowledge.packages import needed
from pretrain.corpus.documents import BadRecordError, Reject
from pretrain.corpus.hub import open_rows
from pretrain.errors import UserError

HUB = "hf://"
LAYOUT = ".tsv (title TAB sentence), .jsonl, .parquet (title, text), .xml of a dump; or hf://NAME[:config]"
_OTHER_NAMESPACES = regex.compile(r"(?i)^\s*(file|image|category|media)\s*:")
_LINE_BREAK = regex.compile(r"(?<!\n)\n(?!\n)")
"""Inside a paragraph; an empty line ends it."""
_NO_TEXT = ("ref", "table", "math", "gallery", "timeline", "score")
_REDIRECT = regex.compile(r"(?i)^\s*#\s*redirect\b")
_EMPTY_BRACKETS = regex.compile(r"\s*\(\s*[,;:]*\s*\)")
_OPENING_COMMA = regex.compile(r"\(\s*[,;:]\s*")
_LEAD_CHARACTERS = 1 << 15
"""A lead is not looked for beyond this many characters of wiki text."""


@dataclass(frozen=True)
class Article:
    """One article, as much of it as its layout has."""

    title: str
    text: str
    """From its beginning."""
    form: Literal["sentence", "plain", "wiki"] = "plain"
    """What the text is: the first sentence alone, plain text, or wiki text."""
    redirect: bool = False


def articles(place: str) -> Iterator[Article | Reject]:
    """The articles of a file, folder, glob or data set of the hub, in order.

    Raises:
        UserError: nothing there, or a file is damaged.
    """
    if place.startswith(HUB):
        yield from _rows(place)
        return
    files = find_files(place)
    if not any(_reader(file) for file in files):
        raise UserError("no file of a known layout", where=place, mend=f"expected {LAYOUT}")
    for file in files:
        reader = _reader(file)
        if reader:
            yield from reader(file)


def plain_lead(wikitext: str) -> str:
    """What stands before the first section, without markup, templates, notes and pictures."""
    lead = re.split(r"^==", wikitext[:_LEAD_CHARACTERS], maxsplit=1, flags=re.MULTILINE)[0]
    code = needed("mwparserfromhell").parse(lead, skip_style_tags=True)
    links = code.filter_wikilinks(matches=lambda link: _OTHER_NAMESPACES.match(str(link.title)))
    for node in [*links, *code.filter_tags(matches=lambda tag: str(tag.tag).lower() in _NO_TEXT)]:
        with contextlib.suppress(ValueError):  # it was in another one that is gone
            code.remove(node)
    text = code.strip_code().replace("'''", "").replace("''", "")
    text = _LINE_BREAK.sub(" ", text.strip())
    return _OPENING_COMMA.sub("(", _EMPTY_BRACKETS.sub("", text)).strip()


def _reader(file: File) -> Any:
    return {
        ".tsv": _table,
        ".txt": _table,
        ".jsonl": _json_lines,
        ".json": _json_lines,
        ".parquet": _parquet,
        ".xml": _dump,
    }.get(file.path.suffix.lower())


def _table(file: File) -> Iterator[Article | Reject]:
    for line in lines(file):
        if not line.blank:
            yield from _kept(file, line, _table_row)


def _table_row(line: Line) -> Article:
    title, tab, sentence = line.text().partition("\t")
    if not tab or not title.strip() or not sentence.strip():
        raise bad("bad_record", "not title TAB sentence")
    return Article(title.strip(), sentence.strip(), "sentence")


def _json_lines(file: File) -> Iterator[Article | Reject]:
    adapter = TypeAdapter(dict[str, Any])
    for line in lines(file):
        if not line.blank:
            yield from _kept(file, line, lambda line: _record(from_json(adapter, line.text())))


def _record(row: Any) -> Article:
    title, text = row.get("title"), row.get("text")
    if not isinstance(title, str) or not isinstance(text, str):
        raise bad("missing_field", "needs title and text")
    return Article(title.strip(), text, redirect=bool(_REDIRECT.match(text)))


def _kept(file: File, line: Line, parse: Any) -> Iterator[Article | Reject]:
    try:
        yield parse(line)
    except BadRecordError as error:
        yield Reject(file.label, error.reason, error.detail, line.number)


def _parquet(file: File) -> Iterator[Article | Reject]:
    try:
        batches = parquet.ParquetFile(str(file.path)).iter_batches(columns=["title", "text"])
        rows = (row for batch in batches for row in batch.to_pylist())
        for number, row in enumerate(rows, 1):
            try:
                yield _record(row)
            except BadRecordError as error:
                yield Reject(file.label, error.reason, error.detail, number)
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"cannot be read ({str(error).splitlines()[0]})", where=file.label) from None


def _rows(place: str) -> Iterator[Article | Reject]:
    rows = iter(open_rows(place.removeprefix(HUB)))
    number = 0
    while True:
        try:
            row = next(rows, None)
        except Exception as error:  # kinds of the library, of file systems, of the hub
            raise UserError(f"reading stopped after row {number} ({error})", where=place) from None
        if row is None:
            return
        number += 1
        try:
            yield _record(row)
        except BadRecordError as error:
            yield Reject(place, error.reason, error.detail, number)


def _dump(file: File) -> Iterator[Article | Reject]:
    """Pages of the article namespace; one page is in memory at a time."""
    with contextlib.closing(file.stream()) as stream:
        source: Any = stream  # it has the `read` that is wanted, with a size that must be given
        try:
            parser = iter(ElementTree.iterparse(source, events=("start", "end")))
            _, root = next(parser)
            for event, element in parser:
                if event == "end" and _local(element) == "page":
                    if found := _page(element):
                        yield found
                    root.clear()
        except BadRecordError as error:
            raise damaged(file, error) from None
        except (ElementTree.ParseError, StopIteration) as error:
            raise UserError(f"no whole dump ({error})", where=file.label, mend="get it again") from None


def _page(page: ElementTree.Element) -> Article | None:
    found = {_local(element): element for element in page.iter()}
    if found["ns"].text != "0" if "ns" in found else False:
        return None
    title, text = found["title"].text or "", (found["text"].text if "text" in found else "") or ""
    redirect = "redirect" in found or bool(_REDIRECT.match(text))
    return Article(title, "" if redirect else text, "wiki", redirect)


def _local(element: ElementTree.Element) -> str:
    return element.tag.rpartition("}")[2]
