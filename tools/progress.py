"""Progress of a shard build: one bar on a terminal, a plain line now and then in a log."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import NoReturn, TextIO

from tqdm import tqdm

from pretrain.corpus.build import BuildProgress

LINE_SECONDS = 10.0


class BuildConsole:
    """Shows documents/s, tokens/s and the time left, reckoned from what this call has done."""

    def __init__(self, stream: TextIO | None = None, *, interval: float = LINE_SECONDS) -> None:
        self._stream = stream or sys.stderr
        self._interval = interval
        self._first: BuildProgress | None = None
        self._began = self._shown = time.monotonic()
        self._bar: tqdm[NoReturn] | None = None

    def update(self, progress: BuildProgress) -> None:
        """Show how far the build is."""
        now = time.monotonic()
        if self._first is None:
            self._first, self._began = progress, now
            if self._stream.isatty():
                self._bar = tqdm(
                    total=progress.total_bytes,
                    initial=progress.done_bytes,
                    unit="B",
                    unit_scale=True,
                    file=self._stream,
                    dynamic_ncols=True,
                )
        if self._bar is not None:
            self._bar.set_description(progress.source, refresh=False)
            self._bar.set_postfix_str(self._rates(progress, now), refresh=False)
            self._bar.update(progress.done_bytes - self._bar.n)
        elif now - self._shown >= self._interval:
            self._shown = now
            share = f"{progress.done_bytes / progress.total_bytes:.1%}" if progress.total_bytes else "?"
            rates, left = self._rates(progress, now), self._left(progress, now)
            print(f"{progress.source} {share}  {rates}  ETA {left}", file=self._stream, flush=True)

    def message(self, text: str) -> None:
        """A line of its own."""
        print(text, file=self._stream, flush=True)

    def __enter__(self) -> BuildConsole:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.close()

    def _rates(self, progress: BuildProgress, now: float) -> str:
        assert self._first is not None
        seconds = max(now - self._began, 1e-9)
        documents = (progress.documents - self._first.documents) / seconds
        tokens = (progress.tokens - self._first.tokens) / seconds
        rejects = f"  {progress.rejects:,} rejects" if progress.rejects else ""
        return (
            f"{progress.documents:,} documents  {documents:,.0f} documents/s  "
            f"{tqdm.format_sizeof(tokens)} tokens/s{rejects}"
        )

    def _left(self, progress: BuildProgress, now: float) -> str:
        assert self._first is not None
        done = progress.done_bytes - self._first.done_bytes
        if not progress.total_bytes or done <= 0:
            return "?"
        rest = max(progress.total_bytes - progress.done_bytes, 0)
        return str(tqdm.format_interval(rest * (now - self._began) / done))
