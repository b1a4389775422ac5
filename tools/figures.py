"""Pictures of studies: an empty one, and how it is written."""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from pretrain.files import write_atomically

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def blank(x: str, y: str, width: float = 7.2, height: float = 4.4) -> tuple[Figure, Axes]:
    """A figure of so many inches with one panel, whose axes are named."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.set(xlabel=x, ylabel=y)
    axes.spines[["top"]].set_visible(False)
    return figure, axes


def save(figure: Figure, path: Path) -> None:
    """A PNG, complete or absent; its name is printed."""
    picture = io.BytesIO()
    figure.savefig(picture, format="png", dpi=150)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, picture.getvalue())
    typer.echo(str(path))
