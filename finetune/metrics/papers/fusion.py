"""The automatic figures of the multi-source fusion paper; its METEOR is the program METEOR 1.5."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from finetune.metrics.papers.table import PaperTable, columns, rows

TABLES = (
    PaperTable(
        "fusion",
        "Table 1",
        "convai2",
        "PersonaChat test",
        columns(
            "bleu_4 meteor_nltk15 nist_4 entropy_4_no_articles distinct_2_no_articles length_no_articles"
        ),
        rows(
            """
            Human           | -     -     -     10.725 36.688 11.507
            Seq2seq         | 1.769 6.926 1.028  6.789  6.356  8.710
            TransferTransfo | 2.054 7.672 1.183  8.429 17.917  7.824
            MI-GPT          | 3.151 8.112 1.264  8.054 13.264  9.026
            TransferGPT2    | 2.273 7.872 1.194  8.263 16.444  8.036
            GPT2-avg        | 3.211 8.149 1.291  7.904 13.612  8.932
            GPT2-max        | 3.344 8.156 1.206  8.175 14.104  8.750
            GPT2-min        | 3.774 8.661 1.388  8.099 14.925  9.209
            GPT2-sw         | 3.949 8.881 1.407  8.228 15.294  9.068
            GPT2-dw         | 3.714 8.694 1.385  8.096 14.647  9.095
            GPT2-linear     | 4.147 8.988 1.408  8.279 15.237  9.011
            GPT2-att        | 3.659 8.449 1.249  8.028 14.592  8.723
            """
        ),
        ours=("GPT2-avg", "GPT2-sw", "GPT2-linear"),
    ),
)


def rows_beside(settings: Mapping[str, Any]) -> tuple[str, ...]:
    """The rows that a model with these settings is compared with: its own and its baseline."""
    if settings.get("inputs") == "single":
        return ("Seq2seq", "TransferTransfo", "TransferGPT2")
    if settings.get("shared_attention"):
        return ("MI-GPT", "GPT2-avg")
    return tuple(dict.fromkeys(("GPT2-avg", f"GPT2-{settings.get('fusion', 'linear')}")))
