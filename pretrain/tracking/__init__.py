"""Tracking: metrics in the run folder, and from there in MLflow, without training ever waiting for it."""

from pretrain.tracking.background import Synced, sync
from pretrain.tracking.destination import view_hint
from pretrain.tracking.metrics_file import METRICS_FILE, Record, read_records
from pretrain.tracking.system import NodeSampler
from pretrain.tracking.tracker import NullTracker, Status, Tracker

__all__ = [
    "METRICS_FILE",
    "NodeSampler",
    "NullTracker",
    "Record",
    "Status",
    "Synced",
    "Tracker",
    "read_records",
    "sync",
    "view_hint",
]
