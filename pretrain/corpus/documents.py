"""What travels from raw files to shards: inputs, their blocks, the documents inside, and what was refused."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from pretrain.errors import UserError

ID_BITS = 63
"""Document ids fit a signed 64-bit integer, which SQLite, NumPy and JSON readers all hold."""


class BadRecordError(Exception):
    """A record, or the rest of a file, cannot be used; becomes one line of `rejects.jsonl`."""

    def __init__(self, reason: str, detail: str = "", *, line: int | None = None, byte: int | None = None):
        super().__init__(reason, detail)
        self.reason, self.detail, self.line, self.byte = reason, detail, line, byte


@dataclass(frozen=True)
class Reject:
    """One refused record: where it is (`line` from 1, `byte` from 0, after decompression) and why."""

    file: str
    reason: str
    detail: str = ""
    line: int | None = None
    byte: int | None = None

    @classmethod
    def of(cls, file: str, error: BadRecordError) -> Reject:
        """The reject that `error`, raised while reading `file`, stands for."""
        return cls(file, error.reason, error.detail, error.line, error.byte)

    @property
    def place(self) -> str:
        """Where a person finds it."""
        return f"{self.file}:{self.line}" if self.line else self.file

    @property
    def why(self) -> str:
        """What is wrong with it, for a person."""
        return f"{self.reason.replace('_', ' ')}{': ' if self.detail else ''}{self.detail}"


@dataclass(frozen=True)
class InputFile:
    """One thing to read. `name` is what rejects call it; `size` is in bytes on disk, None when unknown."""

    scheme: str
    name: str
    location: str
    size: int | None = None


@dataclass(frozen=True)
class Block:
    """A part of one file that a worker can turn into documents alone.

    `format` names how `payload` is parsed; `line` and `byte` are the position of its start in the file.
    """

    format: str
    file: str
    payload: bytes
    line: int | None = None
    byte: int | None = None


@dataclass(frozen=True)
class Document:
    """One text of a source."""

    text: str


@dataclass(frozen=True)
class Passage:
    """Consecutive lines without document borders; cut after tokenization by a token budget."""

    lines: tuple[str, ...]


@dataclass(frozen=True)
class ReadOptions:
    """How the records of one source are read.

    `text_field` is the path of the text in a JSON record, keys joined by dots; a list on the way is read
    element by element and joined with line feeds. `document_tokens` is the budget by which line corpora
    without document borders are cut. `max_document_bytes` bounds one record and so the memory of a build.
    """

    text_field: str = "text"
    document_tokens: int = 8192
    max_document_bytes: int = 64 << 20

    def __post_init__(self) -> None:
        for name in ("document_tokens", "max_document_bytes"):
            if getattr(self, name) < 1:
                raise UserError(
                    f"{name} must be at least 1, got {getattr(self, name)}", mend="give a larger number"
                )


def document_id(data: bytes) -> int:
    """63-bit id of a document from the hash of its UTF-8 text."""
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "big") >> (64 - ID_BITS)


def is_held_out(document: int, share: float) -> bool:
    """Whether the document belongs to the validation split.

    Depends on the document alone: the split stays as it is when sources grow, and a larger share only adds
    to it.
    """
    return document < share * (1 << ID_BITS)
