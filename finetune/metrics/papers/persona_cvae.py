"""The automatic figures of the implicit-persona CVAE paper."""

from finetune.metrics.papers.table import PaperTable, columns, rows

TABLES = (
    PaperTable(
        "persona_cvae",
        "Table 1",
        "convai2",
        "validation",
        columns(
            "perplexity distinct_1 distinct_2_per_word p_distance", distinct_1=100, distinct_2_per_word=100
        ),
        rows(
            """
            HRED     | 21.095 0.078 0.225 0.246
            CVAE     | 19.501 0.116 0.405 0.258
            TTransfo | 18.011 0.142 0.400 0.329
            DialoGPT | 14.966 0.139 0.417 0.359
            P2BOT    | 16.620 0.083 0.268 0.370
            Ours     | 15.671 0.167 0.538 0.401
            """
        ),
        ours=("DialoGPT", "Ours"),
    ),
    PaperTable(
        "persona_cvae",
        "Table 3",
        "ptb",
        "test",
        columns("perplexity active_units kl"),
        rows(
            """
            Standard VAE       | 58.391  0  0.049
            KLA                | 53.564  3  2.508
            CA                 | 51.547  2  3.767
            AT                 | 50.000  6  5.320
            BOW                | 48.637 11 11.165
            Po-di, lambda 0.12 | 48.467 13 14.727
            Po-di, lambda 0.15 | 47.674 14 16.096
            Po-di, lambda 0.18 | 45.925 14 22.047
            Po-di, lambda 0.21 | 46.883 14 25.126
            """
        ),
        ours=("Standard VAE", "Po-di, lambda 0.15"),
    ),
)
