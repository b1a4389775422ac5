"""What a checkpoint holds, and how it becomes complete or stays absent.

A checkpoint is a folder `RUN/checkpoints/step-00000100` of plain files, none of them pickled:

| file | content |
| --- | --- |
| `optimizer-R.safetensors` | rank R's flat slices `KEY/NAME@START`: fp32 `master`, `exp_avg`, `exp_avg_sq` |
| `frozen.safetensors` | parameters that do not train, and buffers |
| `memory-R.safetensors` | `LANE`: `[agents_per_lane, slots, d_model]` float32: what each agent carries |
| `state.json` | update, counters, dispatcher state, tracking run, shard-set hash, versions |
| `recipe.yaml`, `config.json` | the resolved recipe; the model's configuration |
| `COMMIT.json` | size and sha256 of every other file; written last |

Slices are cut by parameter, not by rank, so any world size and ZeRO stage can read them.

It is written in a folder that only its attempt uses (`pretrain.attempt`), and gets its name by one rename
when all of it is on the disk; `latest` moves last. A checkpoint that is pruned loses its name first, too.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import re
import shutil
from collections import defaultdict
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from pretrain.attempt import Attempt
from pretrain.errors import CheckpointError
from pretrain.files import digest, sync, write_atomically

_NAME = re.compile(r"step-(\d{8})")
_COMMIT = "COMMIT.json"
_LATEST = "latest"
_DAMAGED = "damaged"
_OTHER = "take another checkpoint of the run"

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Mark:
    """What the commit mark says of one file."""

    bytes: int
    sha256: str


@dataclass(frozen=True)
class Checkpoint:
    """A committed checkpoint, opened for reading."""

    path: Path

    @property
    def update(self) -> int:
        """The number of updates after which it was begun."""
        match = _NAME.fullmatch(self.path.name)
        assert match is not None
        return int(match[1])

    @cached_property
    def state(self) -> dict[str, Any]:
        """Content of `state.json`: counters, position of the data, versions.

        Raises:
            CheckpointError: it cannot be read.
        """
        try:
            return dict(json.loads((self.path / "state.json").read_text(encoding="utf-8")))
        except (OSError, ValueError) as error:
            raise self._refusal(f"state.json cannot be read: {error}") from None

    def verify(self, *, thorough: bool = True) -> None:
        """Compare every file with the commit mark: its size and, when `thorough`, its content.

        Raises:
            CheckpointError: names the first file that is missing or differs.
        """
        try:
            listed = json.loads((self.path / _COMMIT).read_text(encoding="utf-8"))["files"]
            marks = {str(name): Mark(**mark) for name, mark in listed.items()}
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            raise self._refusal(f"{_COMMIT} is missing or damaged") from None
        for name, mark in marks.items():
            file = self.path / name
            if not file.is_file():
                raise self._refusal(f"{name} is missing")
            if file.stat().st_size != mark.bytes:
                raise self._refusal(f"{name} is damaged ({file.stat().st_size} bytes, not {mark.bytes})")
        strays = {file.name for file in self.path.glob("*.safetensors")} - marks.keys()
        if strays:
            raise self._refusal(f"{min(strays)} is not part of it")
        if thorough:
            # Hashing lets other threads run.
            with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
                found = {name: pool.submit(digest, self.path / name) for name in marks}
                for name, mark in marks.items():
                    try:
                        same = found[name].result() == mark.sha256
                    except OSError as error:
                        raise self._refusal(f"{name} cannot be read: {error.strerror}") from None
                    if not same:
                        raise self._refusal(f"{name} is damaged (sha256 differs)")
        _ = self.state

    def slice(self, key: str, name: str, start: int, length: int) -> Tensor:
        """Elements `start:start+length` of a flattened parameter's `master` or moment, float32 on the CPU.

        Raises:
            CheckpointError: some of the elements are not there.
        """
        out = torch.empty(length, dtype=torch.float32)
        filled = 0
        for piece_start, piece_length, file in self._pieces.get((key, name), ()):
            low, high = max(start, piece_start), min(start + length, piece_start + piece_length)
            if low < high:
                with safe_open(file, "pt") as tensors:
                    view = tensors.get_slice(f"{key}/{name}@{piece_start}")
                    out[low - start : high - start] = view[low - piece_start : high - piece_start]
                filled += high - low
        if filled != length:
            raise CheckpointError(
                f"{key} of {name}: {length - filled} of {length} elements are missing",
                where=str(self.path),
                mend="the checkpoint is of another model; check the recipe",
            )
        return out

    @property
    def names(self) -> set[str]:
        """Of all parameters and buffers that it holds."""
        return {name for key, name in self._pieces if key == "master"} | self.frozen().keys()

    def has(self, key: str, name: str) -> bool:
        """Whether some of a parameter's `master` or moment `key` is there."""
        return (key, name) in self._pieces

    def frozen(self) -> dict[str, Tensor]:
        """Parameters that do not train, and buffers, by name."""
        with safe_open(self.path / "frozen.safetensors", "pt") as tensors:
            return {name: tensors.get_tensor(name) for name in tensors.keys()}  # noqa: SIM118

    def weights(self, shapes: dict[str, torch.Size]) -> Iterator[tuple[str, Tensor]]:
        """Full tensors of the named parameters and buffers, one at a time."""
        frozen = self.frozen()
        for name, shape in shapes.items():
            yield (
                name,
                (
                    frozen[name]
                    if name in frozen
                    else self.slice("master", name, 0, shape.numel()).view(shape)
                ),
            )

    def memory(self, lanes: list[int]) -> Tensor:
        """Memory of these lanes' agents, `[len(lanes) * agents_per_lane, slots, d_model]` float32."""
        found: dict[int, Tensor] = {}
        for file in sorted(self.path.glob("memory-*.safetensors")):
            with safe_open(file, "pt") as tensors:
                for key in tensors.keys():  # noqa: SIM118
                    if int(key) in lanes:
                        found[int(key)] = tensors.get_tensor(key)
        missing = [lane for lane in lanes if lane not in found]
        if missing:
            raise CheckpointError(
                f"no memory of lanes {missing}", where=str(self.path), mend="check data.lanes"
            )
        return torch.cat([found[lane] for lane in lanes])

    def _refusal(self, what: str) -> CheckpointError:
        return CheckpointError(what, where=str(self.path), mend=_OTHER)

    @cached_property
    def _pieces(self) -> dict[tuple[str, str], list[tuple[int, int, Path]]]:
        pieces: dict[tuple[str, str], list[tuple[int, int, Path]]] = defaultdict(list)
        for file in sorted(self.path.glob("optimizer-*.safetensors")):
            with safe_open(file, "pt") as tensors:
                for stored in tensors.keys():  # noqa: SIM118
                    key, _, rest = stored.partition("/")
                    name, _, start = rest.rpartition("@")
                    length = tensors.get_slice(stored).get_shape()[0]
                    pieces[key, name].append((int(start), length, file))
        return pieces


