"""Folders that a step makes and later steps trust: a manifest with the checksum of every file beside it.

A folder is complete or absent: it grows beside its place and is renamed (`pretrain.corpus.workshop`). Its
`hash` stands for all it holds, so a later step can tell whether what it was made from is still the same.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, BinaryIO
from zipfile import BadZipFile

from pretrain.corpus.workshop import LOCK, discard, disk_errors, publish, workshop
from pretrain.errors import UserError
from pretrain.files import digest, sync

MANIFEST, PLAN = "manifest.json", "plan.json"


@dataclass(frozen=True)
class Kind:
    """What a folder is."""

    name: str
    """For people: "annotations", "knowledge base"."""
    command: str
    """Makes such a folder."""
    version: int = 1

    @property
    def format(self) -> str:
        return f"membart {self.name}"


def require_free(target: Path) -> None:
    """Nothing may be lost by writing there.

    Raises:
        UserError: something is there already.
    """
    if target.exists() and not (target.is_dir() and not any(target.iterdir())):
        raise UserError("already there", where=str(target), mend="choose another --out, or delete it first")


@contextlib.contextmanager
def making(target: Path) -> Iterator[Path]:
    """A folder to fill and `seal`; it becomes `target` at the end, or nothing is left of it.

    Raises:
        UserError: something is there already, another process makes it, or the disk is full.
    """
    require_free(target)
    with workshop(target, restart=True) as folder:
        try:
            yield folder
        except BaseException:
            with contextlib.suppress(OSError):
                discard(folder)
            raise
        publish(folder, target)


@contextlib.contextmanager
def resumable(target: Path, plan: Mapping[str, Any], *, restart: bool = False) -> Iterator[Path]:
    """Like `making`, but what an interrupted call left is there again for one of the same `plan`.

    Raises:
        UserError: also if it was begun with another plan.
    """
    require_free(target)
    with workshop(target, restart=restart) as folder:
        content = json.dumps(plan, sort_keys=True)
        file = folder / PLAN
        if file.is_file() and file.read_text(encoding="utf-8") != content:
            raise UserError(
                "begun with other inputs or options",
                where=str(folder),
                mend="give those again, or --restart to begin anew",
            )
        with disk_errors(target):
            file.write_text(content, encoding="utf-8")
        yield folder
        publish(folder, target)


def put(file: Path, write: Callable[[BinaryIO], Any]) -> None:
    """Write a file aside and give it its name when it is whole and on the disk."""
    aside = file.with_name(f"{file.name}.part")
    with aside.open("wb") as handle:
        write(handle)
        handle.flush()
        os.fsync(handle.fileno())
    aside.replace(file)


@contextlib.contextmanager
def left_behind(file: Path) -> Iterator[None]:
    """Read what an interrupted call left.

    Raises:
        UserError: it is damaged.
    """
    try:
        yield
    except (OSError, ValueError, EOFError, RuntimeError, BadZipFile, UnpicklingError) as error:
        what = str(error).partition("\n")[0] or type(error).__name__
        raise UserError(
            f"left by an interrupted call, and damaged ({what})",
            where=str(file),
            mend="--restart to begin anew",
        ) from None


def seal(folder: Path, kind: Kind, facts: Mapping[str, Any], about: Mapping[str, Any]) -> None:
    """Write the manifest of all files in `folder`.

    Args:
        facts: what identifies the content, as JSON; the hash covers it and the files.
        about: what does not: names of inputs, times, speeds.
    """
    with disk_errors(folder):
        (folder / PLAN).unlink(missing_ok=True)
        files: dict[str, Any] = {}
        for file in sorted(entry for entry in folder.iterdir() if entry.is_file() and entry.name != LOCK):
            sync(file)
            files[file.name] = {"bytes": file.stat().st_size, "sha256": digest(file)}
        identity = {"format": kind.format, "version": kind.version, **facts, "files": files}
        mark = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()
        content = json.dumps({**identity, "about": dict(about), "hash": mark}, indent=1, ensure_ascii=False)
        (folder / MANIFEST).write_text(content + "\n", encoding="utf-8")
        sync(folder / MANIFEST)


def read(folder: Path, kind: Kind) -> dict[str, Any]:
    """The manifest of a folder, after every file was compared with its checksum (about a second a GB).

    Raises:
        UserError: absent, damaged, or of another format.
    """
    manifest = look(folder, kind)
    for name, mark in manifest["files"].items():
        file = folder / name
        problem = ""
        try:
            if file.stat().st_size != mark["bytes"]:
                problem = f"{name} has {file.stat().st_size:,} bytes, not {mark['bytes']:,}"
            elif digest(file) != mark["sha256"]:
                problem = f"{name} is damaged (sha256 differs)"
        except OSError as error:
            problem = f"{name} cannot be read ({error.strerror or error})"
        if problem:
            raise UserError(problem, where=str(folder), mend=f"delete it and make it again: {kind.command}")
    return manifest


def look(folder: Path, kind: Kind) -> dict[str, Any]:
    """The manifest alone.

    Raises:
        UserError: there is none, or it is of another format or version.
    """
    make = f"make it with `{kind.command}`"
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        raise UserError(f"no {kind.name} here", where=str(folder), mend=make) from None
    except (OSError, ValueError) as error:
        raise UserError(f"{MANIFEST} cannot be read ({error})", where=str(folder), mend=make) from None
    found = manifest.get("format") if isinstance(manifest, dict) else None
    if found != kind.format:
        raise UserError(f"this is {found or 'something else'}, not {kind.name}", where=str(folder), mend=make)
    if manifest.get("version") != kind.version:
        raise UserError(
            f"format {manifest.get('version')} of {kind.name}, this program reads {kind.version}",
            where=str(folder),
            mend=make,
        )
    return dict(manifest)


def content_hash(folder: Path) -> str | None:
    """What stands for all that a folder holds, whatever it is; None where no such folder can be read."""
    try:
        found = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    mark = found.get("hash") if isinstance(found, dict) else None
    return mark if isinstance(mark, str) else None
