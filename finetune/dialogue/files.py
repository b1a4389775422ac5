"""The files of a data set, wherever they lie: alone, in a folder, in a zip, in a zip in a zip, gzipped or
not.
"""

from __future__ import annotations

import contextlib
import glob
import io
import os
import re
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

from pretrain.corpus.streams import RawInput, Stream
from pretrain.errors import UserError

PACKED = (".gz", ".zst", ".xz", ".bz2")
"""A file with such an ending beside the native name counts as the native file."""
SPLITS: Mapping[str, str] = {
    "train": "train",
    "trainset": "train",
    "training": "train",
    "valid": "valid",
    "validset": "valid",
    "validation": "valid",
    "val": "valid",
    "dev": "valid",
    "test": "test",
    "testset": "test",
}
"""What data sets call their splits, and what we do."""


@dataclass(frozen=True)
class File:
    """One file of a data set."""

    path: PurePosixPath
    """Where it is under its native name, without `.gz`; an archive counts as a folder."""
    label: str
    """Its name for people: as it is stored."""
    open: Callable[[], RawInput] = field(repr=False)
    shelf: Mapping[PurePosixPath, File] = field(repr=False, compare=False)
    """All files around it, by their path."""
    alone: bool = False
    """Whether the user named this very file."""

    @property
    def name(self) -> str:
        return self.path.name

    @property
    def split(self) -> str:
        """train, valid or test where its name says so, or the folder of that name it was found in; else
        empty.
        """
        folder = "" if self.alone else SPLITS.get(self.path.parent.name.lower(), "")
        return split_of(self.name) or folder

    @property
    def home(self) -> PurePosixPath:
        """The folder of the data set: not that of a split, and not an archive of one."""
        folder = self.path.parent
        while folder.name.lower() in SPLITS or folder.suffix == ".zip":
            folder = folder.parent
        return folder

    def stream(self) -> Stream:
        """Its bytes, decompressed.

        Raises:
            UserError: it cannot be opened.
        """
        try:
            return Stream(self.open())
        except OSError as error:
            raise UserError(f"cannot be read ({error.strerror or error})", where=self.label) from None

    def beside(self, *names: str) -> File | None:
        """The first of `names` that lies in the same folder."""
        found = (self.shelf.get(self.path.with_name(name)) for name in names)
        return next((file for file in found if file), None)


@dataclass(frozen=True)
class Part:
    """Files that together hold the dialogues of one split."""

    split: str
    """train, valid, test, one of these with `_seen` or `_unseen`, or empty where the layout tells none."""
    home: PurePosixPath
    files: tuple[File, ...]
    others: tuple[File, ...] = ()
    """Files that hold the same dialogues in another form and are not read."""

    @property
    def label(self) -> str:
        """What the dialogues are named after where they have no names of their own."""
        return self.split or self.files[0].path.stem


def split_of(name: str) -> str:
    """The split that a file name speaks of; empty if none."""
    words = re.split(r"[^a-z]+", name.lower())
    return next((SPLITS[word] for word in words if word in SPLITS), "")


def find_files(place: str) -> list[File]:
    """All files of a file, folder, archive or glob, sorted by path.

    Raises:
        UserError: there is nothing.
    """
    path = Path(place).expanduser()
    try:
        if path.is_dir():
            found = _folder(path)
        elif (existing := _existing(path)) is not None:
            if existing.suffix == ".zip":
                found = _archive(existing, str(existing), PurePosixPath(existing.as_posix()))
            else:
                found = _alone([existing])
        else:
            matches = sorted(glob.glob(str(path), recursive=True)) if glob.has_magic(place) else []
            found = _alone([Path(match) for match in matches if Path(match).is_file()])
    except OSError as error:
        raise UserError(
            f"cannot be read ({error.strerror or error})", where=str(error.filename or place)
        ) from None
    if not found:
        what = "nothing is in this folder" if path.is_dir() else "no such file or folder"
        raise UserError(what, where=place, mend="check the path")
    return [found[key] for key in sorted(found)]


