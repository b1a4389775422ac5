"""The automatic figures of the knowledge internalization paper.

Its wikiF1 of one model is 10.69 in two tables and 11.25 in three. BLEU and ROUGE-L are of lower-case texts
with spaced punctuation, see `finetune.metrics.text.respaced`.
"""

from collections.abc import Mapping
from functools import partial
from typing import Any

from finetune.metrics.papers.table import PaperTable, columns, part, rows

_DIVERSITY = "distinct_1_normalized distinct_2_normalized safe"
_OVERLAP = "bleu_4 rouge_l_recall"
_PLAIN = rows(
    """
    Seq2Seq        | 28.94 3.84 14.22 2.85 11.74 2.50 55.54 1.32 2.59 10.58 1.13  4.47 41.81
    Seq2Seq+KI     | 29.35 4.65 14.64 3.36 14.10 2.70 47.32 2.26 2.90 11.13 1.86  7.37 35.08
    Transformer    | 23.37 2.65 12.97 1.48  5.10 7.14 35.86 2.99 2.12 11.88 2.01  7.40 23.90
    Transformer+KI | 19.72 6.13 17.48 4.39 21.88 0.53 28.50 3.29 3.01 11.92 3.24 17.81  8.05
    """
)
_WOW = rows(
    """
    Seq2Seq        | 77.50  6.15 1.94 10.09 1.81  5.48 53.02 144.64 6.11 1.47 10.78 2.58 10.25 36.06
    Seq2Seq+KI     | 67.69  9.59 2.25 12.45 4.99 17.32 36.24 122.46 7.09 1.62 11.23 3.12 12.05 37.98
    Transformer    | 48.91  6.83 2.02 11.29 1.95  4.44 83.69  93.92 5.43 1.48 10.08 1.43  3.27 84.67
    Transformer+KI | 46.68 10.69 2.85 12.84 5.66 18.68 35.18  93.02 7.13 1.82 11.23 3.82 12.98 41.62
    """
)
_DIFFKS = rows(
    """
    DiffKS    | 25.30 67.06 5.73 17.48 9.61 37.29 5.10 19.72 64.77 4.60 15.75 3.83 12.15 7.36
    DiffKS+KI | 26.24 74.23 6.14 17.82 9.96 39.61 6.34 21.08 72.03 5.11 16.97 4.10 13.38 8.26
    """
)
_BART = rows(
    """
    Transformer    | 2.65 12.97 1.48  5.10 7.14 2.12 11.88 2.01  7.40 23.90
    Transformer+KI | 6.13 17.48 4.39 21.88 0.53 3.01 11.92 3.24 17.81  8.05
    BART-base      | 0.65 13.40 4.95 19.47 5.51 0.48 11.60 5.03 26.89  7.40
    """
)
_BART_WOW = rows(
    """
    Transformer    |  6.83 2.02 11.29 1.95  4.44 83.69 5.43 1.48 10.08 1.43  3.27 84.67
    Transformer+KI | 10.69 2.85 12.84 5.66 18.68 35.18 7.13 1.82 11.23 3.82 12.98 41.62
    BART-base      |  8.85 1.99 11.30 6.43 24.91 15.79 6.51 1.65 11.85 5.16 20.90 15.82
    """
)
_SPEED = rows(
    """
    Transformer, DailyDialog    | 215 2136  31.4
    Transformer+KI, DailyDialog | 192 1980  35.1
    Transformer, CRD            | 158 5263 126.7
    Transformer+KI, CRD         | 184 4506 108.8
    Transformer, WoW seen       | 131 3397  25.9
    Transformer+KI, WoW seen    | 133 2925  25.4
    Transformer, WoW unseen     | 152 3943  22.4
    Transformer+KI, WoW unseen  | 140 3331  24.3
    """
)
_BACKBONES = rows(
    """
    Transformer    |  6.83 2.02 1.95  4.44
    Bert2Rnd       |  4.89 0.94 3.96 15.35
    Ernie2Rnd      |  5.15 0.91 3.95 19.73
    Transformer+KI | 11.25 2.85 5.66 18.68
    Bert2Rnd+KI    |  5.19 1.31 8.23 40.98
    Ernie2Rnd+KI   |  5.02 1.19 5.01 21.27
    """
)
_KNOWLEDGE = rows(
    """
    Token-level    | 11.25 2.85 12.84 5.66 18.68 35.18
    Random         |  5.38 1.27  9.39 1.01  2.31 92.10
    Sentence-level |  8.41 2.31 11.72 2.98  7.77 66.32
    """
)
_RETRIEVAL = rows(
    """
    Transformer+KI         | 11.25 2.85 12.84 5.66 18.68 46.68
    w/o stop-word masking  |  5.23 2.63 12.68 5.48 21.74 57.27
    w/o exact matching     | 10.74 2.54 11.99 4.75 15.27 47.65
    """
)
_MODELS = ("Transformer", "Transformer+KI")
_KGD = columns(f"knowledge_accuracy wiki_f1_selected {_OVERLAP} {_DIVERSITY}")
_SEEN, _UNSEEN = "test seen", "test unseen"
_WOW_COLUMNS = columns(f"perplexity wiki_f1 {_OVERLAP} {_DIVERSITY}")
_WOW_BART_COLUMNS = columns(f"wiki_f1 {_OVERLAP} {_DIVERSITY}")
_table = partial(PaperTable, "ki")