class Draft:
    """A checkpoint that one attempt is writing: every rank its files, then rank 0 commits."""

    def __init__(self, attempt: Attempt, update: int) -> None:
        self.attempt, self.update = attempt, update
        self.folder = attempt.staging / f"step-{update:08d}"
        self.final = attempt.staging.parent / self.folder.name

    def begin(self) -> None:
        """Rank 0, before any file.

        Raises:
            SupersededError: a newer attempt has taken this one's folder.
        """
        with self.attempt.owning():
            shutil.rmtree(self.folder, ignore_errors=True)
            self.folder.mkdir()

    def tensors(self, name: str, tensors: dict[str, Tensor]) -> dict[str, Mark]:
        """Write and sync one safetensors file; returns its name and mark.

        Raises:
            OSError: it could not be written whole.
        """
        path = self.folder / name
        try:
            save_file({key: value.detach().cpu().contiguous() for key, value in tensors.items()}, path)
        except SafetensorError as error:
            raise OSError(str(error)) from None
        # The library's files are for their owner alone; ours are for whoever may enter the folder.
        path.chmod(self.folder.stat().st_mode & 0o666)
        sync(path)
        return {name: mark(path)}

    def text(self, name: str, content: str) -> dict[str, Mark]:
        """Write and sync one text file; returns its name and mark."""
        write_atomically(self.folder / name, content)
        return {name: mark(self.folder / name)}

    def commit(self, files: dict[str, Mark]) -> Checkpoint:
        """Rank 0, after every file: the mark, the rename, the pointer, in this order.

        A checkpoint of the same update, which can only be one that nobody resumed from, is replaced.

        Raises:
            SupersededError: a newer attempt owns the run; nothing is committed.
            OSError: the mark could not be written; nothing is committed.
        """
        listed = {name: asdict(found) for name, found in files.items()}
        with self.attempt.owning():
            write_atomically(self.folder / _COMMIT, json.dumps({"files": listed}, indent=1, sort_keys=True))
            if self.final.exists():
                _take_away(self.final, self.attempt)
            self.attempt.require_newest()
            os.rename(self.folder, self.final)
            sync(self.final.parent)
        # A hint for people: a disk that is full by now does not undo the commit.
        with contextlib.suppress(OSError):
            write_atomically(self.final.parent / _LATEST, self.final.name + "\n")
        shutil.rmtree(self.final.parent / _DAMAGED / self.final.name, ignore_errors=True)
        return Checkpoint(self.final)

    def discard(self) -> None:
        """Rank 0, when it will not be committed: give its room back."""
        shutil.rmtree(self.folder, ignore_errors=True)


def mark(path: Path) -> Mark:
    """What the commit mark says of a file as it is now."""
    return Mark(path.stat().st_size, digest(path))


