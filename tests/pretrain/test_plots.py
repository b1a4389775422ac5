"""Plots show what the metrics say, and leave out what was never logged."""

from __future__ import annotations

import math
from pathlib import Path

import matplotlib.image
import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from pretrain import plots
from pretrain.tracking.history import History, Series
from pretrain.tracking.metrics_file import MetricsFile


def history(run_dir: Path, *records: tuple[int, dict[str, float]]) -> History:
    file = MetricsFile(run_dir / "metrics.jsonl")
    for step, metrics in records:
        file.append(step, "train", metrics)
    file.close()
    read = History.read(run_dir)
    assert read is not None
    return read


@pytest.fixture
def axes() -> Axes:
    return Figure().add_subplot()


def drawn(axes: Axes) -> dict[str, list[tuple[float, float]]]:
    return {
        str(line.get_label()): [
            (float(x), float(y)) for x, y in zip(line.get_xdata(), line.get_ydata(), strict=True)
        ]
        for line in axes.lines
        if not str(line.get_label()).startswith("_")
    }


def test_a_whole_run_draws_every_panel(tmp_path: Path) -> None:
    every = {
        **{"loss": 3.0, "memory_gradient_norm": 0.1, "gate_mean": 0.4, "tokens_per_second": 5e4},
        **{"data_wait_share": 0.01, "padding_share": 0.1, "validation/loss": 3.1},
        **{
            "validation/perplexity": 22.0,
            "validation/perplexity_reset": 23.0,
            "validation/history_gain": 0.045,
        },
        **{f"validation/history_gain_by_segment/{segment}": 0.01 * segment for segment in range(12)},
    }
    written = plots.write_plots(history(tmp_path, (1, every), (2, every)), tmp_path / "plots")
    assert [path.stem for path in written.panels.values()] == [panel.name for panel in plots.PANELS]
    assert written.page is not None
    for path in (*written.panels.values(), written.page):
        picture = matplotlib.image.imread(path)
        assert min(picture.shape[:2]) > 400
        assert picture.std() > 0.01, "a blank picture"
    assert sorted(path.name for path in (tmp_path / "plots").iterdir()) == sorted(
        [*(f"{panel.name}.png" for panel in plots.PANELS), "all.png"]
    )


def test_what_was_not_logged_is_left_out(tmp_path: Path) -> None:
    bare = history(tmp_path, (1, {"loss": math.nan, "gate_mean": 0.5, "memory_gradient_norm": 0.0}))
    written = plots.write_plots(bare, tmp_path / "plots")
    assert list(written.panels) == ["Memory gate"]
    nothing = plots.write_plots(History({"odd": bare.columns["gate_mean"]}, 0, 0), tmp_path / "none")
    assert nothing == plots.Plots({}, None)
    assert list((tmp_path / "none").iterdir()) == []


def test_loss_leaves_out_steps_that_were_not_finite(tmp_path: Path, axes: Axes) -> None:
    run = history(
        tmp_path, (1, {"loss": 4.0}), (2, {"loss": math.nan}), (3, {"loss": 2.0, "validation/loss": 2.5})
    )
    assert plots.draw_loss(axes, run)
    assert drawn(axes) == {"training": [(1, 4.0), (3, 2.0)], "held out, with memory": [(3, 2.5)]}


def test_the_gradient_through_memory_is_logarithmic_and_skips_zero(tmp_path: Path, axes: Axes) -> None:
    run = history(
        tmp_path, *((step, {"memory_gradient_norm": 10.0**-step if step != 2 else 0.0}) for step in (1, 2, 3))
    )
    assert plots.draw_memory_gradient(axes, run)
    assert axes.get_yscale() == "log"
    assert drawn(axes) == {"through memory": [(1, 0.1), (3, 0.001)]}


@pytest.mark.parametrize(("first", "scale"), [(2000.0, "log"), (25.0, "linear")])
def test_perplexity_is_logarithmic_only_over_a_wide_range(
    tmp_path: Path, axes: Axes, first: float, scale: str
) -> None:
    names = ("validation/perplexity", "validation/perplexity_reset")
    run = history(tmp_path, *((step, dict.fromkeys(names, value)) for step, value in ((1, first), (2, 20.0))))
    assert plots.draw_perplexity(axes, run)
    assert axes.get_yscale() == scale
    assert drawn(axes) == {label: [(1, first), (2, 20.0)] for label in ("with memory", "memory reset")}


def test_gain_by_segment_shows_first_middle_and_last_validation(tmp_path: Path, axes: Axes) -> None:
    prefix = "validation/history_gain_by_segment/"
    run = history(
        tmp_path,
        *(
            (step, {f"{prefix}{s}": step * s / 100 for s in range(11 if step < 5 else 10)})
            for step in range(1, 6)
        ),
    )
    assert plots.draw_gain_by_segment(axes, run)
    assert drawn(axes) == {
        f"step {step}": [(s, step * s / 100) for s in range(segments)]
        for step, segments in ((1, 11), (3, 11), (5, 10))
    }


def test_blocks_keep_mean_and_range() -> None:
    series = Series(np.arange(1, 1001), np.sin(np.arange(1000.0)))
    steps, mean, low, high = plots.blocks(series, limit=100)
    assert len(steps) == 100
    assert steps[0] == pytest.approx(5.5)
    np.testing.assert_allclose(mean, series.values.reshape(100, 10).mean(axis=1))
    np.testing.assert_array_equal(low, series.values.reshape(100, 10).min(axis=1))
    np.testing.assert_array_equal(high, series.values.reshape(100, 10).max(axis=1))
    uneven = Series(np.arange(7), np.arange(7.0))
    assert [part.tolist() for part in plots.blocks(uneven, limit=3)] == [
        [1, 4, 6],
        [1, 4, 6],
        [0, 3, 6],
        [2, 5, 6],
    ]
