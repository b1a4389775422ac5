"""The thread that uploads while training runs, and the same upload in the foreground."""

from __future__ import annotations

import logging
import threading
import time
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from tenacity import RetryCallState, stop_after_delay
from tenacity.stop import stop_base

from pretrain.errors import UserError
from pretrain.tracking import spool
from pretrain.tracking.destination import resolve, without_credentials
from pretrain.tracking.locks import BusyError
from pretrain.tracking.store import error_line
from pretrain.tracking.uploader import Uploader, upload_patiently

DRAINING_PAUSE = 1.0
"""Seconds between tries once the run has ended and somebody waits."""

logger = logging.getLogger(__name__)


class UploadThread:
    """Uploads every `interval` seconds until told to finish; a daemon, so that it never keeps a process.

    It wakes with the first record: until then mlflow's import would compete with the imports of a
    starting trainer.
    """

    def __init__(self, uploader: Uploader, interval: float) -> None:
        self.uploader = uploader
        self._interval = interval
        self._begin = threading.Event()
        self._finishing = threading.Event()
        self._abandoned = uploader.abandoned
        self._delivered = False
        self._thread = threading.Thread(target=self._run, name="mlflow-uploader", daemon=True)
        self._thread.start()

    def begin(self) -> None:
        """There is something to send."""
        self._begin.set()

    def finish(self, timeout: float) -> bool:
        """Send the rest within `timeout` seconds; True if the store has everything."""
        self._finishing.set()
        self._begin.set()
        self._thread.join(timeout)
        self._abandoned.set()
        return self._delivered

    def _run(self) -> None:
        self._begin.wait()
        with ExitStack() as stack:
            while not self._take_lock(stack):
                if self._abandoned.is_set():
                    return
            while not self._delivered:
                last = self._finishing.is_set()
                try:
                    upload_patiently(self.uploader, pause=self._pause, stop=_StopWhen(self._abandoned))
                except Exception as error:  # only after `finish` gave up: the spool keeps what is left
                    logger.debug("upload abandoned: %s", error_line(error))
                    return
                self._delivered = last
                if not last:
                    self._finishing.wait(self._interval)

    def _take_lock(self, stack: ExitStack) -> bool:
        try:
            stack.enter_context(self.uploader.hold(timeout=1.0))
        except BusyError:
            return False
        return True

    def _pause(self, seconds: float) -> None:
        if self._finishing.is_set():
            self._abandoned.wait(min(seconds, DRAINING_PAUSE))
        else:
            self._finishing.wait(seconds)


class _StopWhen(stop_base):
    def __init__(self, event: threading.Event) -> None:
        self._event = event

    def __call__(self, retry_state: RetryCallState) -> bool:
        return self._event.is_set()


@dataclass(frozen=True)
class Synced:
    """What `sync` did: the run, the store, and the metric values that were missing there."""

    run_id: str
    tracking_uri: str
    metrics_sent: int


def sync(run_dir: Path, *, tracking_uri: str | None = None, timeout: float = 60.0) -> Synced:
    """Upload what a run folder still holds back, now, in this process.

    The store is the one asked for, else `MLFLOW_TRACKING_URI`, else the run's own. Another store than
    before gets the whole run.

    Raises:
        UserError: no tracked run there, it is being uploaded by a live process, or no store for
            `timeout` seconds.
    """
    record = spool.load(spool.run_record_path(run_dir), spool.RunRecord)
    if record is None:
        raise UserError("no tracked run", where=str(run_dir), mend="name the run folder itself")
    uploader = Uploader(run_dir, resolve(run_dir, tracking_uri, record.tracking_uri))
    name = without_credentials(uploader.uri)
    try:
        with uploader.hold(timeout=0):
            upload_patiently(uploader, pause=time.sleep, stop=stop_after_delay(timeout), longest=5.0)
    except BusyError as busy:
        raise UserError(
            "its metrics are being uploaded by a running process",
            where=str(run_dir),
            mend="wait for it to end",
        ) from busy
    except UserError:
        raise
    except Exception as error:
        raise UserError(
            f"not uploaded: {error_line(error)}", where=name, mend="run `membart sync` again when it is up"
        ) from error
    return Synced(str(uploader.run_id), name, uploader.sent)
