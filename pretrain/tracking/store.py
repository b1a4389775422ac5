"""The MLflow calls: the one module that imports mlflow, and it is imported late, by the uploader.

Every call here may fail or take long; nothing here retries. The caller does, after asking the store again
what it has: a request whose reply was lost may well have been carried out.
"""

from __future__ import annotations

import contextlib
import getpass
import hashlib
import logging
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pretrain.tracking.destination import SQLITE, sqlite_file
from pretrain.tracking.locks import file_lock
from pretrain.tracking.spool import RunRecord

KEY_TAG = "membart.run_key"
CHANGED_TAG = "changed."
PARAM_LIMIT = 500
"""Characters a value may have on every MLflow server in use (newer ones take 6,000)."""
TAG_LIMIT = 5000
NAME_LIMIT = 250
MIGRATION_SECONDS = 120.0

_ENVIRONMENT = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",  # our retries look first at what the lost request has done
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",  # it would tear the progress bar
    "MLFLOW_DISABLE_TELEMETRY": "true",  # clusters have no way out, and nobody asked the user
}

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Point:
    """One value of one metric. `timestamp` in milliseconds, from the record: equal whenever it is sent."""

    name: str
    value: float
    timestamp: int
    step: int


@dataclass(frozen=True)
class OpenRun:
    """A run on the server and the last step it has of each metric."""

    run_id: str
    steps: dict[str, int]


class Store:
    """One MLflow tracking store. Building it makes a SQLite file that is not there, one process at a time."""

    def __init__(self, uri: str) -> None:
        for name, value in _ENVIRONMENT.items():
            os.environ.setdefault(name, value)
        import mlflow

        for noisy in ("mlflow", "alembic"):
            logging.getLogger(noisy).setLevel(logging.WARNING)
        self.uri = uri
        database = sqlite_file(uri)
        if database is None:
            self.client = mlflow.MlflowClient(tracking_uri=uri)
            return
        database.parent.mkdir(parents=True, exist_ok=True)
        with file_lock(database.with_name(f"{database.name}.lock"), timeout=MIGRATION_SECONDS):
            if not database.exists():
                _make_database(database)
            self.client = mlflow.MlflowClient(tracking_uri=uri)
            self.client.search_experiments(max_results=1)

    def open_run(self, record: RunRecord, run_id: str | None) -> OpenRun:
        """The run of `record`: the known one, else the one that carries its key, else a new one.

        It is set running again, gets the parameters it does not have yet, and today's tags; parameters
        that differ from what it has are told in a warning and a tag, never overwritten.
        """
        run = self._find(record, run_id)
        if run is None:
            run = self.client.create_run(
                self._experiment(record.experiment),
                start_time=round(record.started * 1000),
                run_name=record.run_name,
                tags={KEY_TAG: record.key},
            )
        run_id = str(run.info.run_id)
        if run.info.lifecycle_stage == "deleted":
            logger.warning("MLflow run %s was deleted and is restored: its training goes on", run_id)
            self.client.restore_run(run_id)
        if run.info.status != "RUNNING" and record.status is None:
            self.client.update_run(run_id, status="RUNNING")
        self._describe(run_id, record, run.data.params, run.data.tags)
        steps = {metric.key: int(metric.step) for metric in run.data.to_proto().metrics}
        return OpenRun(run_id, steps)

    def send(self, run_id: str, points: Sequence[Point]) -> None:
        """Send some values; mlflow cuts them into requests of the size that servers take."""
        from mlflow.entities import Metric

        self.client.log_batch(run_id, metrics=[Metric(p.name, p.value, p.timestamp, p.step) for p in points])

    def steps(self, run_id: str, metric: str) -> set[int]:
        """Every step at which the store has a value of the metric; long for a long run."""
        return {int(entry.step) for entry in self.client.get_metric_history(run_id, metric)}

    def upload(self, run_id: str, path: Path, folder: str) -> None:
        """Upload a file, or a folder under its own name, below the artifact folder `folder`."""
        if path.is_dir():
            self.client.log_artifacts(run_id, str(path), artifact_path=f"{folder}/{path.name}".strip("/"))
        else:
            self.client.log_artifact(run_id, str(path), artifact_path=folder or None)

    def close_run(self, run_id: str, status: str, ended: float | None) -> None:
        """Set the final status and the time it ended (seconds since 1970)."""
        end_time = None if ended is None else round(ended * 1000)
        self.client.set_terminated(run_id, status=status, end_time=end_time)

    def _find(self, record: RunRecord, run_id: str | None):  # type: ignore[no-untyped-def]  # an mlflow Run
        from mlflow.entities import ViewType
        from mlflow.exceptions import MlflowException

        if run_id is not None:
            try:
                return self.client.get_run(run_id)
            except MlflowException as error:
                if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                    raise
                logger.warning("MLflow at %s no longer has run %s", self.uri, run_id)
        found = self.client.search_runs(
            [self._experiment(record.experiment)],
            filter_string=f"tags.`{KEY_TAG}` = '{record.key}'",
            run_view_type=ViewType.ALL,
            max_results=1,
        )
        return self.client.get_run(found[0].info.run_id) if found else None

    def _experiment(self, name: str) -> str:
        from mlflow.exceptions import MlflowException

        known = self.client.get_experiment_by_name(name)
        if known is None:
            try:
                return str(self.client.create_experiment(name, artifact_location=self._artifacts(name)))
            except MlflowException as error:
                if error.error_code != "RESOURCE_ALREADY_EXISTS":
                    raise
            known = self.client.get_experiment_by_name(name)
        if known.lifecycle_stage == "deleted":
            logger.warning("MLflow experiment %r was deleted and is restored", name)
            self.client.restore_experiment(known.experiment_id)
        return str(known.experiment_id)

    def _artifacts(self, experiment: str) -> str | None:
        database = sqlite_file(self.uri)
        if database is None:
            return None
        return (database.resolve().parent / "mlartifacts" / legal_name(experiment)).as_uri()

    def _describe(
        self, run_id: str, record: RunRecord, params: Mapping[str, str], tags: Mapping[str, str]
    ) -> None:
        from mlflow.entities import Param, RunTag

        wanted = {legal_name(name): short_value(value) for name, value in record.params.items()}
        missing = {name: value for name, value in wanted.items() if name not in params}
        changes = {
            name: f"{old} -> {wanted.get(name, '(not set)')}"
            for name, old in params.items()
            if wanted.get(name) != old
        }
        for name, change in changes.items():
            if tags.get(legal_name(f"{CHANGED_TAG}{name}")) == change[:TAG_LIMIT]:
                continue
            logger.warning("parameter %s differs from what MLflow run %s has: %s", name, run_id, change)
        today = {
            **_mlflow_tags(record),
            **record.tags,
            **{f"{CHANGED_TAG}{name}": change for name, change in changes.items()},
        }
        today = {legal_name(name): str(value)[:TAG_LIMIT] for name, value in today.items()}
        today = {name: value for name, value in today.items() if tags.get(name) != value}
        self.client.log_batch(
            run_id,
            params=[Param(name, value) for name, value in missing.items()],
            tags=[RunTag(name, value) for name, value in today.items()],
        )


