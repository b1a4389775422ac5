"""Wizard of Wikipedia as the authors of KI published it: `SPLIT.src`, `.tgt` and `.voken.src`, line by line.

Word pieces of a lower-case BERT with spaces between. A source is the previous turns run together without a
border, cut to its last 40 pieces; a voken is the number of a knowledge item for each of its pieces, 0 for
none. A line becomes a dialogue of two turns: the text is the pieces put together, the pieces themselves are
kept beside.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import zip_longest

from finetune.dialogue.dialogue import Dialogue, Turn
from finetune.dialogue.files import File, Part, by_split
from finetune.dialogue.records import Item, Line, bad, checked, lines, rejected
from pretrain.corpus.documents import BadRecordError
from pretrain.errors import UserError

LAYOUT = "valid.src, valid.tgt, valid.voken.src; test.seen.src, ..."
CONTINUES = "##"
SOURCE, TARGET, VOKENS = ".src", ".tgt", ".voken.src"


def parts(files: Sequence[File]) -> list[Part]:
    """The source of each split; the rest is looked for beside it."""
    return by_split(files, r"(train|valid|test)(\.seen|\.unseen)?\.src", split=_split)


def read(part: Part) -> Iterator[Item]:
    """Pairs of context and reply in the order of the lines."""
    for source in part.files:
        stem = _stem(source)
        columns = [_beside(source, stem + ending) for ending in (SOURCE, TARGET, VOKENS)]
        for number, row in enumerate(zip_longest(*map(lines, columns))):
            if not all(row):
                raise UserError(
                    f"line {number + 1} is not in every parallel file",
                    where=source.label,
                    mend="get the files again",
                )
            try:
                yield checked(_dialogue(f"{part.label}_{number}", *row))
            except BadRecordError as error:
                yield rejected(source, error, number + 1)


def pieces_to_text(pieces: Sequence[str]) -> str:
    """Word pieces put together; one that continues a word which was cut off begins the text."""
    return " ".join(pieces).replace(f" {CONTINUES}", "").removeprefix(CONTINUES)


def _split(file: File) -> str:
    subset = next((word for word in ("unseen", "seen") if f".{word}." in file.name), "")
    return f"{file.split}_{subset}" if subset and file.split else file.split


def _stem(file: File) -> str:
    return next(
        (file.name.removesuffix(e) for e in (VOKENS, SOURCE, TARGET) if file.name.endswith(e)), file.name
    )


def _beside(file: File, name: str) -> File:
    found = file.beside(name)
    if not found:
        raise UserError(f"no {name} beside it", where=file.label, mend=f"expected {LAYOUT}")
    return found


def _dialogue(name: str, source: Line, target: Line, vokens: Line) -> Dialogue:
    pieces, reply = source.text().split(), target.text().split()
    numbers = vokens.text().split()
    if not all(number.isdecimal() for number in numbers):
        raise bad("bad_record", "vokens that are no numbers")
    said = Turn(0, pieces_to_text(pieces), pieces=tuple(pieces), vokens=tuple(map(int, numbers)))
    return Dialogue(name, (said, Turn(1, pieces_to_text(reply), pieces=tuple(reply))))
