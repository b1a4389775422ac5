"""`metrics.jsonl`: the one truth about a run's metrics, one JSON object a line, steps never decreasing.

    {"step": 12, "time": 1767225600.125, "kind": "train", "loss": 4.2, "tokens_per_second": 51000.0}

Numbers that are not finite are written as the strings "NaN", "Infinity" and "-Infinity", so that every
line is JSON by the standard and nothing is lost.
"""

from __future__ import annotations

import json
import logging
import math
import mmap
import os
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

METRICS_FILE = "metrics.jsonl"
_FIELDS = frozenset({"step", "time", "kind"})
_BACKLOG_BYTES = 16 << 20
"""What is kept in memory while the disk takes nothing: some ten thousand records."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Record:
    """One line of the file. `time` in seconds since 1970, rounded to the millisecond MLflow keeps."""

    step: int
    time: float
    kind: str
    metrics: Mapping[str, float]

    def line(self) -> bytes:
        """The record as the file has it, line end included."""
        values = {name: _plain(value) for name, value in self.metrics.items()}
        head = {"step": self.step, "time": self.time, "kind": self.kind}
        return (json.dumps({**head, **values}, allow_nan=False) + "\n").encode()


def _plain(value: float) -> float | str:
    value = float(value)
    if math.isfinite(value):
        return value
    return "NaN" if math.isnan(value) else ("Infinity" if value > 0 else "-Infinity")


def parse(line: bytes) -> Record | None:
    """The record of one line; None when the line is torn or not one of ours."""
    try:
        fields: dict[str, Any] = json.loads(line)
        step, when, kind = int(fields.pop("step")), float(fields.pop("time")), str(fields.pop("kind"))
        return Record(step, when, kind, {name: float(value) for name, value in fields.items()})
    except (ValueError, TypeError, KeyError, AttributeError):
        return None


def read_records(path: Path, *, start: int = 0) -> Iterator[tuple[Record | None, int]]:
    """Whole lines from byte `start` on, each with the offset that follows it.

    A line still being written is left for the next call. An unreadable line gives None, so that the
    caller's offset can pass it.
    """
    with path.open("rb") as stream:
        stream.seek(start)
        for line in stream:
            if not line.endswith(b"\n"):
                return
            start += len(line)
            yield parse(line), start


def keep_until(path: Path, step: int | None) -> int:
    """Mend the end of the file and drop records after `step` (None: drop none); return the bytes kept.

    A crash can leave half a line, or zeros after a power failure. The cut is one truncation at a line's
    end: whatever happens, the file holds whole records afterwards. Steps never decrease along the file,
    so only its end is read.
    """
    if not path.exists() or path.stat().st_size == 0:
        return 0
    with path.open("r+b") as stream:
        with mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as view:
            size = kept = len(view)
            missing_newline = False
            while kept:
                start = view.rfind(b"\n", 0, kept - 1) + 1
                record = parse(view[start:kept])
                if record is not None and (step is None or record.step <= step):
                    missing_newline = view[kept - 1] != ord("\n")
                    break
                kept = start
        if kept < size:
            stream.truncate(kept)
        if missing_newline:
            stream.seek(kept)
            stream.write(b"\n")
            kept += 1
        stream.flush()
        os.fsync(stream.fileno())
    return kept


class MetricsFile:
    """The appending end of `metrics.jsonl`; one writer. Never raises for a disk that is full.

    Raises:
        OSError: the file cannot be opened (at the start of a run, before anything was trained).
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
        self._size = os.fstat(self._descriptor).st_size
        self._backlog = b""
        self._failing = False
        self._warned: set[str] = set()
        self.last_step, self._names = _last_step(path)

    def append(self, step: int, kind: str, metrics: Mapping[str, float]) -> None:
        """Write one record. A metric has one value a step: what comes second, or late, is not written.

        Raises:
            ValueError: a metric is called like one of a record's own fields.
        """
        if not metrics.keys().isdisjoint(_FIELDS):
            raise ValueError(f"no metric can be called {', '.join(sorted(_FIELDS & metrics.keys()))}")
        if step < self.last_step:
            self._warn_once("late", f"a record of step {step} after step {self.last_step} is not logged")
            return
        if step > self.last_step:
            self.last_step, self._names = step, set()
        fresh = {name: float(value) for name, value in metrics.items() if name not in self._names}
        if len(fresh) < len(metrics):
            twice = ", ".join(sorted(set(metrics) - set(fresh)))
            self._warn_once("twice", f"logged a second time at step {step}, the first stays: {twice}")
        if fresh:
            self._names.update(fresh)
            self._write(Record(step, round(time.time(), 3), kind, fresh).line())

    def _write(self, line: bytes) -> None:
        data = self._backlog + line
        try:
            written = os.write(self._descriptor, data)
            if written < len(data):
                os.ftruncate(self._descriptor, self._size)
                raise OSError(f"only {written} of {len(data)} bytes were written")
        except OSError as error:
            if len(data) <= _BACKLOG_BYTES:
                self._backlog = data
            if not self._failing:
                logger.warning("%s: %s; metrics wait in memory and training goes on", self.path, error)
            self._failing = True
            return
        self._size += len(data)
        self._backlog = b""
        if self._failing:
            logger.warning("%s: written again", self.path)
        self._failing = False

    def close(self) -> None:
        """Write what a full disk held back, as far as it goes, and sync."""
        if self._descriptor < 0:
            return
        if self._backlog:
            self._write(b"")
        if self._backlog:
            logger.error("%s: %d bytes of metrics could not be written", self.path, len(self._backlog))
        os.fsync(self._descriptor)
        os.close(self._descriptor)
        self._descriptor = -1

    def _warn_once(self, what: str, message: str) -> None:
        if what not in self._warned:
            self._warned.add(what)
            logger.warning("metrics: %s (said once)", message)


def _last_step(path: Path) -> tuple[int, set[str]]:
    """The last step in a mended file and the metrics it already has."""
    last, names = -1, set[str]()
    with path.open("rb") as stream:
        size = stream.seek(0, os.SEEK_END)
        if size == 0:
            return last, names
        with mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as view:
            stop = len(view)
            while stop:
                start = view.rfind(b"\n", 0, stop - 1) + 1
                record = parse(view[start:stop])
                if record is not None:
                    if last >= 0 and record.step < last:
                        break
                    last = record.step
                    names.update(record.metrics)
                stop = start
    return last, names
