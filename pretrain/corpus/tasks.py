"""From the files of a source to tasks for workers, in an order that depends on the files alone."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from pretrain.corpus.documents import BadRecordError, InputFile, Reject
from pretrain.corpus.download import HttpInput
from pretrain.corpus.encode import Task
from pretrain.corpus.formats import detect, split_stream
from pretrain.corpus.hub import row_blocks
from pretrain.corpus.sources import SourceSpec
from pretrain.corpus.streams import Stream, open_file
from pretrain.errors import UserError

SMALL_FILE = 4 << 20
"""Stored size up to which a local file is read whole by one worker."""
GROUP_BYTES, GROUP_FILES = 1 << 20, 64
"""Small files are handed out together until one of these is reached."""


def tasks(spec: SourceSpec, files: list[InputFile]) -> Iterator[Task]:
    """Tasks of one source, lazily; large and remote files are read here and handed out in blocks."""
    group: list[InputFile] = []
    for file in files:
        small = file.scheme in ("file", "module") and (file.size or 0) <= SMALL_FILE
        if small:
            group.append(file)
        full = len(group) >= GROUP_FILES or sum(member.size or 0 for member in group) >= GROUP_BYTES
        if group and (full or not small):
            yield _group(spec, group)
            group = []
        if not small:
            yield from _blocks(spec, file)
    if group:
        yield _group(spec, group)


def _group(spec: SourceSpec, files: list[InputFile]) -> Task:
    format = "module" if files[0].scheme == "module" else spec.format
    return Task(format, spec.read, files=tuple(files), bytes=sum(file.size or 0 for file in files))


def _blocks(spec: SourceSpec, file: InputFile) -> Iterator[Task]:
    if file.scheme == "hf":
        for count, block in enumerate(row_blocks(file.location, spec.read)):
            yield Task("rows", spec.read, block=block, opens=count == 0)
        return
    with contextlib.closing(_open(file)) as stream:
        try:
            format = detect(file.name, stream) if spec.format == "auto" else spec.format
        except BadRecordError as error:
            yield Task(spec.format, spec.read, block=Reject.of(file.name, error), bytes=file.size or 0)
            return
        done, opens = 0, True
        for block in split_stream(stream, file.name, format, spec.read):
            yield Task(format, spec.read, block=block, opens=opens, bytes=stream.consumed - done)
            done, opens = stream.consumed, False


def _open(file: InputFile) -> Stream:
    if file.scheme == "http":
        return Stream(HttpInput(file.location))
    try:
        return open_file(file.location)
    except OSError as error:
        raise UserError(f"cannot be read ({error.strerror or error})", where=file.name) from None
