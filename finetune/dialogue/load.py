"""`NAME:PATH` to dialogues: which reader, which files, which split, and what was refused."""

from __future__ import annotations

import difflib
import hashlib
import math
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Protocol, overload

from finetune.dialogue import (
    convai2,
    crd,
    dailydialog,
    dailydialog_plusplus,
    jsonl,
    long,
    msc,
    persuasion,
    ptb,
    synthetic,
    wow,
    wow_ki,
)
from finetune.dialogue.dialogue import Dialogue
from finetune.dialogue.files import File, Part, find_files
from finetune.dialogue.records import Item, Note
from pretrain.corpus.documents import Reject
from pretrain.errors import UserError

SPLITS = ("train", "valid", "test")
CARVE = "#carve="
CARVED = 0.1
"""Share that valid and test get each, of data that have no splits of their own."""
MAX_REJECTED = 0.05
HOPELESS = 1000
"""Records after which a file that is nearly all malformed is not read to its end."""


class Reader(Protocol):
    """A module that reads one native layout."""

    LAYOUT: str
    """What its files are called, for error messages."""

    def parts(self, files: Sequence[File]) -> list[Part]:
        """Those of `files` that hold dialogues, by data set and split."""

    def read(self, part: Part) -> Iterator[Item]:
        """Dialogues, rejects and notes.

        Raises:
            UserError: a file is damaged, or one that belongs to it is missing.
        """


READERS: Mapping[str, Reader] = {
    "convai2": convai2,
    "dailydialog": dailydialog,
    "dailydialog_plusplus": dailydialog_plusplus,
    "msc": msc,
    "persuasion": persuasion,
    "wow": wow,
    "wow_ki": wow_ki,
    "crd": crd,
    "ptb": ptb,
    "long": long,
    "jsonl": jsonl,
}
NAMES = (*READERS, "synthetic")


@dataclass(frozen=True)
class Dialogues(Sequence[Dialogue]):
    """The dialogues of a source, in the order of its files, and an account of the reading."""

    source: str
    items: tuple[Dialogue, ...]
    splits: Mapping[str, int]
    """Dialogues of each split that was read; "" where the data have none."""
    rejected: tuple[Reject, ...] = ()
    """Malformed records."""
    notes: tuple[Note, ...] = ()
    """What was amended in records that were kept."""
    files: tuple[str, ...] = ()
    """What was read."""
    passed_over: tuple[str, ...] = ()
    """Files of the same layout that were not: other splits, or the same dialogues in another form."""

    def __len__(self) -> int:
        return len(self.items)

    def __iter__(self) -> Iterator[Dialogue]:
        return iter(self.items)

    @overload
    def __getitem__(self, index: int) -> Dialogue: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[Dialogue, ...]: ...
    def __getitem__(self, index: int | slice) -> Dialogue | tuple[Dialogue, ...]:
        return self.items[index]


@dataclass(frozen=True)
class Source:
    """`NAME:PATH`, or `NAME:PATH#carve=0.1`."""

    name: str
    place: str
    carve: float | None = None

    @classmethod
    def parse(cls, spec: str) -> Source:
        """Take `spec` apart.

        Raises:
            UserError: no such reader, or nothing to read.
        """
        name, colon, place = spec.partition(":")
        if name not in NAMES or not colon:
            near = difflib.get_close_matches(name, NAMES, n=1)
            hint = f"did you mean '{near[0]}'? " if near and near[0] != name else ""
            raise UserError(
                f"no data set '{name}'" if colon else "not NAME:PATH",
                where=spec,
                mend=f"{hint}NAME is one of: {', '.join(NAMES)}",
            )
        place, mark, share = place.partition(CARVE)
        carve = _share(spec, share) if mark else None
        if not place and name != "synthetic":
            raise UserError("no path", where=spec, mend=f"{name}:PATH, with {READERS[name].LAYOUT}")
        return cls(name, place, carve)

    def __str__(self) -> str:
        return f"{self.name}:{self.place}" + (f"{CARVE}{self.carve}" if self.carve is not None else "")

    def absolute(self) -> Source:
        """The same from whatever folder it is read later."""
        if self.generated:
            return self
        return replace(self, place=os.path.abspath(os.path.expanduser(self.place)))

    @property
    def generated(self) -> bool:
        """Whether it is made, not read."""
        return self.name == "synthetic" and not (self.place and Path(self.place).exists())


