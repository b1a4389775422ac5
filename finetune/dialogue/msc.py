"""Multi-Session Chat (ParlAI's layout): up to five sessions of one pair of people, joined into one dialogue.

`msc_dialogue/session_N/SPLIT.txt` has session N and all before it; `msc_personasummary/session_N/SPLIT.txt`
has session N alone. A session is taken from its own file, else from those of later ones, else from the
summaries, which hold the same words with other quotes and capitals. One JSON file `{id: [{turn_id, text,
session}]}` is read too.

Speaker 0 opens the first session. Speakers take turns in each session, and who opens is the same in all:
names (`Speaker 1`, `bot_0`) may be numbers of crowd workers instead.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any

from pydantic import Field, TypeAdapter

from finetune.dialogue.dialogue import Dialogue, Session, Turn
from finetune.dialogue.files import File, Part, by_split
from finetune.dialogue.records import (
    Item,
    Line,
    Note,
    Record,
    bad,
    checked,
    from_json,
    from_python,
    lines,
    rejected,
)
from pretrain.corpus.documents import BadRecordError
from pretrain.errors import UserError

LAYOUT = "msc_dialogue/session_N/valid.txt with msc_personasummary/session_N/valid.txt"
FOLDERS = ("msc_dialogue", "msc_personasummary")
NUMBER = re.compile(r"session_(\d+)")
Personas = tuple[tuple[str, ...], ...]


class Said(Record):
    """One utterance."""

    text: str


class Before(Record):
    """A session as later ones remember it."""

    dialog: tuple[Said, ...]
    time_num: float | None = None
    time_unit: str | None = None


class Metadata(Record):
    """Which pair of people a session is of."""

    initial_data_id: str


class Meeting(Record):
    """A line of `msc_dialogue`."""

    dialog: tuple[Said, ...]
    metadata: Metadata
    personas: Personas = ()
    previous_dialogs: tuple[Before, ...] = ()
    init_personas: Personas = ()


class Beginning(Record):
    """The personas that both had in PersonaChat."""

    init_personas: Personas = ()


class Summary(Record):
    """A line of `msc_personasummary`."""

    dialog: tuple[Said, ...]
    initial_data_id: str
    init_personachat: Beginning = Beginning()


class FlatTurn(Record):
    """A turn of the one-file layout."""

    text: str
    turn_id: int
    session: int = Field(ge=1)


@dataclass
class Chat:
    """What the files say of one pair of people, by number of the session."""

    file: File
    line: int
    """Where it was met first."""
    texts: dict[int, tuple[str, ...]] = field(default_factory=dict)
    gaps: dict[int, str] = field(default_factory=dict)
    personas: dict[int, Personas] = field(default_factory=dict)


def parts(files: Sequence[File]) -> list[Part]:
    """All sessions of a split together."""
    sessions = [file for file in files if _session(file) and file.split]
    return by_split(sessions, home=_home) or by_split(files, r".*msc.*\.json")


def read(part: Part) -> Iterator[Item]:
    """One dialogue for each pair of people, in the order of the first file that knows them."""
    chats: dict[str, Chat] = {}
    for file in sorted(part.files, key=_trust):
        if file.path.suffix == ".json":
            yield from _flat(file)
            continue
        for line in lines(file):
            if line.blank:
                continue
            try:
                _listen(chats, file, line)
            except BadRecordError as error:
                yield rejected(file, error, line.number)
    for name, chat in chats.items():
        yield from _joined(name, chat)


def _trust(file: File) -> tuple[bool, int]:
    """Files in the order in which they are believed; later sessions repeat earlier ones."""
    return "personasummary" in str(file.path), _session(file)


def _session(file: File) -> int:
    """Number of the session whose folder this is; 0 if none."""
    match = NUMBER.fullmatch(file.path.parent.name)
    return int(match[1]) if match else 0


def _home(file: File) -> PurePosixPath:
    folder = file.path.parent.parent
    return folder.parent if folder.name in FOLDERS else folder


def _listen(chats: dict[str, Chat], file: File, line: Line) -> None:
    if "personasummary" in str(file.path):
        told = from_json(Summary, line.text())
        chat = chats.setdefault(told.initial_data_id, Chat(file, line.number))
        _put(chat, _session(file), told.dialog, {1: told.init_personachat.init_personas})
        return
    found = from_json(Meeting, line.text())
    chat = chats.setdefault(found.metadata.initial_data_id, Chat(file, line.number))
    number = len(found.previous_dialogs) + 1  # the metadata's own number is one too low
    _put(chat, number, found.dialog, {1: found.init_personas, number: found.personas})
    for earlier, before in enumerate(found.previous_dialogs, start=1):
        _put(chat, earlier, before.dialog, {})
        if before.time_num is not None and before.time_unit:
            chat.gaps.setdefault(earlier + 1, f"{before.time_num:g} {before.time_unit}")


def _put(chat: Chat, number: int, said: tuple[Said, ...], personas: dict[int, Personas]) -> None:
    chat.texts.setdefault(number, tuple(turn.text for turn in said))
    for session, told in personas.items():
        if told:
            chat.personas.setdefault(session, told)


def _joined(name: str, chat: Chat) -> Iterator[Item]:
    """The sessions up to the first that is missing."""
    count = next(number for number in range(1, len(chat.texts) + 2) if number not in chat.texts) - 1
    if count < len(chat.texts):
        what = f"{name}: session {count + 1} is missing, those after it are left out"
        yield Note(chat.file.label, chat.line, what)
    numbers = range(1, count + 1)
    turns = [
        Turn(at % 2, text, number - 1) for number in numbers for at, text in enumerate(chat.texts[number])
    ]
    sessions = tuple(Session(chat.gaps.get(number, ""), chat.personas.get(number, ())) for number in numbers)
    try:
        yield checked(Dialogue(name, tuple(turns), personas=chat.personas.get(1, ()), sessions=sessions))
    except BadRecordError as error:
        yield rejected(chat.file, bad(error.reason, f"{name}: {error.detail}"), chat.line)


def _flat(file: File) -> Iterator[Item]:
    try:
        chats = from_json(TypeAdapter(dict[str, Any]), b"\n".join(line.raw for line in lines(file)))
    except BadRecordError as error:
        raise UserError(f"{error.reason.replace('_', ' ')}: {error.detail}", where=file.label) from None
    for name, told in chats.items():
        chat = Chat(file, 1)
        try:
            turns = from_python(TypeAdapter(tuple[FlatTurn, ...]), told)
        except BadRecordError as error:
            yield rejected(file, bad(error.reason, f"{name}: {error.detail}"), 1)
            continue
        for turn in sorted(turns, key=lambda turn: turn.turn_id):
            chat.texts[turn.session] = (*chat.texts.get(turn.session, ()), turn.text)
        yield from _joined(name, chat)
