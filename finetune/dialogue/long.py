"""Long documents for language modelling: PG-19, Arxiv papers, or any text that pretraining can read.

Each document is a dialogue of one turn; families cut it into blocks. PG-19 has its splits as folders
(`train/*.txt`) or as JSON lists of names beside the texts, its titles in `metadata.csv`. Papers are JSON
lines: unarXive (formulas put back where they stood) and scientific_papers.
"""

from __future__ import annotations

import contextlib
import csv
import re
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import PurePosixPath
from typing import Any

from pydantic import TypeAdapter

from finetune.dialogue.dialogue import Dialogue, Turn
from finetune.dialogue.files import SPLITS, File, Part, by_split
from finetune.dialogue.records import Item, Line, Record, bad, damaged, from_json, from_lines, lines
from pretrain.corpus.documents import BadRecordError, Document, ReadOptions, Reject
from pretrain.corpus.formats import detect, stream_items
from pretrain.corpus.sources import looks_like_text
from pretrain.errors import UserError

LAYOUT = "text files, train/*.txt, or JSON lines with text, body_text or article_text"
HOLE = re.compile(r"\{\{(\w+):([^{}]*)\}\} ?")
"""What unarXive puts in the place of formulas, citations and figures."""


class Paragraph(Record):
    """One of unarXive's `body_text`."""

    text: str


class Formula(Record):
    """One of unarXive's `ref_entries`."""

    latex: str = ""


class Heading(Record):
    """The metadata of a paper."""

    title: str = ""


class Paper(Record):
    """A line of JSON; the first of the texts that is there counts."""

    text: str | None = None
    body_text: tuple[Paragraph, ...] | None = None
    """unarXive"""
    article_text: tuple[str, ...] | None = None
    """scientific_papers: sentences"""
    ref_entries: Mapping[str, Formula] = {}
    metadata: Heading = Heading()
    paper_id: str = ""
    article_id: str = ""


def parts(files: Sequence[File]) -> list[Part]:
    """All texts of a split together."""
    listed = _listed(files)
    texts = [file for file in files if file.alone or looks_like_text(file.name)]
    anywhere = PurePosixPath()  # texts in folders of folders are one data set
    return by_split(texts, split=lambda file: listed.get(file.name, file.split), home=lambda _: anywhere)


def read(part: Part) -> Iterator[Item]:
    """Documents in the order of the files."""
    titles = _titles(part.files[0])
    for file in part.files:
        with contextlib.closing(file.stream()) as stream:
            try:
                format = detect(file.name, stream)
            except BadRecordError as error:
                raise UserError(f"no text: {error.detail}", where=file.label) from None
            if format == "jsonl":
                yield from from_lines(file, partial(_paper, file.path.stem))
            else:
                items = stream_items(stream, file.label, format, ReadOptions())
                yield from _documents(file, items, titles.get(file.path.stem, ""))


def _documents(file: File, items: Iterator[Any], title: str) -> Iterator[Item]:
    number = 0
    for item in items:
        if isinstance(item, Reject):
            if item.reason.startswith("broken"):
                raise damaged(file, bad(item.reason, item.detail))
            yield item
            continue
        text = item.text if isinstance(item, Document) else "\n".join(item.lines)
        name = f"{file.path.stem}_{number}" if number else file.path.stem
        if text.strip():
            yield Dialogue(name, (Turn(0, text),), topic=title)
            number += 1
        else:
            yield Reject(file.label, "empty", "no text in it")


def _paper(stem: str, line: Line) -> Dialogue:
    paper = from_json(Paper, line.text())
    if paper.text is not None:
        text = paper.text
    elif paper.body_text is not None:
        text = "\n".join(_filled(paragraph.text, paper.ref_entries) for paragraph in paper.body_text)
    elif paper.article_text is not None:
        text = "\n".join(paper.article_text)
    else:
        raise bad("missing_field", "none of text, body_text, article_text")
    name = paper.paper_id or paper.article_id or f"{stem}_{line.number - 1}"
    return Dialogue(name, (Turn(0, text),), topic=" ".join(paper.metadata.title.split()))


def _filled(text: str, formulas: Mapping[str, Formula]) -> str:
    def fill(hole: re.Match[str]) -> str:
        return f"{formulas[hole[2]].latex.strip()} " if hole[1] == "formula" and hole[2] in formulas else ""

    return HOLE.sub(fill, text)


def _listed(files: Sequence[File]) -> dict[str, str]:
    """Split of each text by the lists that PG-19 keeps beside them (`train`, `validation`, `test`)."""
    found: dict[str, str] = {}
    for file in files:
        if file.name in SPLITS and not file.alone:
            try:
                names = from_json(TypeAdapter(tuple[str, ...]), b"\n".join(line.raw for line in lines(file)))
            except BadRecordError as error:
                raise UserError(f"no list of names: {error.detail}", where=file.label) from None
            found |= {name.rpartition("/")[2]: SPLITS[file.name] for name in names}
    return found


def _titles(file: File) -> dict[str, str]:
    """Titles by number of the book, from PG-19's table of id, title, year, address."""
    folders = (file.path.parent, file.home)
    table = next((file.shelf[path] for f in folders if (path := f / "metadata.csv") in file.shelf), None)
    texts = [line.raw.decode("utf-8", "replace") for line in lines(table)] if table else []
    return {row[0]: row[1] for row in csv.reader(texts) if len(row) > 1}