def by_split(
    files: Iterable[File],
    main: str = ".*",
    *,
    split: Callable[[File], str] = lambda file: file.split,
    home: Callable[[File], PurePosixPath] = lambda file: file.home,
) -> list[Part]:
    """A part for each data set and split among the files whose names match `main`, or that were named
    alone.
    """
    pattern = re.compile(main, re.IGNORECASE)
    groups: dict[tuple[PurePosixPath, str], list[File]] = {}
    for file in files:
        if file.alone or pattern.fullmatch(file.name):
            groups.setdefault((home(file), split(file)), []).append(file)
    return [Part(split, home, tuple(group)) for (home, split), group in groups.items()]


def singly(parts: Iterable[Part], rank: Callable[[File], Any]) -> list[Part]:
    """The parts, each with the one file of the highest rank: the others hold the same dialogues."""
    ranked = ((part, sorted(part.files, key=rank, reverse=True)) for part in parts)
    return [replace(part, files=(best,), others=tuple(rest)) for part, (best, *rest) in ranked]


def _existing(path: Path) -> Path | None:
    names = (path, *(path.with_name(path.name + ending) for ending in PACKED))
    return next((name for name in names if name.is_file()), None)


def _alone(paths: Sequence[Path]) -> dict[PurePosixPath, File]:
    """Files that the user named one by one; the shelf around each is its folder."""
    shelves = {folder: _folder(folder, deep=False) for folder in {path.parent for path in paths}}
    found: dict[PurePosixPath, File] = {}
    for path in sorted(paths, key=_plain_first):
        native = _native(PurePosixPath(path.as_posix()))
        file = File(native, str(path), _opener(path), shelves[path.parent], alone=True)
        found.setdefault(native, file)
    return found


def _folder(folder: Path, deep: bool = True) -> dict[PurePosixPath, File]:
    shelf: dict[PurePosixPath, File] = {}
    for root, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith(".")) if deep else []
        for path in sorted((Path(root) / name for name in names), key=_plain_first):
            if path.name.startswith(".") or not path.is_file():
                continue
            if path.suffix == ".zip" and deep:
                shelf.update(_archive(path, str(path), PurePosixPath(path.as_posix())))
            else:
                _put(shelf, PurePosixPath(path.as_posix()), str(path), _opener(path))
    return shelf


def _archive(source: Path | io.BytesIO, label: str, root: PurePosixPath) -> dict[PurePosixPath, File]:
    """Files of a zip, and of zips in it."""
    shelf: dict[PurePosixPath, File] = {}
    with _zip_errors_as_os_errors():
        archive = zipfile.ZipFile(source)
    for name in sorted(archive.namelist()):
        if name.endswith("/") or "__MACOSX" in name:
            continue
        path, inner = root / name, f"{label}!{name}"
        if name.endswith(".zip"):
            with _zip_errors_as_os_errors():
                content = io.BytesIO(archive.read(name))
            shelf.update(_archive(content, inner, path))
        else:
            _put(shelf, path, inner, partial(_Member, archive, name))
    return shelf


class _Member:
    """A file in a zip, as `RawInput`: whatever is wrong with it is an OSError."""

    def __init__(self, archive: zipfile.ZipFile, name: str) -> None:
        with _zip_errors_as_os_errors():
            self._file = archive.open(name)

    def read(self, size: int, /) -> bytes:
        with _zip_errors_as_os_errors():
            return self._file.read(size)

    def close(self) -> None:
        self._file.close()


@contextlib.contextmanager
def _zip_errors_as_os_errors() -> Iterator[None]:
    try:
        yield
    except (
        zipfile.BadZipFile,
        zlib.error,
        EOFError,
        RuntimeError,
    ) as error:  # RuntimeError: needs a password
        raise OSError(0, f"broken zip: {error}") from None


def _put(
    shelf: dict[PurePosixPath, File], path: PurePosixPath, label: str, open: Callable[[], RawInput]
) -> None:
    native = _native(path)
    shelf.setdefault(native, File(native, label, open, shelf))


def _native(path: PurePosixPath) -> PurePosixPath:
    return path.with_suffix("") if path.suffix in PACKED else path


def _plain_first(path: Path) -> tuple[bool, Path]:
    return path.suffix in PACKED, path


def _opener(path: Path) -> Callable[[], RawInput]:
    return lambda: path.open("rb")
