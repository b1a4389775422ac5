"""An exported folder in MLflow: logged with its run, registered, fetched back and asked."""

from __future__ import annotations

import os
import sys
import tempfile
from dataclasses import dataclass
from importlib import import_module, metadata
from pathlib import Path
from typing import Any

from pretrain import checkpoint, tracking
from pretrain.checkpoint import Checkpoint
from pretrain.errors import UserError
from pretrain.export.kind import DEFAULT, Kind
from pretrain.serving import REQUIRED
from pretrain.tracking import destination
from pretrain.tracking.store import Store, error_line, legal_name

_TYPES = {bool: "boolean", int: "integer", float: "double"}
EXAMPLE = [{"conversation": "example", "text": "Hello, who are you?", "reset": True}]


@dataclass(frozen=True)
class Registered:
    """A version in MLflow's model registry."""

    name: str
    version: int
    run_id: str
    tracking_uri: str

    @property
    def uri(self) -> str:
        """What `mlflow.pyfunc.load_model` takes."""
        return f"models:/{self.name}/{self.version}"


def register(
    folder: Path,
    source: Path,
    *,
    name: str | None = None,
    tracking_uri: str | None = None,
    kind: Kind = DEFAULT,
) -> Registered:
    """Log an exported folder as a model of its run and register it as the next version of `name`.

    What the run has not yet sent to MLflow is sent first. The logged model holds the folder, our code and the
    versions it needs; nothing in it is pickled. At last it is fetched back, loaded and asked once.

    Args:
        folder: made by `export` from `source`.
        source: the run folder, or a checkpoint inside one.
        name: of the registered model; unset: the run's.
        tracking_uri: MLflow store; unset: `MLFLOW_TRACKING_URI`, else the run's own.

    Raises:
        UserError: the run is not tracked or still being uploaded, or MLflow refused or is away.
    """
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")  # a line for each file of ours
    saved = checkpoint.resolve_whole(source)
    run_dir = saved.path.parent.parent
    name = name or run_dir.name
    synced = tracking.sync(run_dir, tracking_uri=tracking_uri)
    uri = destination.resolve(run_dir, tracking_uri, synced.tracking_uri)
    try:
        with tempfile.TemporaryDirectory(prefix="membart-mlflow-") as place:
            version = _log(Store(uri), uri, saved, folder, name, synced.run_id, kind, Path(place))
    except UserError:
        raise
    except Exception as error:  # mlflow lets through whatever its stores and transports raise
        raise UserError(
            f"the model is not registered: {error_line(error)}",
            where=synced.tracking_uri,
            mend=f"the exported folder {folder} is complete; export again when MLflow is up",
        ) from error
    return Registered(name, version, synced.run_id, synced.tracking_uri)


def _log(
    store: Store, uri: str, saved: Checkpoint, folder: Path, name: str, run_id: str, kind: Kind, place: Path
) -> int:
    """Every call names its store: mlflow's process-wide settings stay as they are."""
    import mlflow
    from mlflow.entities import LoggedModelOutput
    from mlflow.exceptions import MlflowException

    client = store.client
    try:
        client.create_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    tags = {"update": str(saved.update), "shard_set": str(saved.state["shard_set"])}
    logged = client.create_logged_model(
        client.get_run(run_id).info.experiment_id,
        name=f"{name}-{saved.update}",
        source_run_id=run_id,
        tags=tags,
    )
    try:
        _save(place / "model", folder, kind, logged, run_id)
        client.log_model_artifacts(logged.model_id, str(place / "model"))
        _tie_metrics(client, saved, run_id, logged.model_id)
        client.log_outputs(run_id, [LoggedModelOutput(logged.model_id, step=saved.update)])
    except BaseException:
        client.finalize_logged_model(logged.model_id, "FAILED")
        raise
    client.finalize_logged_model(logged.model_id, "READY")
    # not as models:/ID: a SQLite registry looks that up in the process-wide store
    version = client.create_model_version(
        name, logged.artifact_location, run_id=run_id, tags=tags, model_id=logged.model_id
    )
    try:
        fetched = mlflow.artifacts.download_artifacts(
            artifact_uri=client.get_model_version_download_uri(name, version.version),
            dst_path=str(place / "fetched"),
            tracking_uri=uri,
        )
        _ask(fetched)
    except BaseException:
        client.delete_model_version(name, version.version)
        raise
    return int(version.version)


def _save(path: Path, folder: Path, kind: Kind, logged: Any, run_id: str) -> None:
    """The logged model's files: MLflow's description, the exported folder, our code."""
    import mlflow
    from mlflow.models import Model, ModelSignature
    from mlflow.types import ColSpec, ParamSchema, ParamSpec, Schema

    server = import_module(kind.server)
    columns = [ColSpec(type_, name, required=name in REQUIRED) for name, type_ in server.COLUMNS.items()]
    options = [
        ParamSpec(name, _TYPES[type(default)], default) for name, default in server.options(folder).items()
    ]
    packages = dict.fromkeys(["pretrain", kind.server.partition(".")[0]])
    mlflow.pyfunc.save_model(
        path=str(path),
        loader_module=kind.server,
        data_path=str(folder),
        code_paths=[str(Path(str(import_module(package).__file__)).parent) for package in packages],
        mlflow_model=Model(
            artifact_path=logged.artifact_location,
            model_uuid=logged.model_id,
            run_id=run_id,
            model_id=logged.model_id,
        ),
        signature=ModelSignature(Schema(columns), Schema([ColSpec("string")]), ParamSchema(options)),
        input_example=EXAMPLE,
        pip_requirements=[
            f"{name}=={metadata.version(name).partition('+')[0]}" for name in server.REQUIREMENTS
        ],
    )


def _tie_metrics(client: Any, saved: Checkpoint, run_id: str, model_id: str) -> None:
    """Show the run's figures at this update beside the model; the rows are those that the run has."""
    from mlflow.entities import Metric

    metrics = saved.path.parent.parent / tracking.METRICS_FILE
    records = [record for record, _ in tracking.read_records(metrics) if record] if metrics.is_file() else []
    client.log_batch(
        run_id,
        metrics=[
            Metric(legal_name(name), value, round(record.time * 1000), record.step, model_id=model_id)
            for record in records
            if record.step == saved.update
            for name, value in record.metrics.items()
        ],
    )


def _ask(fetched: str) -> None:
    """Load what MLflow gave back and let it answer once."""
    import mlflow

    before = sys.path
    try:
        model = mlflow.pyfunc.load_model(fetched, suppress_warnings=True)
        [reply] = model.predict(EXAMPLE, params={"max_new_tokens": 4})
    finally:
        sys.path = before  # mlflow puts the model's code in front
    if not isinstance(reply, str):
        raise UserError(f"the model fetched back answered {reply!r}", where=fetched)
