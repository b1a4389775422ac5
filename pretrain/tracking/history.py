"""A run's metrics as columns, for plots and reports."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pretrain.tracking.metrics_file import METRICS_FILE, read_records


@dataclass(frozen=True)
class Series:
    """The values of one metric in step order: `steps` int64 `[n]`, `values` float64 `[n]`, n >= 1."""

    steps: NDArray[np.int64]
    values: NDArray[np.float64]

    @property
    def last(self) -> float:
        """The newest value."""
        return float(self.values[-1])

    def finite(self) -> Series | None:
        """Without the steps that were not finite; None when nothing is left."""
        keep = np.isfinite(self.values)
        return Series(self.steps[keep], self.values[keep]) if keep.any() else None


@dataclass(frozen=True)
class History:
    """Every metric of a run by name."""

    columns: dict[str, Series]
    first_time: float
    last_time: float
    """Seconds since 1970 of the first and the last record."""

    @classmethod
    def read(cls, run_dir: Path) -> History | None:
        """The metrics in `run_dir/metrics.jsonl`; None when there is no such file or nothing in it."""
        path = run_dir / METRICS_FILE
        if not path.exists():
            return None
        steps: dict[str, list[int]] = {}
        values: dict[str, list[float]] = {}
        times: list[float] = []
        for record, _ in read_records(path):
            if record is not None:
                times.append(record.time)
                for name, value in record.metrics.items():
                    steps.setdefault(name, []).append(record.step)
                    values.setdefault(name, []).append(value)
        if not times:
            return None
        columns = {
            name: Series(np.array(steps[name], dtype=np.int64), np.array(values[name], dtype=np.float64))
            for name in steps
        }
        return cls(columns, times[0], times[-1])

    def finite(self, name: str) -> Series | None:
        """One metric without its non-finite values; None when there is none."""
        series = self.columns.get(name)
        return None if series is None else series.finite()

    def numbered(self, prefix: str) -> dict[int, Series]:
        """Metrics `prefix0`, `prefix1`, ... by number, without non-finite values, in order."""
        found: dict[int, Series] = {}
        for name, series in self.columns.items():
            number, finite = name.removeprefix(prefix), series.finite()
            if name.startswith(prefix) and number.isdigit() and finite is not None:
                found[int(number)] = finite
        return dict(sorted(found.items()))

    @property
    def last_step(self) -> int:
        """The newest step of any metric."""
        return max(int(series.steps[-1]) for series in self.columns.values())
