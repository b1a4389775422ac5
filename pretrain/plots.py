"""The curves of a run as PNG files, drawn from `metrics.jsonl` alone.

A panel whose metrics were never logged is left out. matplotlib is imported here and nowhere else; nothing
touches its global state, so plots may be drawn from any thread.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import (
    EngFormatter,
    LogLocator,
    MaxNLocator,
    NullFormatter,
    PercentFormatter,
    StrMethodFormatter,
)
from numpy.typing import NDArray

from pretrain.files import write_atomically
from pretrain.tracking.history import History, Series

BLUE, VERMILION, GREEN, GREY = "#0072B2", "#D55E00", "#009E73", "#6B7280"
"""Colours that stay apart for colour-blind eyes (Okabe and Ito)."""

_POINTS = 400
"""Points of a drawn line; more are averaged in blocks, with their range as a band."""
_DPI = 150
_LINEAR_UP_TO = 4.0
"""A range from lowest to highest below which a logarithmic axis has no ticks left to read."""
_SEGMENT_GAIN = "validation/history_gain_by_segment/"


@dataclass(frozen=True)
class Panel:
    """One picture: `draw` returns False when the run has nothing to show there."""

    name: str
    title: str
    draw: Callable[[Axes, History], bool]


def draw_loss(axes: Axes, history: History) -> bool:
    """Training loss, with validation loss on top."""
    drawn = _line(axes, history.finite("loss"), BLUE, "training")
    drawn |= _line(axes, history.finite("validation/loss"), VERMILION, "held out, with memory", marker="o")
    axes.set_ylabel("nats per token")
    return drawn


def draw_perplexity(axes: Axes, history: History) -> bool:
    """Held-out perplexity with memory and with memory reset at every step; logarithmic when it fell far."""
    memory = history.finite("validation/perplexity")
    reset = history.finite("validation/perplexity_reset")
    drawn = _line(axes, memory, BLUE, "with memory", marker="o")
    drawn |= _line(axes, reset, VERMILION, "memory reset", marker="s", style="--")
    values = [float(value) for series in (memory, reset) if series is not None for value in series.values]
    if drawn and min(values) > 0 and max(values) / min(values) > _LINEAR_UP_TO:
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        axes.yaxis.set_minor_formatter(NullFormatter())
    axes.yaxis.set_major_formatter(StrMethodFormatter("{x:,g}"))
    axes.set_ylabel("perplexity")
    return drawn


def draw_history_gain(axes: Axes, history: History) -> bool:
    """How much worse held-out perplexity gets without memory."""
    drawn = _line(axes, history.finite("validation/history_gain"), BLUE, "history gain", marker="o")
    axes.axhline(0, color=GREY, linewidth=0.8)
    _percent(axes)
    axes.set_ylabel("perplexity lost without memory")
    return drawn


def draw_gain_by_segment(axes: Axes, history: History) -> bool:
    """History gain by a segment's place in its document: the first, middle and last validation."""
    segments = history.numbered(_SEGMENT_GAIN)
    if not segments:
        return False
    validations = sorted({int(step) for series in segments.values() for step in series.steps})
    shown = sorted({validations[0], validations[len(validations) // 2], validations[-1]})
    for number, step in enumerate(shown):
        at_step = {
            segment: float(series.values[series.steps == step][0])
            for segment, series in segments.items()
            if (series.steps == step).any()
        }
        strength = (number + 1) / len(shown)
        axes.plot(
            list(at_step),
            list(at_step.values()),
            "o-",
            color=BLUE,
            alpha=strength,
            label=f"step {step:,}",
            ms=4,
        )
    axes.axhline(0, color=GREY, linewidth=0.8)
    _percent(axes)
    axes.set_xlim(-0.5, max(segments) + 0.5)
    axes.set_xlabel("segment of the document (0 has no history)")
    axes.set_ylabel("perplexity lost without memory")
    return True


def draw_memory_gradient(axes: Axes, history: History) -> bool:
    """Norm of the gradient that flows through memory (Figure 4 of the MemBART paper); logarithmic."""
    series = history.finite("memory_gradient_norm")
    if series is not None:
        above = series.values > 0
        series = Series(series.steps[above], series.values[above]) if above.any() else None
    axes.set_yscale("log")
    axes.set_ylabel("norm")
    return _line(axes, series, BLUE, "through memory")


def draw_gate(axes: Axes, history: History) -> bool:
    """Mean of the memory gate: the share of a slot's new content that is kept."""
    drawn = _line(axes, history.finite("gate_mean"), BLUE, "mean gate")
    axes.set_ylim(0, 1)
    axes.set_ylabel("mean gate")
    return drawn


def draw_throughput(axes: Axes, history: History) -> bool:
    """Tokens per second of the whole job."""
    drawn = _line(axes, history.finite("tokens_per_second"), BLUE, "tokens per second")
    axes.yaxis.set_major_formatter(EngFormatter(sep=""))
    axes.set_ylim(bottom=0)
    axes.set_ylabel("tokens per second")
    return drawn


def draw_waste(axes: Axes, history: History) -> bool:
    """Time spent waiting for data, and the part of the batch that is padding."""
    drawn = _line(axes, history.finite("data_wait_share"), VERMILION, "waiting for data, of time")
    drawn |= _line(axes, history.finite("padding_share"), BLUE, "padding, of tokens")
    axes.set_ylim(bottom=0)
    _percent(axes)
    return drawn


PANELS = (
    Panel("loss", "Loss", draw_loss),
    Panel("perplexity", "Held-out perplexity", draw_perplexity),
    Panel("history_gain", "History gain", draw_history_gain),
    Panel("history_gain_by_segment", "History gain by segment", draw_gain_by_segment),
    Panel("memory_gradient_norm", "Gradient through memory", draw_memory_gradient),
    Panel("gate", "Memory gate", draw_gate),
    Panel("throughput", "Throughput", draw_throughput),
    Panel("waste", "Waiting and padding", draw_waste),
)


@dataclass(frozen=True)
class Plots:
    """Files drawn: the single panels in order, and all of them on one page (None when there is none)."""

    panels: dict[str, Path]
    page: Path | None


def write_plots(history: History, folder: Path) -> Plots:
    """Draw every panel that has something to show as `folder/NAME.png`, and `folder/all.png`."""
    folder.mkdir(parents=True, exist_ok=True)
    written: dict[str, Path] = {}
    shown: list[Panel] = []
    for panel in PANELS:
        figure = Figure(figsize=(6.4, 4.0), layout="constrained")
        if _draw(panel, figure.add_subplot(), history):
            shown.append(panel)
            written[panel.title] = _save(figure, folder / f"{panel.name}.png")
    return Plots(written, _write_page(shown, history, folder / "all.png") if shown else None)


def write_lines(series: Mapping[str, Mapping[int, float]], path: Path, *, title: str, x_label: str) -> Path:
    """Draw named series over whole numbers, such as layers, into one PNG."""
    figure = Figure(figsize=(6.4, 4.0), layout="constrained")
    axes = figure.add_subplot()
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    styles = zip(series.items(), cycle((BLUE, VERMILION, GREEN, GREY)), cycle("osD^"), strict=False)
    for (name, values), color, marker in styles:
        axes.plot(list(values), list(values.values()), marker=marker, color=color, label=name, linewidth=1.5)
    axes.set_xlabel(x_label)
    _dress(axes, title)
    path.parent.mkdir(parents=True, exist_ok=True)
    return _save(figure, path)


def _write_page(panels: Sequence[Panel], history: History, path: Path) -> Path:
    columns = min(2, len(panels))
    rows = math.ceil(len(panels) / columns)
    figure = Figure(figsize=(6.2 * columns, 3.6 * rows), layout="constrained")
    for number, panel in enumerate(panels):
        _draw(panel, figure.add_subplot(rows, columns, number + 1), history)
    return _save(figure, path)


def _draw(panel: Panel, axes: Axes, history: History) -> bool:
    axes.set_xlabel("step")
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    axes.xaxis.set_major_locator(MaxNLocator(nbins=8, integer=True))
    axes.set_xlim(0, history.last_step * 1.02 + 0.5)
    drawn = panel.draw(axes, history)
    _dress(axes, panel.title)
    return drawn


def _dress(axes: Axes, title: str) -> None:
    axes.set_title(title, loc="left", fontsize=11, fontweight="bold")
    axes.grid(True, color="#E5E7EB", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    if len(axes.get_legend_handles_labels()[1]) > 1:
        axes.legend(framealpha=0.85, edgecolor="none", fontsize=9)


def _line(
    axes: Axes, series: Series | None, color: str, label: str, *, marker: str = "", style: str = "-"
) -> bool:
    if series is None:
        return False
    steps, middle, low, high = blocks(series)
    marker = marker or ("o" if len(steps) == 1 else "")
    axes.plot(steps, middle, style, color=color, label=label, marker=marker, markersize=4, linewidth=1.5)
    if len(steps) < len(series.steps):
        axes.fill_between(steps, low, high, color=color, alpha=0.15, linewidth=0)
    return True


def blocks(series: Series, limit: int = _POINTS) -> tuple[NDArray[np.float64], ...]:
    """At most `limit` points of a series: mean step, mean, lowest and highest value of equal blocks."""
    size = math.ceil(len(series.steps) / limit)
    starts = np.arange(0, len(series.steps), size)
    counts = np.diff(np.append(starts, len(series.steps)))
    return (
        np.add.reduceat(series.steps, starts) / counts,
        np.add.reduceat(series.values, starts) / counts,
        np.minimum.reduceat(series.values, starts),
        np.maximum.reduceat(series.values, starts),
    )


def _percent(axes: Axes) -> None:
    axes.yaxis.set_major_formatter(PercentFormatter(xmax=1.0))


def _save(figure: Figure, path: Path) -> Path:
    picture = io.BytesIO()
    FigureCanvasAgg(figure)
    figure.savefig(picture, format="png", dpi=_DPI)
    write_atomically(path, picture.getvalue())
    return path
