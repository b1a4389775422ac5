"""What the training loop sees of tracking: a few calls that never wait and never fail for a server's sake."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pretrain.files import write_atomically
from pretrain.tracking import spool
from pretrain.tracking.background import UploadThread
from pretrain.tracking.destination import local_store, resolve, view_hint, without_credentials
from pretrain.tracking.metrics_file import METRICS_FILE, MetricsFile, keep_until
from pretrain.tracking.system import NodeSampler
from pretrain.tracking.uploader import Uploader

Status = Literal["FINISHED", "FAILED", "KILLED"]

logger = logging.getLogger(__name__)


class Tracker:
    """Rank 0's tracker. Metrics go to `metrics.jsonl`, and from there to MLflow by a thread of its own."""

    def __init__(
        self, run_dir: Path, metrics: MetricsFile, uploads: UploadThread | None, sampler: NodeSampler | None
    ) -> None:
        self._run_dir = run_dir
        self._metrics = metrics
        self._uploads = uploads
        self._sampler = sampler
        self._finished = False

    @classmethod
    def start(
        cls,
        run_dir: Path,
        *,
        experiment: str,
        run_name: str,
        params: Mapping[str, Any],
        tags: Mapping[str, str],
        parent_run_id: str | None = None,
        resume_step: int | None = None,
        tracking_uri: str | None = None,
        upload: bool = True,
        upload_interval: float = 5.0,
        system_interval: float | None = 30.0,
    ) -> Tracker:
        """Begin, or go on with, the tracked run of `run_dir`; returns at once, whatever the server does.

        Args:
            params: settings, may be nested; logged once, compared when the run is resumed.
            tags: such as `git_commit`, `recipe_hash`, `shard_set_hash`, `slurm_job_id`.
            parent_run_id: MLflow run that this one is shown under (a fine-tune's pretraining).
            resume_step: the step training goes on from: records after it are dropped from the file, since
                they come again; 0 when it starts over; None keeps all.
            tracking_uri: MLflow store; see `destination.resolve` for what None means.
            upload: False writes the run folder only; `sync` can bring it to a server later.
            upload_interval: seconds between uploads.
            system_interval: seconds between samples of this node; None for no samples.

        Raises:
            OSError: the run folder cannot be written.
            UserError: its tracking state cannot be read.
        """
        earlier = spool.load(spool.run_record_path(run_dir), spool.RunRecord)
        uri = resolve(run_dir, tracking_uri, earlier.tracking_uri if earlier else None)
        uploads = UploadThread(Uploader(run_dir, uri), upload_interval) if upload else None
        kept = keep_until(run_dir / METRICS_FILE, resume_step)
        record = spool.RunRecord(
            experiment=experiment,
            run_name=run_name,
            params=spool.flatten(params),
            tags={name: str(value) for name, value in tags.items()},
            parent_run_id=parent_run_id,
            tracking_uri=None if uri == local_store(run_dir) else without_credentials(uri),
            started=time.time(),
        )
        if earlier is not None:
            record.key, record.started = earlier.key, earlier.started
            record.rewinds = earlier.rewinds
        record.rewinds.append(kept)
        spool.save(spool.run_record_path(run_dir), record)
        metrics = MetricsFile(run_dir / METRICS_FILE)
        sampler = None if system_interval is None else NodeSampler(run_dir, interval=system_interval)
        _queue_params(run_dir, record.params)
        return cls(run_dir, metrics, uploads, sampler)

    @property
    def run_id(self) -> str | None:
        """The MLflow run; None as long as no server has given one (the run folder remembers it)."""
        return self._uploads.uploader.run_id if self._uploads else None

    @property
    def view(self) -> str:
        """The address, or the command, that shows this run in MLflow; empty when it is not uploaded."""
        return view_hint(self._uploads.uploader.uri) if self._uploads else ""

    def log(self, step: int, kind: str, metrics: Mapping[str, float]) -> None:
        """Append one record; `kind` is "train", "validation" or the like. Steps do not go back.

        The first value of a (metric, step) stays; a second one is reported and left out.
        """
        self._metrics.append(step, kind, metrics)
        if self._uploads:
            self._uploads.begin()

    def artifact(self, path: Path, folder: str = "") -> None:
        """Queue a file or folder; its content is read when it is uploaded, the newest state once."""
        try:
            spool.queue_artifact(self._run_dir, path, folder)
        except OSError as error:
            logger.warning("artifact %s is not queued: %s", path, error)
            return
        if self._uploads:
            self._uploads.begin()

    def finish(self, status: Status, timeout: float) -> bool:
        """End the run; True if the server has everything within `timeout` seconds.

        What is left waits in the run folder for the next start or for `sync`.
        """
        if self._finished:
            return True
        self._finished = True
        if self._sampler is not None:
            self._sampler.stop()
        self._metrics.close()
        self._set_status(status)
        delivered = self._uploads is None or self._uploads.finish(timeout)
        if not delivered:
            logger.warning(
                "not everything reached MLflow within %.0f s; it waits in the run folder: membart sync %s",
                timeout,
                self._run_dir,
            )
        return delivered

    def _set_status(self, status: Status) -> None:
        path = spool.run_record_path(self._run_dir)
        record = spool.load(path, spool.RunRecord)
        if record is None:
            logger.warning("%s is gone: the MLflow run keeps its status", path)
            return
        record.status, record.ended = status, time.time()
        try:
            spool.save(path, record)
        except OSError as error:
            logger.warning("%s: %s; the MLflow run keeps its status", path, error)


def _queue_params(run_dir: Path, params: Mapping[str, str]) -> None:
    """The whole parameters as an artifact: servers cut long values, and keep only the first attempt's."""
    path = run_dir / spool.FOLDER / "params.json"
    write_atomically(path, json.dumps(dict(params), indent=1, sort_keys=True))
    spool.queue_artifact(run_dir, path, "")


class NullTracker:
    """The tracker of every rank but 0: the same calls, nothing behind them."""

    run_id: str | None = None
    view: str = ""

    def log(self, step: int, kind: str, metrics: Mapping[str, float]) -> None:
        """Nothing."""

    def artifact(self, path: Path, folder: str = "") -> None:
        """Nothing."""

    def finish(self, status: Status, timeout: float) -> bool:
        """Nothing; True."""
        return True
