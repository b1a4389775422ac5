"""A table of a paper as data: figures as they are printed, and which of our metrics each column is."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

Figures = tuple[float | None, ...]
"""One row; None where the paper prints a dash."""


@dataclass(frozen=True)
class Column:
    """One printed column."""

    metric: str
    """Our name: of `finetune.metrics.METRICS`, of evaluation's figures, or of a benchmark."""
    scale: float = 1.0
    """Printed figure times this is our unit."""


@dataclass(frozen=True)
class PaperTable:
    """One table, or the part of one that belongs to one set of data."""

    family: str
    """Whose paper it is in, by our name of the family."""
    number: str
    """`Table 1`"""
    dataset: str
    """Our name of the data."""
    part: str
    """Split or setting, in words."""
    columns: tuple[Column, ...]
    rows: Mapping[str, Figures]
    """By model and setting."""
    ours: tuple[str, ...] = ()
    """The rows that a run of ours is compared with unless others are asked for."""

    def figures(self, row: str) -> dict[str, float]:
        """The printed figures of a row by our metrics, in our units."""
        pairs = zip(self.columns, self.rows[row], strict=True)
        return {column.metric: value * column.scale for column, value in pairs if value is not None}


def columns(names: str, **scales: float) -> tuple[Column, ...]:
    """Columns by our metrics' names, with the scales of those that are printed in another unit."""
    return tuple(Column(name, scales.get(name, 1.0)) for name in names.split())


def rows(text: str) -> dict[str, Figures]:
    """Rows from lines `model | figure figure - figure`."""
    return {name: _figures(cells) for name, cells in _lines(text)}


def grid(text: str, settings: str, width: int = 1) -> dict[str, Figures]:
    """Rows from lines that hold several settings side by side: each becomes `model, context SETTING`.

    Args:
        settings: what the blocks of a line are, from left to right.
        width: figures per block; a block of dashes becomes no row.
    """
    found: dict[str, Figures] = {}
    for name, cells in _lines(text):
        figures = _figures(cells)
        for place, setting in enumerate(settings.split()):
            block = figures[place * width : (place + 1) * width]
            if any(figure is not None for figure in block):
                found[f"{name}, context {setting}"] = block
    return found


def part(found: Mapping[str, Figures], first: int, last: int) -> dict[str, Figures]:
    """Columns `first` to before `last` of rows; rows of dashes alone are left out."""
    cut = {name: figures[first:last] for name, figures in found.items()}
    return {name: figures for name, figures in cut.items() if any(figure is not None for figure in figures)}


def _lines(text: str) -> Iterator[tuple[str, str]]:
    for line in text.strip().split("\n"):
        name, _, cells = line.partition("|")
        yield name.strip(), cells


def _figures(cells: str) -> Figures:
    return tuple(None if cell == "-" else float(cell) for cell in cells.split())
