"""Records of data files: lines, JSON, and what becomes of those that are malformed.

A record that cannot be used is a `Reject` with file and line, and reading goes on. A file that is damaged
itself (a torn gzip, a parallel file that is short) is a `UserError`: what follows could not be trusted.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TypeVar

from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError

from finetune.dialogue.dialogue import Dialogue, flaw
from finetune.dialogue.files import File
from pretrain.corpus.documents import BadRecordError, Block, Reject
from pretrain.corpus.lines import line_blocks
from pretrain.errors import UserError

LONGEST = 1 << 30
"""No line is longer: a resource of knowledge graphs is one line of a hundred megabytes."""


@dataclass(frozen=True)
class Note:
    """Something a person should know about a record that was kept all the same."""

    file: str
    line: int
    what: str


Item = Dialogue | Reject | Note
"""What a reader yields."""

Made = TypeVar("Made")


class Record(BaseModel):
    """Base of what a native JSON record must hold; keys that we do not use may be there too."""

    model_config = ConfigDict(frozen=True)


@dataclass(frozen=True)
class Line:
    """One line without its end, numbered from 1."""

    number: int
    raw: bytes

    def text(self) -> str:
        """Without a byte order mark, with white space.

        Raises:
            BadRecordError: it is no UTF-8.
        """
        try:
            return self.raw.decode("utf-8").removeprefix("\ufeff")
        except UnicodeDecodeError as error:
            raise bad("invalid_utf8", f"byte {error.start} of the line", self.number) from None

    @property
    def blank(self) -> bool:
        return not self.raw.strip()


def bad(reason: str, detail: str = "", line: int | None = None) -> BadRecordError:
    """The record at hand, or the one at `line`, cannot be used."""
    return BadRecordError(reason, detail, line=line)


def lines(file: File) -> Iterator[Line]:
    """The lines of a file. They end at `\\n` or `\\r\\n` and nowhere else: texts hold U+2028 and the like.

    Raises:
        UserError: the file cannot be read to its end.
    """
    with contextlib.closing(file.stream()) as stream:
        try:
            for block in line_blocks(stream, "lines", file.label, longest=LONGEST):
                if not isinstance(block, Block):
                    raise bad(block.reason, block.detail, block.line)
                found = block.payload.removesuffix(b"\n").split(b"\n") if block.payload else []
                for number, raw in enumerate(found, start=block.line or 1):
                    yield Line(number, raw.removesuffix(b"\r"))
        except BadRecordError as error:
            raise damaged(file, error) from None


def damaged(file: File, error: BadRecordError) -> UserError:
    """The error of a file whose bytes cannot be read to their end."""
    what = f"{error.reason.replace('_', ' ')}: {error.detail}"
    return UserError(what, where=file.label, mend="get the file again")


def from_lines(file: File, parse: Callable[[Line], Dialogue]) -> Iterator[Item]:
    """A dialogue for each line that is not blank, or why there is none; no name comes twice."""
    seen: set[str] = set()
    for line in lines(file):
        if line.blank:
            continue
        try:
            dialogue = checked(parse(line))
            if dialogue.id in seen:
                raise bad("duplicate_id", dialogue.id)
        except BadRecordError as error:
            yield rejected(file, error, line.number)
        else:
            seen.add(dialogue.id)
            yield dialogue


def checked(dialogue: Dialogue) -> Dialogue:
    """The dialogue itself.

    Raises:
        BadRecordError: it contradicts itself.
    """
    if found := flaw(dialogue):
        raise bad("bad_dialogue", found)
    return dialogue


def rejected(file: File, error: BadRecordError, line: int) -> Reject:
    """The reject of a record that begins at `line`."""
    return Reject(file.label, error.reason, error.detail, error.line or line)


def from_json(kind: type[Made] | TypeAdapter[Made], text: str | bytes) -> Made:
    """JSON as `kind`.

    Raises:
        BadRecordError: it is no JSON, or has another shape.
    """
    adapter = kind if isinstance(kind, TypeAdapter) else _adapter(kind)
    try:
        return adapter.validate_json(text)
    except ValidationError as error:
        raise refused(error) from None


def from_python(kind: type[Made] | TypeAdapter[Made], value: object) -> Made:
    """Parsed JSON as `kind`.

    Raises:
        BadRecordError: it has another shape.
    """
    adapter = kind if isinstance(kind, TypeAdapter) else _adapter(kind)
    try:
        return adapter.validate_python(value)
    except ValidationError as error:
        raise refused(error) from None


def refused(error: ValidationError) -> BadRecordError:
    """The first complaint of pydantic as one of ours."""
    first = error.errors(include_url=False, include_input=False)[0]
    if first["type"] == "json_invalid":
        return bad("bad_json", first["msg"].removeprefix("Invalid JSON: "))
    place = ".".join(map(str, first["loc"]))
    if first["type"] == "extra_forbidden":
        return bad("bad_record", f"unknown key {place}")
    return bad("bad_record", f"{place}: {first['msg']}" if place else first["msg"])


_ADAPTERS: dict[type, TypeAdapter] = {}


def _adapter(kind: type[Made]) -> TypeAdapter[Made]:
    if kind not in _ADAPTERS:
        _ADAPTERS[kind] = TypeAdapter(kind)
    return _ADAPTERS[kind]