def committed(run_dir: Path) -> list[Checkpoint]:
    """Committed checkpoints of a run, oldest first."""
    return [Checkpoint(path) for path in sorted(_folders(run_dir)) if (path / _COMMIT).is_file()]


def latest(run_dir: Path) -> Checkpoint | None:
    """The newest committed checkpoint, by its commit mark, not by the pointer; None in a fresh run."""
    found = committed(run_dir)
    return found[-1] if found else None


@dataclass(frozen=True)
class Found:
    """The result of `newest_whole`."""

    checkpoint: Checkpoint | None
    """None in a run that has saved nothing yet."""
    refused: tuple[tuple[Checkpoint, CheckpointError], ...]
    """Newer ones and why they are refused, newest first."""

    def tell(self) -> None:
        """Warn of every one that is refused."""
        for damaged, error in self.refused:
            assert self.checkpoint is not None
            logger.warning(
                "%s is refused: %s; going back to %s", damaged.path, error.what, self.checkpoint.path.name
            )


def newest_whole(run_dir: Path, *, thorough: bool = True) -> Found:
    """The newest checkpoint of a run that is not damaged.

    Args:
        thorough: compare contents by their hashes; else presence and sizes only, which takes no time.

    Raises:
        CheckpointError: there are checkpoints, and each is damaged.
    """
    refused = []
    for path in sorted(_folders(run_dir), reverse=True):
        saved = Checkpoint(path)
        try:
            saved.verify(thorough=thorough)
        except CheckpointError as error:
            refused.append((saved, error))
        else:
            return Found(saved, tuple(refused))
    if refused:
        reasons = "; ".join(f"{saved.path.name}: {error.what}" for saved, error in refused)
        raise CheckpointError(
            f"no checkpoint is whole: {reasons}",
            where=str(run_dir),
            mend="bring one back from a copy, or start again under another name",
        )
    return Found(None, ())


def set_aside(attempt: Attempt, update: int) -> None:
    """Take checkpoints after `update`, which nobody can resume from, out of the run.

    People find them in `damaged`, until the run saves the same update again.

    Raises:
        SupersededError: a newer attempt owns the run.
    """
    with attempt.owning():
        for path in _folders(attempt.run_dir):
            if Checkpoint(path).update > update:
                attempt.require_newest()
                place = path.parent / _DAMAGED / path.name
                shutil.rmtree(place, ignore_errors=True)
                place.parent.mkdir(exist_ok=True)
                os.rename(path, place)


def prune(attempt: Attempt, keep_last: int, keep_every: int, best: float | None = None) -> None:
    """Remove checkpoints that the policy does not keep; never `best`.

    Raises:
        SupersededError: a newer attempt owns the run.
    """
    with attempt.owning():
        for checkpoint in committed(attempt.run_dir)[:-keep_last]:
            if not (keep_every and checkpoint.update % keep_every == 0) and checkpoint.update != best:
                _take_away(checkpoint.path, attempt)


def resolve(path: Path) -> Checkpoint:
    """The checkpoint that a user names: a checkpoint folder, or a run folder (then its newest).

    Raises:
        CheckpointError: neither.
    """
    if _NAME.fullmatch(path.name) and (path / _COMMIT).is_file():
        return Checkpoint(path)
    found = latest(path)
    if found is None:
        raise CheckpointError(
            "no committed checkpoint here", where=str(path), mend="name a run or a step-* folder"
        )
    return found


def resolve_whole(path: Path) -> Checkpoint:
    """As `resolve`, with every file compared; damaged ones in a run folder are warned of and passed over.

    Of a run that keeps its best checkpoint (`validation.keep_best`) it is the best.

    Raises:
        CheckpointError: nothing whole is there.
    """
    if _NAME.fullmatch(path.name):
        saved = resolve(path)
        saved.verify()
        return saved
    found = newest_whole(path)
    found.tell()
    return _best(found.checkpoint or resolve(path))


def _best(newest: Checkpoint) -> Checkpoint:
    """The best of the run that `newest` belongs to, if the run keeps it; else `newest`."""
    best = newest.state.get("best") if newest.state.get("keep_best") else None
    for saved in committed(newest.path.parent.parent):
        if best and saved.update == best["update"]:
            saved.verify()
            return saved
    return newest


def _folders(run_dir: Path) -> list[Path]:
    folder = run_dir / "checkpoints"
    return [path for path in folder.iterdir() if _NAME.fullmatch(path.name)] if folder.is_dir() else []


def _take_away(path: Path, attempt: Attempt) -> None:
    """Remove a checkpoint: its name at once, by a rename that only the owner of the run can make."""
    attempt.require_newest()
    away = attempt.staging / f"away-{path.name}"
    shutil.rmtree(away, ignore_errors=True)
    os.rename(path, away)
    shutil.rmtree(away, ignore_errors=True)
