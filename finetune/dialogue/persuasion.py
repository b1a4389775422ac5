"""PersuasionForGood: `full_dialog.csv`, one utterance a row (`Unit`), dialogues by `B2`, roles by `B4`.

Speaker 0 persuades, speaker 1 is persuaded. Rows are turns, also where one speaker has two in a row.
Columns of the annotated part (`er_label_1`, `ee_label_1`, `neg`, ...) become tags. The CSV is one file
without splits.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence

from finetune.dialogue.dialogue import Dialogue, Turn
from finetune.dialogue.files import File, Part, by_split
from finetune.dialogue.records import Item, Line, bad, lines, rejected
from pretrain.corpus.documents import BadRecordError
from pretrain.errors import UserError

LAYOUT = "full_dialog.csv"
ROLES = ("persuader", "persuadee")
ROW, TEXT, ROLE, NAME = "", "Unit", "B4", "B2"
NO_TAGS = {ROW, TEXT, ROLE, NAME, "Turn"}


def parts(files: Sequence[File]) -> list[Part]:
    """The one file."""
    return by_split(files, r"full_dialog\.csv")


def read(part: Part) -> Iterator[Item]:
    """Dialogues in the order of their first rows; one with a row that cannot be read is left out."""
    for file in part.files:
        yield from _dialogues(file)


def _dialogues(file: File) -> Iterator[Item]:
    found: dict[str, list[Turn]] = {}
    broken: dict[str, BadRecordError] = {}
    columns: list[str] = []
    waiting: BadRecordError | None = None  # a row too broken to tell its dialogue
    last = ""
    for line in lines(file):
        if not columns:
            columns = _header(file, line)
        elif not line.blank:
            try:
                row = _cells(line, columns)
            except BadRecordError as error:
                waiting = error
                continue
            name = row[NAME]
            if waiting:
                begins = name != last and row.get(ROW) in ("0", None)
                broken.setdefault(last if begins and last else name, waiting)
                waiting = None
            last = name
            try:
                found.setdefault(name, []).append(_turn(row, line))
            except BadRecordError as error:
                broken.setdefault(name, error)
    if waiting:
        broken.setdefault(last, waiting)
    for name, turns in found.items():
        if name in broken:
            why = broken[name]
            yield rejected(file, bad(why.reason, f"{why.detail} (dialogue {name})", why.line), 1)
        else:
            yield Dialogue(name, tuple(turns), roles=ROLES)  # each row has been checked


def _header(file: File, line: Line) -> list[str]:
    columns = next(csv.reader([line.raw.decode("utf-8-sig", "replace")]), [])
    missing = [column for column in (TEXT, ROLE, NAME) if column not in columns]
    if missing:
        raise UserError(f"no column {', '.join(missing)} in the first line", where=file.label)
    return columns


def _cells(line: Line, columns: list[str]) -> dict[str, str]:
    """The row by column. Rows are lines: a quote that does not close spoils one row, not the rest of the
    file.
    """
    try:
        cells = next(csv.reader([line.text()], strict=True))
    except csv.Error as error:
        raise bad("bad_csv", str(error), line.number) from None
    except BadRecordError as error:
        raise bad(error.reason, error.detail, line.number) from None
    if len(cells) != len(columns):
        raise bad("bad_csv", f"{len(cells)} cells for {len(columns)} columns", line.number)
    return dict(zip(columns, cells, strict=True))


def _turn(row: dict[str, str], line: Line) -> Turn:
    if row[ROLE] not in ("0", "1") or not row[TEXT].strip():
        what = "no text" if not row[TEXT].strip() else f"{ROLE} is {row[ROLE]!r}, not 0 or 1"
        raise bad("bad_record", what, line.number)
    tags = {key: value for key, value in row.items() if key not in NO_TAGS and value}
    return Turn(int(row[ROLE]), row[TEXT], tags=tags)
