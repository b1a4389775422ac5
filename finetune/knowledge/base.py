"""The knowledge base: one item for each article of an encyclopedia, its first sentence (section 4.3).

| file | holds |
|---|---|
| `manifest.json` | counts, drops by reason, options, checksums |
| `items.parquet` | `id` int32 = row, `title`, `sentence`, `hash` int64 (equal for equal sentences) |
| `titles.marisa` | folded title -> row, memory-mapped |
"""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache, cached_property, partial
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import regex
from pyarrow import parquet

from finetune.knowledge import artifact, titles
from finetune.knowledge.annotations import sentence_hash
from finetune.knowledge.packages import needed
from finetune.knowledge.parallel import streamed
from finetune.knowledge.wikipedia import Article, articles, plain_lead
from finetune.knowledge.words import words
from pretrain.corpus.documents import Reject
from pretrain.errors import UserError

KIND = artifact.Kind("knowledge base", "membart ki base FILE... --out FOLDER")
ITEMS, TITLES = "items.parquet", "titles.marisa"
ROW_GROUP = 1 << 16
MAX_REJECTED = 0.05
_SCHEMA = pa.schema(
    [("id", pa.int32()), ("title", pa.string()), ("sentence", pa.string()), ("hash", pa.int64())]
)
_AMBIGUOUS = regex.compile(r"\b(may|can|might|could)\b[^.:]{0,40}\brefer to\b\s*(:|$)", regex.IGNORECASE)
_LIST = regex.compile(r"(lists? of|index of|outline of) ", regex.IGNORECASE)
_REJECTED = "rejected"
_CHUNK = 256
"""Articles that a process reads at a time."""
_SPLIT_CHARACTERS = 1000
"""So much of the first paragraph is looked at for each sentence that is wanted."""


@dataclass(frozen=True)
class BaseOptions:
    """What becomes an item."""

    sentences_per_article: int = 1
    """Items of an article; its title stands for the first. The paper has one."""
    min_words: int = 5
    """Shorter sentences are dropped."""


class KnowledgeBase:
    """An open knowledge base of N items."""

    def __init__(self, folder: Path, manifest: dict[str, Any]) -> None:
        self.folder, self.manifest = folder, manifest

    @classmethod
    def open(cls, folder: Path) -> KnowledgeBase:
        """Read a folder that `build` made.

        Raises:
            UserError: absent, damaged, or of another format.
        """
        return cls(folder, artifact.read(folder, KIND))

    def __len__(self) -> int:
        return int(self.manifest["items"])

    @property
    def hash(self) -> str:
        """Stands for all it holds."""
        return str(self.manifest["hash"])

    @cached_property
    def titles(self) -> titles.Titles:
        """Rows by title."""
        return titles.Titles(self.folder / TITLES)

    @cached_property
    def _table(self) -> Any:
        return parquet.read_table(self.folder / ITEMS, columns=["title", "sentence"])

    @cached_property
    def hashes(self) -> np.ndarray:
        """`[N]` int64"""
        column = parquet.read_table(self.folder / ITEMS, columns=["hash"])
        return np.asarray(column.column("hash").to_numpy())

    def sentences(self, rows: np.ndarray | Sequence[int]) -> list[str]:
        """The sentences of some rows. All of them are in memory then: about 1 GB for 6.4 M."""
        return self._taken("sentence", rows)

    def names(self, rows: np.ndarray | Sequence[int]) -> list[str]:
        """The titles of some rows."""
        return self._taken("title", rows)

    def _taken(self, column: str, rows: np.ndarray | Sequence[int]) -> list[str]:
        found: list[str] = self._table.column(column).take(pa.array(rows, pa.int64())).to_pylist()
        return found


def build(
    places: Sequence[str],
    out: Path,
    options: BaseOptions | None = None,
    *,
    workers: int = 1,
    told: Callable[[int, int], None] = lambda read, kept: None,
) -> KnowledgeBase:
    """Make a knowledge base of all articles of some files; rows follow their order.

    Args:
        told: called now and then with the articles read and the items kept.

    Raises:
        UserError: nothing usable, damaged files, more than 5 % malformed records, or `out` exists.
    """
    options = options or BaseOptions()
    needed("marisa_trie")
    _splitter()  # the workers share it
    with artifact.making(out) as folder:
        counts: Counter[str] = Counter()
        named: list[tuple[str, int]] = []
        refused: list[str] = []
        with parquet.ParquetWriter(folder / ITEMS, _SCHEMA, compression="zstd") as writer:
            found = streamed(partial(_chunks, places), partial(_read, options), workers)
            rows = _items(found, counts, named, refused, told)
            while group := list(islice(rows, ROW_GROUP)):
                columns = list(zip(*group, strict=True))
                writer.write_table(pa.table(columns, schema=_SCHEMA))
        _check(places, counts, refused)
        titles.write(folder / TITLES, named)
        facts = {
            "items": counts["items"],
            "articles": counts["articles"],
            "dropped": {key.removeprefix("-"): counts[key] for key in sorted(counts) if key[0] == "-"},
            "rejected": counts[_REJECTED],
            "options": vars(options),
        }
        artifact.seal(folder, KIND, facts, {"sources": list(places)})
    return KnowledgeBase(out, artifact.look(out, KIND))