def _make_database(database: Path) -> None:
    """A fresh store, complete or absent.

    A process that is killed half-way through mlflow's migrations would leave a file that no other can open.
    """
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    aside = database.with_name(f"{database.name}.new")
    aside.unlink(missing_ok=True)
    store = SqlAlchemyStore(f"{SQLITE}{aside}", (database.parent / "mlartifacts").as_uri())
    store.engine.dispose()
    os.replace(aside, database)


def legal_name(name: str) -> str:
    """A name that MLflow takes: letters, digits and `_-. :/`, at most 250 characters, no empty path part."""
    clean = re.sub(r"[^\w\-. :/]", "_", name, flags=re.ASCII)
    clean = re.sub(r"/{2,}", "/", clean).strip("/")
    return clean[:NAME_LIMIT] or "_"


def short_value(value: str) -> str:
    """A parameter's value cut to what every server takes; the end tells two long values apart.

    The whole value is in the `params.json` artifact.
    """
    if len(value) <= PARAM_LIMIT:
        return value
    mark = f"... sha256:{hashlib.sha256(value.encode()).hexdigest()[:16]}"
    return value[: PARAM_LIMIT - len(mark)] + mark


def _mlflow_tags(record: RunRecord) -> dict[str, str]:
    """The tags that MLflow's own pages read."""
    tags = {"attempts": str(len(record.rewinds))}
    with contextlib.suppress(KeyError, OSError):  # a container's user may have no name
        tags["mlflow.user"] = getpass.getuser()
    if record.parent_run_id is not None:
        tags["mlflow.parentRunId"] = record.parent_run_id
    if commit := record.tags.get("git_commit"):
        tags["mlflow.source.git.commit"] = commit
    return tags


def error_line(error: BaseException) -> str:
    """An error in one line of bearable length; requests puts whole addresses in, passwords included."""
    text = " ".join(str(error).split()) or type(error).__name__
    text = re.sub(r"://[^/@\s]+@", "://", text)
    return text if len(text) <= 200 else f"{text[:197]}..."
