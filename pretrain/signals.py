"""Signals that ask a run to save and end; the handler only sets a flag, read at step boundaries."""

from __future__ import annotations

import signal
from types import FrameType

STOP_SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)
"""SIGINT too: the keyboard's, which launchers pass on a second time. SIGQUIT ends a process at once."""


class StopRequest:
    """Installed once per process; `name` is the first signal received, or None. A second changes nothing."""

    def __init__(self) -> None:
        self.name: str | None = None
        for number in STOP_SIGNALS:
            signal.signal(number, self._remember)

    def _remember(self, number: int, frame: FrameType | None) -> None:
        self.name = self.name or signal.Signals(number).name