def load(spec: str, split: str | None = None, *, max_rejected: float = MAX_REJECTED) -> Dialogues:
    """The dialogues of `NAME:PATH`.

    Args: spec: NAME is one of `NAMES`; PATH a file, folder, zip or glob in the native layout of that data
        set. `synthetic:` takes options of `synthetic.Grammar` in the place of a path, or the path of a
        folder that `membart data make-synthetic` made. With `#carve=S` at its end, a share S is held out
        for each of valid and test, whatever splits the data have. split: train, valid or test; None is all
        there are. `valid_seen` and the like are parts of a split. Data without splits are carved: 10 % each
        for valid and test, by a hash of the dialogues' names. max_rejected: share of the records that may
        be malformed, and one may in any case unless it is 0; those are skipped and told in `rejected`.

    Raises:
        UserError: nothing there, no such split, a damaged file, or more malformed records than allowed.
    """
    source = Source.parse(spec)
    if source.generated:
        return _generated(source, split)
    reader = READERS.get(source.name, jsonl)
    parts = _parts(source, reader)
    wholes = [part for part in parts if not part.split]
    named = [part for part in parts if part.split]
    carved = split is not None and (source.carve is not None or not named)
    chosen = (named or wholes) if split is None or carved else [p for p in named if _within(p.split, split)]
    if not chosen or (carved and split not in SPLITS):
        raise _no_split(source, str(split), SPLITS if carved else {part.split: 0 for part in named})
    found = _read(source, reader, chosen, max_rejected)
    if carved:
        items = carve(found.items, str(split), source.carve or CARVED)
        if not items:
            raise UserError(f"{len(found)} dialogues are too few to hold some out", where=str(source))
        found = replace(found, items=items, splits={str(split): len(items)})
    others = [file.label for part in parts for file in (*part.files, *part.others)]
    return replace(found, passed_over=tuple(label for label in others if label not in found.files))


def carve(dialogues: Sequence[Dialogue], split: str, share: float) -> tuple[Dialogue, ...]:
    """The dialogues of one split of data that have none: `share` for valid, as much for test, by hashes of
    names.
    """
    ranked = sorted(dialogues, key=lambda dialogue: hashlib.blake2b(dialogue.id.encode()).digest())
    count = max(round(share * len(ranked)), 1)
    pieces = {"valid": ranked[:count], "test": ranked[count : 2 * count], "train": ranked[2 * count :]}
    names = {dialogue.id for dialogue in pieces[split]}
    return tuple(dialogue for dialogue in dialogues if dialogue.id in names)


def _share(spec: str, text: str) -> float:
    try:
        share = float(text)
    except ValueError:
        share = math.nan
    if not 0 < share < 0.5:
        raise UserError(f"carve={text} is no share between 0 and 0.5", where=spec)
    return share


def _generated(source: Source, split: str | None) -> Dialogues:
    grammar = synthetic.Grammar.parse(source.place)
    if split is not None and split not in SPLITS:
        raise _no_split(source, split, SPLITS)
    made = {name: synthetic.generate(grammar, name) for name in ((split,) if split else SPLITS)}
    counts = {name: len(dialogues) for name, dialogues in made.items()}
    return Dialogues(str(source), tuple(chain.from_iterable(made.values())), counts)


def _parts(source: Source, reader: Reader) -> list[Part]:
    """What lies there, of one data set."""
    files = find_files(source.place)
    parts = reader.parts(files)
    if not parts:
        raise UserError(f"no {source.name} files there", where=source.place, mend=f"expected {reader.LAYOUT}")
    homes = sorted({str(part.home) for part in parts})
    if len(homes) > 1:
        raise UserError(
            f"{len(homes)} data sets in one folder",
            where=source.place,
            mend=f"name one of: {', '.join(homes)}",
        )
    return sorted(parts, key=lambda part: (*(not part.split.startswith(name) for name in SPLITS), part.split))


def _within(split: str, wanted: str) -> bool:
    return split == wanted or split.startswith(f"{wanted}_")


def _no_split(source: Source, split: str, there: Iterable[str]) -> UserError:
    names = ", ".join(there)
    return UserError(
        f"no {split} split",
        where=str(source),
        mend=f"there is: {names}; or hold some of it out: {source}{CARVE}{CARVED}",
    )


def _read(source: Source, reader: Reader, parts: Sequence[Part], max_rejected: float) -> Dialogues:
    """Everything in `parts`.

    Raises:
        UserError: nothing in it, or too much that is malformed.
    """
    items: list[Dialogue] = []
    rejects: list[Reject] = []
    notes: list[Note] = []
    splits: dict[str, int] = {}
    for part in parts:
        before = len(items)
        for item in reader.read(part):
            if isinstance(item, Dialogue):
                items.append(item)
            elif isinstance(item, Note):
                notes.append(item)
            else:
                rejects.append(item)
                if len(items) + len(rejects) >= HOPELESS:
                    _check(source, len(items), rejects, max_rejected)
        splits[part.split] = len(items) - before
    _check(source, len(items), rejects, max_rejected)
    if not items:
        raise UserError(
            "no dialogue in it", where=", ".join(file.label for part in parts for file in part.files)
        )
    files = tuple(file.label for part in parts for file in part.files)
    return Dialogues(str(source), tuple(items), splits, tuple(rejects), tuple(notes), files)


def _check(source: Source, good: int, rejects: Sequence[Reject], max_rejected: float) -> None:
    total = good + len(rejects)
    if rejects and (not good or len(rejects) > math.ceil(max_rejected * total)):
        first = rejects[0]
        raise UserError(
            f"{len(rejects)} of {total} records are malformed, the first: {first.why}",
            where=first.place,
            mend=f"mend them, allow a larger share than {max_rejected:g}, or is this no {source.name}?",
        )
