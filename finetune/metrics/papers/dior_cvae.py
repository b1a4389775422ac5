"""The automatic figures of the Dior-CVAE paper; its BLEU is the mean of smoothed sentence scores."""

from functools import partial

from finetune.metrics.papers.table import PaperTable, columns, part, rows

_MAIN = rows(
    """
    iVAE-MI             | 30.9 24.9 2.9 25.0 38.2 27.7 0.9  8.2
    LIC                 | -    -    -   -    40.5 32.0 1.9 11.3
    DELLA (BART)        | 47.3 40.5 5.2 28.9 41.6 35.4 1.7  9.8
    Optimus             | 41.2 38.5 4.1 29.7 42.7 34.3 1.9 11.7
    ProphetNet          | 44.3 39.2 3.9 21.1 46.6 39.1 1.3  7.5
    DRESS               | -    -    5.4 29.1 -    -    -   -
    MVP+S               | 45.7 42.9 5.1 27.1 43.4 35.8 2.0 11.1
    Dior-CVAE-sampling  | 50.3 46.7 7.0 35.1 42.6 36.1 2.8 26.5
    Dior-CVAE-beam      | 52.0 47.8 6.3 31.1 44.1 37.2 1.9 13.1
    PLATO               | 39.7 31.1 5.4 29.1 40.6 31.5 2.1 12.1
    DialogVED-sampling  | 43.1 37.0 5.8 37.2 42.8 35.7 3.2 27.3
    DialogVED-beam      | 48.1 42.1 4.2 23.2 48.2 39.9 1.5  9.4
    """
)
_ABLATION = rows(
    """
    Dior-CVAE                    | 57.0 45.0 7.0 36.3
    w/o diffusion                | 49.3 41.1 4.7 22.1
    w/o memory dropout           | 57.3 45.4 6.7 34.7
    w/o self-attention infusion  | 56.4 44.4 6.8 36.0
    w/o cross-attention infusion | 55.2 43.7 6.8 35.4
    w/o PLM                      | 43.2 38.1 3.7 31.2
    """
)
_LLAMA = rows(
    """
    Llama-2, in context | 13.7 14.0 8.2 24.1 83.43 5.88
    Llama-2, LoRA       | 39.6 35.4 7.1 41.1 85.98 5.91
    Dior-CVAE           | 52.0 47.8 6.3 31.1 87.57 5.36
    """
)
_DROPOUT = rows(
    """
    memory dropout 0.1 | 0.99
    memory dropout 0.4 | 0.94
    memory dropout 0.7 | 0.91
    memory dropout 1.0 | 0.88
    """
)
_COLUMNS = "bleu_1_method7 bleu_2_method7 distinct_1 distinct_2"
_DIOR = ("Dior-CVAE-sampling", "Dior-CVAE-beam")
_table = partial(PaperTable, "dior_cvae")

TABLES = (
    _table("Table 1", "dailydialog", "test", columns(_COLUMNS), part(_MAIN, 0, 4), _DIOR),
    _table("Table 1", "convai2", "test", columns(_COLUMNS), part(_MAIN, 4, 8), _DIOR),
    _table(
        "Table 2",
        "dailydialog",
        "test",
        columns("entropy_1_characters entropy_2_characters entropy_3_characters bertscore fed"),
        rows("Dior-CVAE | 3.56 4.83 5.07 87.57 5.36\nDialogVED | 3.44 4.57 4.75 86.76 5.29"),
        ("Dior-CVAE",),
    ),
    _table("Table 3", "dailydialog", "validation", columns(_COLUMNS), _ABLATION, ("Dior-CVAE",)),
    _table("Table 5", "dailydialog", "test", columns(f"{_COLUMNS} bertscore fed"), _LLAMA),
    _table(
        "Table 7",
        "dailydialog",
        "test",
        columns("tokens_per_second"),
        rows("Dior-CVAE | 123.95\nDialogVED | 131.34\nDELLA (BART) | 128.28"),
    ),
    _table("Table 9", "dailydialog", "test", columns("similarity"), _DROPOUT),
)
