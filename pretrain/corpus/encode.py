"""The part of a build that runs in the workers: read or take a block, parse, filter, tokenize."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np

from pretrain.corpus.documents import (
    BadRecordError,
    Block,
    Document,
    InputFile,
    Passage,
    ReadOptions,
    Reject,
    document_id,
)
from pretrain.corpus.formats import Item, detect, parse_block, stream_items
from pretrain.corpus.streams import open_file
from pretrain.corpus.tokenizer import Tokenizer

BATCH_CHARACTERS = 1 << 20
"""Text handed to the tokenizer at a time."""


@dataclass(frozen=True)
class Task:
    """Work for one worker: some whole files, or one block of a file that is read elsewhere, or a reject
    of it.
    """

    format: str
    options: ReadOptions
    files: tuple[InputFile, ...] = ()
    block: Block | Reject | None = None
    opens: bool = False
    """Whether `block` is the first of its file."""
    bytes: int = 0
    """Stored bytes of the input that the task covers, for progress."""


@dataclass
class Encoded:
    """What became of a task, in input order."""

    ids: list[int] = field(default_factory=list)
    tokens: list[np.ndarray] = field(default_factory=list)
    dropped: Counter[str] = field(default_factory=Counter)
    rejects: list[Reject] = field(default_factory=list)
    formats: Counter[str] = field(default_factory=Counter)


class Encoder:
    """Turns tasks into tokens with one tokenizer and one length filter."""

    def __init__(self, tokenizer: Tokenizer, min_tokens: int):
        self._tokenizer, self._min_tokens = tokenizer, min_tokens

    def run(self, task: Task) -> Encoded:
        """Everything that the task's files or block hold."""
        result = Encoded()
        batch: list[Document] = []
        characters = 0
        for item in task_items(task, result.formats):
            if isinstance(item, Reject):
                result.rejects.append(item)
            elif isinstance(item, Passage):
                self._encode(_cut(item, self._tokenizer, task.options.document_tokens), result)
            else:
                batch.append(item)
                characters += len(item.text)
                if characters >= BATCH_CHARACTERS:
                    self._encode(self._texts(batch, result), result)
                    batch, characters = [], 0
        self._encode(self._texts(batch, result), result)
        return result

    def _texts(self, batch: list[Document], result: Encoded) -> Iterator[tuple[int, np.ndarray]]:
        arrays = self._tokenizer.encode_batch([document.text for document in batch])
        for document, tokens in zip(batch, arrays, strict=True):
            yield document_id(document.text.encode()), tokens

    def _encode(self, documents: Iterable[tuple[int, np.ndarray]], result: Encoded) -> None:
        for number, tokens in documents:
            if len(tokens) < self._min_tokens:
                result.dropped["too_short"] += 1
            else:
                result.ids.append(number)
                result.tokens.append(tokens)


def task_items(task: Task, formats: Counter[str] | None = None) -> Iterator[Item]:
    """Documents and rejects of a task, in order; `formats` counts the files by format."""
    formats = Counter() if formats is None else formats
    if task.opens:
        formats[task.format] += 1
    if isinstance(task.block, Reject):
        yield task.block
    elif task.block:
        yield from parse_block(task.block, task.options)
    for file in task.files:
        try:
            stream = open_file(file.location)
        except OSError as error:
            yield Reject(file.name, "unreadable", error.strerror or str(error))
            continue
        with contextlib.closing(stream):
            try:
                format = detect(file.name, stream) if task.format == "auto" else task.format
            except BadRecordError as error:
                yield Reject.of(file.name, error)
                continue
            formats[format] += 1
            yield from stream_items(stream, file.name, format, task.options)


def _cut(passage: Passage, tokenizer: Tokenizer, budget: int) -> Iterator[tuple[int, np.ndarray]]:
    """Documents of about `budget` tokens from lines without document borders, all of nearly one length.

    Lines are joined by blanks. A blank opens the next word, so lines can be encoded one by one and joined;
    only the first line of a document has none before it and is encoded again.
    """
    lines = passage.lines
    arrays = tokenizer.encode_batch([f" {line}" for line in lines])
    ends = np.cumsum([len(array) for array in arrays])
    count = max(1, round(int(ends[-1]) / budget)) if len(ends) else 0
    targets = [ends[-1] * part / count for part in range(1, count)]
    borders = [0, *(int(border) + 1 for border in np.searchsorted(ends, targets)), len(lines)]
    spans = [(start, stop) for start, stop in pairwise(borders) if stop > start]
    firsts = tokenizer.encode_batch([lines[start] for start, _ in spans])
    for (start, stop), first in zip(spans, firsts, strict=True):
        text = " ".join(lines[start:stop])
        yield document_id(text.encode()), np.concatenate([first, *arrays[start + 1 : stop]])
