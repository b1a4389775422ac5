"""Brings a run folder's spool to MLflow, each (metric, step) once.

Three things keep it to once. What was sent is remembered per metric. Before the first sending, and after
every failure, the store is asked for the last step it has of each metric: values go there in the order of
steps, so this tells whether a request whose reply was lost arrived. Only where records were dropped, because
a resumed run makes them again, may steps below the last one be missing; there the store's whole history
decides. And a record's timestamp comes from the file, so that even a repeated request is the same row to
MLflow's SQL stores. One process at a time uploads, under a lock.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

from tenacity import RetryCallState, Retrying, retry_if_exception_type, wait_exponential_jitter
from tenacity.stop import stop_base

from pretrain.files import sync
from pretrain.tracking import spool
from pretrain.tracking.destination import without_credentials
from pretrain.tracking.locks import file_lock
from pretrain.tracking.metrics_file import METRICS_FILE, read_records
from pretrain.tracking.store import OpenRun, Point, Store, error_line, legal_name

VALUES_A_BATCH = 1000
"""What MLflow takes in one request; after each batch the progress is remembered."""
LONGEST_PAUSE = 60.0
"""Seconds between tries while a server stays away."""

logger = logging.getLogger(__name__)


class AbandonedError(Exception):
    """Nobody waits for this upload any more."""


class Uploader:
    """Uploads one run folder to one store. Not thread-safe; `hold()` keeps other processes out.

    `abandoned` may be set from any thread: `upload` then stops before its next request.
    """

    def __init__(self, run_dir: Path, uri: str) -> None:
        self.run_dir = run_dir
        self.uri = uri
        self.run_id = self._remembered().run_id
        self.sent = 0
        """Metric values sent by this object."""
        self.abandoned = threading.Event()
        self._store: Store | None = None
        self._progress = spool.Progress()
        self._open: OpenRun | None = None
        self._in_order: dict[str, int] = {}
        """Of each metric, the step above which the store can have no gaps."""
        self._history: dict[str, set[int]] = {}

    def hold(self, timeout: float) -> AbstractContextManager[None]:
        """The right to upload this folder during a `with` block; `BusyError` after `timeout` seconds."""
        return file_lock(spool.lock_path(self.run_dir), timeout=timeout)

    def upload(self) -> None:
        """Send everything that waits; return when the store has it.

        Raises:
            AbandonedError: stopped half-way.
            Exception: whatever mlflow raises.
        """
        record = spool.load(spool.run_record_path(self.run_dir), spool.RunRecord)
        if record is None:
            raise FileNotFoundError(spool.run_record_path(self.run_dir))
        try:
            if self._store is None:
                self._store = Store(self.uri)
            self._check()
            run_id = self._open_run(self._store, record)
            for source in self._sources():
                self._send_file(self._store, run_id, source)
            self._check()
            if record.status is not None:
                self._store.close_run(run_id, record.status, record.ended)
            self._send_artifacts(self._store, run_id)
        except BaseException:
            self._open = None
            raise

    def _remembered(self) -> spool.Progress:
        """The progress towards this store; another store's does not count."""
        name = without_credentials(self.uri)
        progress = spool.load(spool.progress_path(self.run_dir), spool.Progress)
        if progress is None or progress.tracking_uri != name:
            return spool.Progress(tracking_uri=name)
        return progress

    def _open_run(self, store: Store, record: spool.RunRecord) -> str:
        if self._open is not None:
            return self._open.run_id
        progress = self._remembered()
        opened = store.open_run(record, progress.run_id)
        lost = any(opened.steps.get(metric, -1) < step for metric, step in progress.steps.items())
        if opened.run_id != progress.run_id or lost:
            progress.offsets = {}
        rewinds = record.rewinds[progress.rewinds_seen :]
        for size in rewinds:
            offset = progress.offsets.get(METRICS_FILE, 0)
            progress.offsets[METRICS_FILE] = min(offset, size)
        self._in_order = dict(progress.steps if progress.offsets and not rewinds else opened.steps)
        self._history = {}
        progress.rewinds_seen = len(record.rewinds)
        progress.run_id = opened.run_id
        progress.steps = dict(opened.steps)
        spool.save(spool.progress_path(self.run_dir), progress)
        self._progress, self._open, self.run_id = progress, opened, opened.run_id
        return opened.run_id

    def _is_new(self, store: Store, run_id: str, point: Point) -> bool:
        """Whether the store lacks this value."""
        if point.step > self._progress.steps.get(point.name, -1):
            return True
        if point.step > self._in_order.get(point.name, -1):
            return False
        if point.name not in self._history:
            self._history[point.name] = store.steps(run_id, point.name)
        return point.step not in self._history[point.name]

    def _check(self) -> None:
        if self.abandoned.is_set():
            raise AbandonedError(str(self.run_dir))

    def _sources(self) -> list[Path]:
        metrics = self.run_dir / METRICS_FILE
        return [path for path in (metrics, *sorted(self.run_dir.glob("system-*.jsonl"))) if path.exists()]

    def _send_file(self, store: Store, run_id: str, path: Path) -> None:
        offset = self._progress.offsets.get(path.name, 0)
        batch: list[Point] = []
        unreadable = 0
        for record, after in read_records(path, start=offset):
            if record is None:
                unreadable += 1
            else:
                points = [
                    Point(legal_name(name), value, round(record.time * 1000), record.step)
                    for name, value in record.metrics.items()
                ]
                points = [point for point in points if self._is_new(store, run_id, point)]
                if batch and len(batch) + len(points) > VALUES_A_BATCH:
                    self._send_batch(store, run_id, path, batch, offset)
                    batch = []
                batch += points
            offset = after
        if unreadable:
            logger.warning("%s: %d unreadable lines are left out", path, unreadable)
        if offset > self._progress.offsets.get(path.name, 0):
            self._send_batch(store, run_id, path, batch, offset)

    def _send_batch(self, store: Store, run_id: str, path: Path, batch: list[Point], offset: int) -> None:
        self._check()
        store.send(run_id, batch)
        self.sent += len(batch)
        for point in batch:
            self._progress.steps[point.name] = max(point.step, self._progress.steps.get(point.name, -1))
            self._history.get(point.name, set()).add(point.step)
        self._progress.offsets[path.name] = offset
        # Never remember as sent what a power failure could still take out of the file.
        sync(path)
        spool.save(spool.progress_path(self.run_dir), self._progress)

    def _send_artifacts(self, store: Store, run_id: str) -> None:
        name = spool.artifacts_path(self.run_dir).name
        waiting = list(spool.queued_artifacts(self.run_dir, self._progress.offsets.get(name, 0)))
        last = {(path, folder): number for number, (path, folder, _) in enumerate(waiting)}
        for number, (path, folder, after) in enumerate(waiting):
            if path is not None and last[path, folder] == number:
                self._check()
                if os.access(path, os.R_OK):
                    store.upload(run_id, path, folder)
                else:
                    logger.warning("artifact %s is gone and was not uploaded", path)
            self._progress.offsets[name] = after
            spool.save(spool.progress_path(self.run_dir), self._progress)


