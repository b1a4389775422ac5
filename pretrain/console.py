"""Progress for the person at the terminal: one bar, or one plain line now and then in a log file."""

from __future__ import annotations

import logging
import sys
import time
from types import TracebackType
from typing import NoReturn, TextIO

from tqdm import tqdm


class Console:
    """Shows step/total, loss, tokens/s and the time left. Rank 0 only.

    On a terminal it is a tqdm bar that stays one line; elsewhere a plain line appears for the first
    update, the last one and one every `interval` seconds in between. Until it is closed, warnings of this
    package become lines above the bar.
    """

    def __init__(
        self,
        total: int,
        *,
        step: int = 0,
        interval: float = 30.0,
        label: str = "step",
        stream: TextIO | None = None,
        progress: bool = True,
    ) -> None:
        """`step` is where a resumed run stands: the time left is reckoned from the steps made since.

        Without `progress` only warnings are shown, under the label.
        """
        self._progress = progress
        self._stream = stream or sys.stderr
        self._total, self._first, self._step = total, step, step
        self._interval, self._label = interval, label
        self._began = time.monotonic()
        self._last_line: float | None = None
        self._bar: tqdm[NoReturn] | None = None
        self._logger = logging.getLogger("pretrain")
        self._handler = _Lines(self)
        if not self._logger.hasHandlers():  # else somebody has settled where log records go
            self._logger.addHandler(self._handler)
        if progress and self._stream.isatty():
            self._bar = tqdm(total=total, initial=step, desc=label, file=self._stream, dynamic_ncols=True)

    def update(self, step: int, *, loss: float, tokens_per_second: float, skipped: int = 0) -> None:
        """Steps done so far, with the latest loss (nats a token), speed, and steps that were skipped."""
        if not self._progress:
            return
        facts = {"loss": f"{loss:.3f}", "tok/s": short_number(tokens_per_second)}
        if skipped:
            facts["skipped"] = f"{skipped:,}"
        advance, self._step = step - self._step, step
        if self._bar is not None:
            self._bar.set_postfix(facts, refresh=False)
            self._bar.update(advance)
            return
        now = time.monotonic()
        due = self._last_line is None or now - self._last_line >= self._interval
        if due or step >= self._total:
            self._last_line = now
            values = "  ".join(f"{name} {value}" for name, value in facts.items())
            self._print(f"{self._label} {step}/{self._total}  {values}  ETA {self._time_left(now)}")

    def warn(self, level: str, text: str) -> None:
        """A warning of this package."""
        self.message(f"{level}: {text}" if self._progress else f"{level}: {self._label}: {text}")

    def message(self, text: str) -> None:
        """A line of its own, above the bar."""
        if self._bar is not None:
            self._bar.write(text, file=self._stream)
        else:
            self._print(text)

    def close(self) -> None:
        """Leave the last state of the bar on the screen."""
        self._logger.removeHandler(self._handler)
        if self._bar is not None:
            self._bar.close()

    def __enter__(self) -> Console:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _time_left(self, now: float) -> str:
        made = self._step - self._first
        if made <= 0:
            return "?"
        return tqdm.format_interval((self._total - self._step) * (now - self._began) / made)

    def _print(self, text: str) -> None:
        print(text, file=self._stream, flush=True)


class _Lines(logging.Handler):
    def __init__(self, console: Console) -> None:
        super().__init__(logging.WARNING)
        self._console = console

    def emit(self, record: logging.LogRecord) -> None:
        self._console.warn(record.levelname.lower(), record.getMessage())


def short_number(value: float) -> str:
    """Three digits and a unit: 51234 -> 51.2k."""
    return str(tqdm.format_sizeof(value))
