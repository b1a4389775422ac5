"""What is kept on disk about an upload: what the run is, how far it is, and the artifacts that wait.

RUN/metrics.jsonl             training and validation, written by rank 0
RUN/system-NODE.jsonl         one a node
RUN/tracking/run.json         RunRecord: written by the trainer
RUN/tracking/progress.json    Progress: written by whoever uploads, under upload.lock
RUN/tracking/artifacts.jsonl  files and folders to upload, in order; appended by the trainer
"""

from __future__ import annotations

import json
import os
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from pretrain.errors import UserError
from pretrain.files import write_atomically

FOLDER = "tracking"

T = TypeVar("T")


@dataclass
class RunRecord:
    """What the MLflow run is called and says of itself; enough to create it at any later time."""

    experiment: str
    run_name: str
    params: dict[str, str]
    tags: dict[str, str]
    parent_run_id: str | None = None
    tracking_uri: str | None = None
    """None: the local store beside the run folder, wherever that folder is moved."""
    key: str = field(default_factory=lambda: uuid.uuid4().hex)
    """Tags the MLflow run, so that it is found again when the reply that named its id was lost."""
    started: float = 0.0
    rewinds: list[int] = field(default_factory=list)
    """Size of metrics.jsonl in bytes at the start of each attempt."""
    status: str | None = None
    ended: float | None = None


@dataclass
class Progress:
    """How far the upload to one store is."""

    tracking_uri: str = ""
    run_id: str | None = None
    rewinds_seen: int = 0
    offsets: dict[str, int] = field(default_factory=dict)
    """Bytes of each spool file that are on the server."""
    steps: dict[str, int] = field(default_factory=dict)
    """The last step of each metric that is on the server."""


def run_record_path(run_dir: Path) -> Path:
    """Of the `RunRecord`."""
    return run_dir / FOLDER / "run.json"


def progress_path(run_dir: Path) -> Path:
    """Of the `Progress`."""
    return run_dir / FOLDER / "progress.json"


def artifacts_path(run_dir: Path) -> Path:
    """Of the queue of artifacts."""
    return run_dir / FOLDER / "artifacts.jsonl"


def lock_path(run_dir: Path) -> Path:
    """Held by whoever uploads."""
    return run_dir / FOLDER / "upload.lock"


def save(path: Path, record: RunRecord | Progress) -> None:
    """Write a record so that a reader, or a crash, finds the old one or the new one, never half of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, json.dumps(asdict(record), indent=1))


def load(path: Path, kind: type[T]) -> T | None:
    """The record at `path`; None where there is none.

    Raises:
        UserError: the file is there and is not what this version writes.
    """
    try:
        return kind(**json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        return None
    except (ValueError, TypeError) as error:
        raise UserError(
            f"not readable as tracking state: {error}",
            where=str(path),
            mend="delete it: what the MLflow server already has is found again there",
        ) from error


def queue_artifact(run_dir: Path, path: Path, folder: str) -> None:
    """Append one file or folder to the queue; inside the run folder it is kept relative to it."""
    path = path.resolve()
    home = run_dir.resolve()
    name = str(path.relative_to(home)) if path.is_relative_to(home) else str(path)
    line = (json.dumps({"path": name, "folder": folder}) + "\n").encode()
    queue = artifacts_path(run_dir)
    queue.parent.mkdir(parents=True, exist_ok=True)
    with queue.open("ab") as stream:
        if stream.tell() and not _ends_line(queue):
            line = b"\n" + line
        stream.write(line)


def _ends_line(path: Path) -> bool:
    with path.open("rb") as stream:
        stream.seek(-1, os.SEEK_END)
        return stream.read(1) == b"\n"


def queued_artifacts(run_dir: Path, start: int) -> Iterator[tuple[Path | None, str, int]]:
    """(path, folder, offset after the line) of the queue from byte `start`; path None for a torn line."""
    queue = artifacts_path(run_dir)
    if not queue.exists():
        return
    with queue.open("rb") as stream:
        stream.seek(start)
        for line in stream:
            if not line.endswith(b"\n"):
                return
            start += len(line)
            try:
                entry = json.loads(line)
                yield run_dir / entry["path"], str(entry["folder"]), start
            except (ValueError, TypeError, KeyError):
                yield None, "", start


def flatten(params: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Nested settings as MLflow wants them: `optimizer.lr` -> "0.0001"."""
    flat: dict[str, str] = {}
    for name, value in params.items():
        key = f"{prefix}{name}"
        if isinstance(value, Mapping) and value:
            flat.update(flatten(value, f"{key}."))
        else:
            flat[key] = value if isinstance(value, str) else json.dumps(value, default=str)
    return flat