def reason_to_drop(article: Article, sentence: str, options: BaseOptions) -> str:
    """Why the first sentence of an article is no knowledge; empty if it is."""
    if article.redirect:
        return "redirect"
    if not sentence:
        return "empty"
    if article.title.lower().endswith("(disambiguation)") or _AMBIGUOUS.search(sentence):
        return "disambiguation"
    if _LIST.match(article.title):
        return "list"
    return "short" if len(words(sentence)) < options.min_words else ""


def first_sentences(text: str, count: int = 1) -> list[str]:
    """The first sentences of the first paragraph of a text, white space evened out."""
    paragraph = next((line.strip() for line in text.split("\n") if line.strip()), "")
    head = " ".join(paragraph[: _SPLIT_CHARACTERS * count].split())
    if not head:
        return []
    return [sentence.strip() for sentence in _splitter().segment(head)[:count]]


@cache
def _splitter() -> Any:
    """Rule-based and complete in its wheel; NLTK's needs a download."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # its source has invalid escapes
        return needed("pysbd").Segmenter(language="en", clean=False)


@dataclass(frozen=True)
class _Found:
    """What an article gave."""

    title: str
    sentences: tuple[str, ...] = ()
    dropped: str = ""
    """Why it gave nothing."""
    refused: str = ""
    """Of a malformed record: where it is, and what is wrong."""


def _read(options: BaseOptions, chunk: Sequence[Article | Reject]) -> list[_Found]:
    found = []
    for article in chunk:
        if isinstance(article, Reject):
            place = f"{article.file}:{article.line}" if article.line else article.file
            found.append(
                _Found("", dropped=_REJECTED, refused=f"{place}: {article.detail or article.reason}")
            )
            continue
        sentences = _sentences(article, options.sentences_per_article)
        reason = reason_to_drop(article, sentences[0] if sentences else "", options)
        found.append(_Found(article.title, () if reason else tuple(sentences), reason))
    return found


def _sentences(article: Article, count: int) -> list[str]:
    if article.redirect or article.form == "sentence":
        return [article.text]
    return first_sentences(plain_lead(article.text) if article.form == "wiki" else _body(article), count)


def _items(
    found: Iterator[list[_Found]],
    counts: Counter[str],
    named: list[tuple[str, int]],
    refused: list[str],
    told: Callable[[int, int], None],
) -> Iterator[tuple[int, str, str, int]]:
    """Rows of the table; counts, titles and the first malformed record are noted on the way."""
    for chunk in found:
        for article in chunk:
            counts["articles"] += 1
            if article.refused and not refused:
                refused.append(article.refused)
            if article.dropped:
                counts[article.dropped if article.dropped == _REJECTED else f"-{article.dropped}"] += 1
                continue
            named.append((article.title, counts["items"]))
            for sentence in article.sentences:
                yield counts["items"], article.title, sentence, sentence_hash(sentence)
                counts["items"] += 1
        told(counts["articles"], counts["items"])


def _chunks(places: Sequence[str]) -> Iterator[list[Article | Reject]]:
    found = chain.from_iterable(map(articles, places))
    while chunk := list(islice(found, _CHUNK)):
        yield chunk


def _body(article: Article) -> str:
    """The text without a first line that only repeats the title."""
    text = article.text.lstrip()
    first, _, rest = text.partition("\n")
    return rest if titles.folded(first) == titles.folded(article.title) else text


def _check(places: Sequence[str], counts: Counter[str], refused: Sequence[str]) -> None:
    where = ", ".join(places)
    if counts[_REJECTED] > max(MAX_REJECTED * counts["articles"], 1):
        raise UserError(
            f"{counts['rejected']} of {counts['articles']} records are malformed, the first: {refused[0]}",
            where=where,
            mend="each needs a title and a text",
        )
    if not counts["items"]:
        why = ", ".join(
            f"{counts[key]} {key.removeprefix('-')}" for key in sorted(counts) if key != "articles"
        )
        why = "; the first: ".join([why, *refused])
        raise UserError(
            f"no article in it that can be used ({why or 'it is empty'})",
            where=where,
            mend="each needs a title, and a text of some words (--min-words)",
        )
