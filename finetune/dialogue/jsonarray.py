"""One JSON array in a file, element by element: data sets of half a gigabyte are a single line."""

from __future__ import annotations

import contextlib
import json
import re
from codecs import getincrementaldecoder
from collections.abc import Iterator
from typing import Any

from finetune.dialogue.files import File
from finetune.dialogue.records import damaged
from pretrain.corpus.documents import BadRecordError
from pretrain.errors import UserError

BLOCK_BYTES = 1 << 20
LONGEST = 1 << 26
"""No element has more characters: a file that is broken is not read to its end for nothing."""
SPACE = re.compile(r"\s*")


def elements(file: File) -> Iterator[tuple[int, Any]]:
    """Elements of the file's array, each with the line (from 1) that it begins on.

    Raises:
        UserError: it is no array, or breaks off; what came before has been given.
    """
    text = _Text(file)
    if text.next_character() != "[":
        raise text.broken("not an array")
    text.drop(1)
    while (mark := text.next_character()) != "]":
        if mark == ",":
            text.drop(1)
            text.next_character()
        yield text.line, text.element()
        if text.next_character() not in ",]":
            raise text.broken("expected , or ] after an element")


class _Text:
    """A file's characters from where reading stands."""

    def __init__(self, file: File) -> None:
        self.line = 1
        self._file, self._blocks = file, _blocks(file)
        self._held = ""
        self._decoder = json.JSONDecoder()

    def next_character(self) -> str:
        """The next that is no white space, which is dropped."""
        while True:
            self.drop(SPACE.match(self._held).end())  # type: ignore[union-attr]
            if self._held:
                return self._held[0]
            if not self._more():
                raise self.broken("the file ends inside the array")

    def element(self) -> Any:
        """The value that begins here."""
        while True:
            try:
                value, stop = self._decoder.raw_decode(self._held)
            except (ValueError, RecursionError) as error:
                if isinstance(error, RecursionError) or len(self._held) > LONGEST or not self._more():
                    raise self.broken(str(error)) from None
            else:
                self.drop(stop)
                return value

    def drop(self, count: int) -> None:
        """Go on `count` characters."""
        self.line += self._held.count("\n", 0, count)
        self._held = self._held[count:]

    def broken(self, what: str) -> UserError:
        """The error of a file that cannot be read on from here."""
        return UserError(
            f"bad JSON: {what}", where=f"{self._file.label}:{self.line}", mend="get the file again"
        )

    def _more(self) -> bool:
        more = next(self._blocks, "")
        self._held += more
        return bool(more)


def _blocks(file: File) -> Iterator[str]:
    decoder = getincrementaldecoder("utf-8-sig")()
    with contextlib.closing(file.stream()) as stream:
        try:
            while data := stream.read(BLOCK_BYTES):
                yield decoder.decode(data)
            decoder.decode(b"", final=True)
        except BadRecordError as error:
            raise damaged(file, error) from None
        except UnicodeDecodeError as error:
            raise UserError(
                f"no UTF-8: {error.reason}", where=file.label, mend="get the file again"
            ) from None
