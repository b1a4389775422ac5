"""Where a run's metrics go: which MLflow store, and how a person looks at it."""

from __future__ import annotations

import os
import shlex
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

SQLITE = "sqlite:///"


def local_store(run_dir: Path) -> str:
    """The store a run uses when nothing else is asked for: one SQLite file for all runs of a folder."""
    return f"{SQLITE}{run_dir.resolve().parent / 'mlflow.db'}"


def resolve(run_dir: Path, asked: str | None = None, recorded: str | None = None) -> str:
    """The tracking URI: the one asked for, else `MLFLOW_TRACKING_URI`, the run's own, or the local store."""
    return asked or os.environ.get("MLFLOW_TRACKING_URI") or recorded or local_store(run_dir)


def sqlite_file(uri: str) -> Path | None:
    """The database file of a SQLite URI; None for a server."""
    return Path(uri.removeprefix(SQLITE)) if uri.startswith(SQLITE) else None


def without_credentials(uri: str) -> str:
    """The URI as it may be written to files and logs: user name and password removed."""
    parts = urlsplit(uri)
    if "@" not in parts.netloc:
        return uri
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))


def view_hint(uri: str) -> str:
    """What to type or open to look at the runs of `uri`."""
    if uri.startswith(("http://", "https://")):
        return without_credentials(uri)
    return f"mlflow ui --backend-store-uri {shlex.quote(without_credentials(uri))}"