def upload_patiently(
    uploader: Uploader, *, pause: Callable[[float], None], stop: stop_base, longest: float = LONGEST_PAUSE
) -> None:
    """Upload, again and again until it works or `stop` says so; an outage is told once, and its end.

    Errors of every kind are tried again: to an uploader a server that answers nonsense is a server that is
    down, and no error here may reach training. The warning carries the error's text.

    Raises:
        Exception: the last try's, when stopped.
    """
    name = without_credentials(uploader.uri)

    def outage(state: RetryCallState) -> None:
        error = state.outcome.exception() if state.outcome else None
        level = logging.WARNING if state.attempt_number == 1 else logging.DEBUG
        logger.log(
            level,
            "MLflow at %s is not reached (%s: %s); metrics wait in %s and are sent later",
            name,
            type(error).__name__,
            error_line(error) if error else "",
            uploader.run_dir,
        )

    attempts = Retrying(
        retry=retry_if_exception_type(Exception),
        wait=wait_exponential_jitter(initial=1, max=longest),
        stop=stop,
        sleep=pause,
        before_sleep=outage,
        reraise=True,
    )
    attempts(uploader.upload)
    if attempts.statistics["attempt_number"] > 1:
        logger.warning("MLflow at %s is reached again; it has everything until now", name)
