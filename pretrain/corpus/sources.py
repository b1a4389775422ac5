"""What goes into a build: sources, and the files that their inputs stand for."""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pretrain.corpus.docs import module_files
from pretrain.corpus.documents import InputFile, ReadOptions
from pretrain.corpus.download import remote_size
from pretrain.corpus.hub import open_rows
from pretrain.errors import UserError

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")
FORMATS = ("auto", "jsonl", "text", "sentences", "wet", "tar", "wikitext", "pages")
TEXT_SUFFIXES = (".txt", ".text", ".tokens", ".jsonl", ".json", ".ndjson", ".wet", ".tar", ".tgz", ".txz")
PACKED_SUFFIXES = (".gz", ".zst", ".xz", ".bz2")


@dataclass(frozen=True)
class SourceSpec:
    """One named corpus and how it is read.

    inputs: files, folders, globs, `http(s)://`, `hf://NAME[:config][:split]`, or `docs://[PACKAGE]` for the
        docstrings of installed Python packages. The source called docs needs none.
    format: one of `FORMATS`; "auto" tells it from content and name of each file.
    max_documents, max_tokens: stop reading the source after the document that reaches the limit.
    """

    name: str
    inputs: tuple[str, ...] = ()
    format: str = "auto"
    read: ReadOptions = field(default_factory=ReadOptions)
    max_documents: int | None = None
    max_tokens: int | None = None

    def __post_init__(self) -> None:
        if not NAME.fullmatch(self.name):
            raise UserError(f"bad source name {self.name!r}", mend="use letters, digits, - and _ only")
        if self.format not in FORMATS:
            raise UserError(
                f"unknown format {self.format!r}", where=self.name, mend=f"choose from {', '.join(FORMATS)}"
            )
        if not self.inputs and self.name == "docs":
            object.__setattr__(self, "inputs", ("docs://",))
        for limit in ("max_documents", "max_tokens"):
            value = getattr(self, limit)
            if value is not None and value < 1:
                raise UserError(
                    f"{limit} must be at least 1", where=self.name, mend="leave it out for no limit"
                )
        if not self.inputs:
            raise UserError("source without input", where=self.name, mend="name files with --input")

    def describe(self) -> dict[str, Any]:
        """The choices that decide the documents of this source, as JSON."""
        return {
            "inputs": list(self.inputs),
            "format": self.format,
            "text_field": self.read.text_field,
            "document_tokens": self.read.document_tokens,
            "max_document_bytes": self.read.max_document_bytes,
            "max_documents": self.max_documents,
            "max_tokens": self.max_tokens,
        }


@dataclass(frozen=True)
class Inputs:
    """The files of a source in reading order, and names found in its folders that are no text."""

    files: list[InputFile]
    passed_over: list[str]


def expand(spec: SourceSpec) -> Inputs:
    """Find the files that the inputs of a source stand for.

    Raises UserError for an input that does not exist, cannot be reached or matches nothing.
    """
    found = Inputs([], [])
    for text in spec.inputs:
        try:
            found.files.extend(_expand_one(spec.name, text, found.passed_over))
        except OSError as error:
            reason = error.strerror or str(error)
            raise UserError(f"cannot be read ({reason})", where=str(error.filename or text)) from None
    if not found.files:
        names = ", ".join(found.passed_over[:5])
        raise UserError(
            f"no text file among the inputs{f' ({names} ...)' if names else ''}",
            where=spec.name,
            mend="name the files themselves if they are text under another suffix",
        )
    return found


def _expand_one(source: str, text: str, passed_over: list[str]) -> Iterator[InputFile]:
    scheme, found, rest = text.partition("://")
    if not found:
        yield from _local(source, text, passed_over)
    elif scheme in ("http", "https"):
        yield InputFile("http", text, text, remote_size(text))
    elif scheme == "hf":
        open_rows(rest)  # a wrong name is told before anything is written
        yield InputFile("hf", text, rest)
    elif scheme == "docs":
        yield from module_files(rest)
    else:
        raise UserError(
            f"unknown kind of input {scheme}://", where=source, mend="use http, https, hf or docs"
        )


def _local(source: str, text: str, passed_over: list[str]) -> Iterator[InputFile]:
    path = Path(text).expanduser()
    if path.is_dir():
        yield from (_file(file) for file in _walk(path, passed_over))
    elif path.exists():
        yield _file(path)
    else:
        matches = sorted(glob.glob(str(path), recursive=True)) if glob.has_magic(text) else []
        if not matches:
            raise UserError(f"no such input: {text}", where=source, mend="check the path or the glob")
        yield from (_file(Path(match)) for match in matches if Path(match).is_file())


def _file(path: Path) -> InputFile:
    return InputFile("file", str(path), str(path), path.stat().st_size)


def _walk(folder: Path, passed_over: list[str]) -> Iterator[Path]:
    """Files of a folder that are text by their names; metadata and lists of ids often lie beside them."""
    for root, folders, names in os.walk(folder):
        folders.sort()
        for name in sorted(names):
            if looks_like_text(name):
                yield Path(root) / name
            else:
                passed_over.append(name)


def looks_like_text(name: str) -> bool:
    """Whether a file found in a folder is taken for part of the corpus."""
    lower = name.lower()
    stem = next((lower.removesuffix(end) for end in PACKED_SUFFIXES if lower.endswith(end)), lower)
    return stem.endswith(TEXT_SUFFIXES) or lower.endswith("_data.xz")
