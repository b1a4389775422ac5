"""What was measured, as data, JSON and a Markdown table beside a paper's numbers."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace

Column = Mapping[str, float]
"""Figures by metric."""


@dataclass(frozen=True)
class Report:
    """Figures of one set of predictions."""

    values: dict[str, float]
    unavailable: dict[str, str] = field(default_factory=dict)
    """Metric -> what is missing, in one line."""
    notes: dict[str, str] = field(default_factory=dict)
    """Metric -> what it means, and what computed it: library with version, resources."""

    def with_values(self, values: Column) -> Report:
        """The same with more figures, such as perplexities, before its own."""
        return replace(self, values={**values, **self.values})

    def to_json(self) -> str:
        """`values`, `unavailable` and `notes` as one JSON object."""
        return json.dumps(asdict(self), indent=1, ensure_ascii=False) + "\n"

    def markdown(self, beside: Mapping[str, Column] | None = None, name: str = "ours") -> str:
        """The figures as a table, then what is not available and what the others mean.

        Args:
            beside: more columns by their heading, such as `papers.beside` gives; their metrics that are not
                among ours get rows too.
            name: heading of our column.
        """
        parts = [table({name: self.values, **(beside or {})})]
        if self.unavailable:
            parts.append(_listed("Not available:", self.unavailable))
        if self.notes:
            parts.append(_listed("Metrics:", self.notes))
        return "\n".join(parts)


def table(columns: Mapping[str, Column]) -> str:
    """A Markdown table: a row per metric in order of appearance, a column per heading."""
    metrics = list(dict.fromkeys(metric for column in columns.values() for metric in column))
    lines = [_row("metric", *columns), _row("---", *("---:" for _ in columns))]
    lines += [
        _row(metric, *(_number(column.get(metric)) for column in columns.values())) for metric in metrics
    ]
    return "\n".join(lines) + "\n"


def _row(*cells: str) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _number(value: float | None) -> str:
    if value is None:
        return "–"
    return f"{value:.3f}" if abs(value) < 10 else f"{value:,.2f}"


def _listed(heading: str, lines: Mapping[str, str]) -> str:
    return "\n".join([heading, "", *(f"- `{metric}`: {line}" for metric, line in lines.items())]) + "\n"
