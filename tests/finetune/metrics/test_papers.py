"""The papers' tables as data."""

from __future__ import annotations

import pytest

from finetune.metrics import METRICS, papers
from finetune.metrics.papers.table import PaperTable, columns, grid, part, rows

FIGURES = {
    "perplexity",
    *(f"perplexity_session_{n}" for n in range(1, 6)),
    "latency_ms",
    "active_units",
    "kl",
    "sentences_per_second",
    "tokens_per_second",
    "seconds",
}
"""What papers report and models or benchmarks give, not replies."""


@pytest.mark.parametrize("table", papers.TABLES, ids=lambda t: f"{t.family}-{t.number}-{t.dataset}-{t.part}")
def test_tables_are_whole(table: PaperTable):
    assert {column.metric for column in table.columns} <= METRICS.keys() | FIGURES
    assert all(len(figures) == len(table.columns) for figures in table.rows.values())
    assert set(table.ours) <= table.rows.keys()


@pytest.mark.parametrize(
    ("family", "dataset", "part", "row", "metric", "value"),
    [
        ("membart", "convai2", "", "MemBART base (128), context 64", "f1", 27.45),
        ("membart", "convai2", "", "GPT2-24, context 512", "perplexity", 7.81),
        ("baseline", "convai2", "", "GPT2-12, context 64", "perplexity", 10.93),
        ("membart", "persuasion", "", "BART base, context 1024", "perplexity", 10.78),
        ("membart", "long", "PG-19", "LED large, context 2048", "perplexity", 23.04),
        ("membart", "msc", "test", "MemBART base (128), context 128", "perplexity_session_5", 13.23),
        ("membart", "msc", "validation", "LED base, context 2048", "latency_ms", 227.75),
        ("fusion", "convai2", "PersonaChat test", "GPT2-linear", "meteor_nltk15", 8.988),
        ("fusion", "convai2", "PersonaChat test", "Human", "length_no_articles", 11.507),
        ("persona_cvae", "convai2", "validation", "Ours", "distinct_2_per_word", 53.8),
        ("persona_cvae", "ptb", "test", "AT", "active_units", 6),
        ("ki", "wow", "test seen", "Transformer+KI", "safe", 35.18),
        ("ki", "crd", "test", "Transformer", "entities", 2.99),
        ("dior_cvae", "convai2", "test", "DialogVED-beam", "bleu_1_method7", 48.2),
        ("dior_cvae", "dailydialog", "validation", "w/o PLM", "distinct_2", 31.2),
    ],
)
def test_figures_are_the_papers_in_our_units(
    family: str, dataset: str, part: str, row: str, metric: str, value: float
):
    table = next(t for t in papers.tables(family, dataset, part) if row in t.rows)
    assert table.figures(row)[metric] == pytest.approx(value)


def test_a_dash_is_no_figure():
    (table,) = papers.tables("fusion")
    assert "bleu_4" not in table.figures("Human")
    assert not any(
        "MemBART" in row and "context 512" in row for row in papers.tables("membart", "convai2")[0].rows
    )


def test_a_grid_becomes_a_row_per_setting():
    found = grid("m | 1 2 3 4\nn | 5 6 - -", "64 128", width=2)
    assert found == {"m, context 64": (1, 2), "m, context 128": (3, 4), "n, context 64": (5, 6)}


def test_parts_of_rows_leave_out_rows_without_a_figure():
    assert part(rows("m | 1 2 3\nn | - - 4"), 0, 2) == {"m": (1, 2)}


def test_columns_name_other_units():
    table = PaperTable("f", "Table 1", "d", "", columns("a b", b=100), rows("m | 0.5 0.25"))
    assert table.figures("m") == {"a": 0.5, "b": 25}


def test_headings_say_whose_figures_stand_beside_ours():
    beside = papers.beside("dior_cvae", "dailydialog", "test")
    assert list(beside) == [
        "Dior-CVAE-sampling (dailydialog test, Table 1)",
        "Dior-CVAE-beam (dailydialog test, Table 1)",
        "Dior-CVAE (dailydialog test, Table 2)",
    ]
    assert beside["Dior-CVAE (dailydialog test, Table 2)"]["fed"] == 5.36
    asked = papers.beside("ki", "wow", "test unseen", rows=["DiffKS+KI"])
    assert "Transformer (crd test, Table 1)" in papers.beside("ki")
    assert asked["DiffKS+KI (wow test unseen, Table 1)"]["knowledge_accuracy"] == 21.08


def test_data_in_another_form_have_the_same_figures():
    assert papers.beside("ki", "wow_ki") == papers.beside("ki", "wow")
    assert papers.beside("ki", "wow")
    assert papers.beside("ki", "ptb") == {}
