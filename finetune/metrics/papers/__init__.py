"""The papers' automatic figures as data, to stand beside ours. Human ratings are left out.

report.markdown(papers.beside("membart", "convai2"))
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from finetune.metrics.papers import dior_cvae, fusion, ki, membart, persona_cvae
from finetune.metrics.papers.table import Column, PaperTable

__all__ = ["TABLES", "Column", "PaperTable", "beside", "rows_beside", "tables"]

TABLES: tuple[PaperTable, ...] = (
    *membart.TABLES,
    *fusion.TABLES,
    *persona_cvae.TABLES,
    *ki.TABLES,
    *dior_cvae.TABLES,
)

_SAME_DATA = {"wow_ki": "wow", "dailydialog_plusplus": "dailydialog"}
"""Other forms of data that the papers report on."""
_SAME_PAPER = {"baseline": "membart"}
"""Families that are controls in the paper of another."""


def tables(family: str, dataset: str | None = None, part: str | None = None) -> list[PaperTable]:
    """The tables of a family's paper.

    Args:
        dataset: only of this data, by our name.
        part: only of this split or setting, as in `test seen`.
    """
    wanted, paper = dataset and _SAME_DATA.get(dataset, dataset), _SAME_PAPER.get(family, family)
    return [
        table
        for table in TABLES
        if table.family == paper and wanted in (None, table.dataset) and part in (None, table.part)
    ]


def beside(
    family: str, dataset: str | None = None, part: str | None = None, rows: Sequence[str] = ()
) -> dict[str, dict[str, float]]:
    """Columns for `Report.markdown`: figures by our metrics, in our units; the headings say whose they are.

    Args:
        dataset, part: as in `tables`.
        rows: models of the tables, as they are called there; unless given, each table's `ours`.
    """
    found: dict[str, dict[str, float]] = {}
    for table in tables(family, dataset, part):
        for row in rows or table.ours:
            if row in table.rows:
                data = f"{table.dataset} {table.part}".strip()
                found.setdefault(f"{row} ({data}, {table.number})", {}).update(table.figures(row))
    return found


def rows_beside(family: str, settings: Mapping[str, Any]) -> tuple[str, ...]:
    """`rows` of `beside` for a model with these settings of its family; empty where they do not matter."""
    choices = {"ki": ki.rows_beside, "fusion": fusion.rows_beside}
    return choices[family](settings) if family in choices else ()