_BODIES = {
    "lstm": ("Seq2Seq", "Seq2Seq+KI"),
    "bart": ("BART-base",),
    "bert": ("Bert2Rnd", "Bert2Rnd+KI", "Ernie2Rnd", "Ernie2Rnd+KI"),
    "diffks": ("DiffKS", "DiffKS+KI"),
}
_CONTROLS = {"random": ("Token-level", "Random"), "sentence": ("Token-level", "Sentence-level")}


def rows_beside(settings: Mapping[str, Any]) -> tuple[str, ...]:
    """The rows that a model with these settings is compared with; empty: those of each table."""
    control = _CONTROLS.get(settings.get("knowledge_control", "none"))
    return control or _BODIES.get(settings.get("body", "membart"), ())


TABLES = (
    _table(
        "Table 1",
        "dailydialog",
        "test",
        columns(f"perplexity {_OVERLAP} {_DIVERSITY}"),
        part(_PLAIN, 0, 6),
        _MODELS,
    ),
    _table(
        "Table 1",
        "crd",
        "test",
        columns(f"perplexity entities {_OVERLAP} {_DIVERSITY}"),
        part(_PLAIN, 6, 13),
        _MODELS,
    ),
    _table("Table 1", "wow", _SEEN, _WOW_COLUMNS, part(_WOW, 0, 7), _MODELS),
    _table("Table 1", "wow", _UNSEEN, _WOW_COLUMNS, part(_WOW, 7, 14), _MODELS),
    _table("Table 1", "wow", _SEEN, _KGD, part(_DIFFKS, 0, 7)),
    _table("Table 1", "wow", _UNSEEN, _KGD, part(_DIFFKS, 7, 14)),
    _table("Table 3", "all", "test", columns("sentences_per_second tokens_per_second seconds"), _SPEED),
    _table(
        "Table 4",
        "wow",
        _SEEN,
        columns("wiki_f1 bleu_4 distinct_1_normalized distinct_2_normalized"),
        _BACKBONES,
    ),
    _table("Table 5", "wow", _SEEN, _WOW_BART_COLUMNS, _KNOWLEDGE),
    _table(
        "Table 9",
        "wow",
        _SEEN,
        columns(f"wiki_f1 {_OVERLAP} distinct_1_normalized distinct_2_normalized perplexity"),
        _RETRIEVAL,
    ),
    _table(
        "Table 10",
        "crd",
        "test",
        columns("perplexity entities"),
        rows("CCM | 39.18 1.18\nTransformer+KI | 28.50 3.29"),
    ),
    _table(
        "Table 12",
        "dailydialog",
        "test",
        columns(f"{_OVERLAP} {_DIVERSITY}"),
        part(_BART, 0, 5),
    ),
    _table("Table 12", "crd", "test", columns(f"{_OVERLAP} {_DIVERSITY}"), part(_BART, 5, 10)),
    _table("Table 12", "wow", _SEEN, _WOW_BART_COLUMNS, part(_BART_WOW, 0, 6)),
    _table("Table 12", "wow", _UNSEEN, _WOW_BART_COLUMNS, part(_BART_WOW, 6, 12)),
)
