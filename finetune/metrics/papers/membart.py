"""The tables of the MemBART paper. Latencies are on the authors' GPU, without their spread."""

from functools import partial

from finetune.metrics.papers.table import PaperTable, columns, grid, part, rows

_CONVAI2 = grid(
    """
    BART base                          | 10.91 25.01  9.39 25.44  8.64 26.31  8.76 26.22
    MemBART base (64)                  |  8.68 27.34  8.58 27.37  8.46 27.05  -    -
    MemBART base (64) w/o history      | 10.52 25.54  9.44 26.52  8.57 26.23  -    -
    MemBART base (64) w/o pre-training | 10.67 25.26  9.37 26.12  8.60 26.45  -    -
    MemBART base (128)                 |  8.59 27.45  8.57 27.52  8.39 27.52  -    -
    MemBART base (256)                 |  8.60 27.65  8.49 27.68  8.38 27.41  -    -
    GPT2-12                            | 10.93 25.18  9.86 26.03  9.06 26.55  9.04 26.52
    GPT2-24                            |  9.51 25.46  8.56 26.52  7.82 27.19  7.81 27.20
    BART large                         |  9.12 25.50  8.01 26.84  7.33 28.67  7.31 28.64
    MemBART large (128)                |  7.47 28.06  7.33 28.57  7.15 29.16  -    -
    """,
    "64 128 256 512",
    width=2,
)
_PERSUASION = grid(
    """
    BART base                          | 10.93 10.90 10.80 10.78
    MemBART base (64)                  | 10.69 10.66 10.66 -
    MemBART base (64) w/o history      | 10.86 10.79 10.75 -
    MemBART base (128)                 | 10.65 10.57 10.56 -
    MemBART base (256)                 | 10.59 10.56 10.54 -
    GPT2-12                            | 10.51 10.38 10.33 10.31
    GPT2-24                            |  9.37  9.20  9.14  9.11
    BART large                         |  9.54  9.40  9.24  9.27
    MemBART large (128)                |  9.34  9.18  9.12 -
    """,
    "128 256 512 1024",
)
_LONG = rows(
    """
    BART base, context 512           | 15.40 33.70
    BART base, context 1024          | 15.09 31.20
    LED base, context 2048           | 13.97 30.08
    MemBART base (128), context 512  | 14.34 29.81
    GPT2-12, context 512             | 17.53 32.20
    GPT2-12, context 1024            | 15.35 28.31
    GPT2-24, context 512             | 15.34 22.33
    GPT2-24, context 1024            | 13.84 20.86
    BART large, context 512          | 12.92 24.08
    BART large, context 1024         | 12.31 23.07
    LED large, context 2048          | 11.82 23.04
    MemBART large (128), context 512 | 12.24 22.26
    """
)
_MSC = columns(
    "latency_ms perplexity perplexity_session_1 perplexity_session_2 perplexity_session_3 "
    "perplexity_session_4 perplexity_session_5"
)
_MSC_VALIDATION = rows(
    """
    BART base, context 128           |  16.41 12.72 10.84 13.19 13.15 13.17 12.77
    BART base, context 256           |  22.12 12.50 10.77 12.85 12.89 12.96 12.58
    BART base, context 512           |  36.80 12.33 10.71 12.61 12.67 12.81 12.43
    BART base, context 1024          |  64.65 12.22 10.69 12.46 12.38 12.77 12.38
    LED base, context 256            | 110.07 12.55 10.78 12.92 12.93 13.07 12.57
    LED base, context 512            | 113.73 12.35 10.73 12.64 12.66 12.87 12.40
    LED base, context 1024           | 115.96 12.20 10.67 12.55 12.46 12.65 12.26
    LED base, context 2048           | 227.75 12.16 10.69 12.54 12.46 12.58 12.15
    MemBART base (64), context 128   |  17.23 12.17 10.60 12.60 12.54 12.55 12.14
    MemBART base (64), context 256   |  29.39 12.06 10.59 12.40 12.36 12.47 12.09
    MemBART base (64), context 512   |  59.73 11.95 10.57 12.28 12.22 12.33 11.98
    MemBART base (128), context 128  |  20.42 12.12 10.60 12.50 12.45 12.51 12.14
    MemBART base (128), context 256  |  32.09 11.96 10.49 12.29 12.28 12.37 11.97
    MemBART base (128), context 512  |  66.70 11.86 10.50 12.15 12.14 12.27 11.89
    MemBART base (256), context 128  |  26.56 12.11 10.58 12.51 12.43 12.47 12.13
    MemBART base (256), context 256  |  40.92 12.00 10.50 12.35 12.34 12.40 12.01
    MemBART base (256), context 512  |  75.54 11.83 10.47 12.11 12.10 12.24 11.86
    GPT2-12, context 128             |  16.24 14.17 12.87 14.57 14.50 14.51 14.03
    GPT2-12, context 256             |  30.80 13.91 12.70 14.20 14.23 14.25 13.81
    GPT2-12, context 512             |  65.77 13.76 12.68 14.03 14.02 14.11 13.67
    GPT2-12, context 1024            | 149.05 13.33 12.66 14.04 13.82 13.26 12.71
    GPT2-24, context 128             |  42.39 11.91 11.15 12.17 12.10 12.10 11.83
    GPT2-24, context 256             |  81.80 11.66 10.98 11.83 11.83 11.86 11.62
    GPT2-24, context 512             | 172.43 11.52 10.99 11.63 11.64 11.72 11.48
    GPT2-24, context 1024            | 395.84 11.43 10.96 11.59 11.48 11.62 11.37
    BART large, context 128          |  45.37 10.42  9.31 10.75 10.61 10.68 10.44
    BART large, context 256          |  63.79 10.15  9.17 10.35 10.34 10.40 10.20
    BART large, context 512          | 103.20 10.00  9.22 10.12 10.12 10.28 10.03
    BART large, context 1024         | 190.79  9.87  9.20 10.03  9.91 10.09  9.90
    LED large, context 256           | 316.42 10.25  9.28 10.43 10.41 10.55 10.30
    LED large, context 512           | 322.68 10.06  9.24 10.18 10.15 10.38 10.13
    LED large, context 1024          | 334.87  9.90  9.20 10.06  9.95 10.15  9.92
    LED large, context 2048          | 655.19  9.87  9.23 10.09  9.90 10.04  9.89
    MemBART large (128), context 128 |  59.51  9.99  9.17 10.19 10.14 10.22 10.02
    MemBART large (128), context 256 | 102.42  9.92  9.08 10.10 10.06 10.15  9.95
    MemBART large (128), context 512 | 197.79  9.79  9.08  9.90  9.88 10.03  9.84
    """
)
_MSC_TEST = rows(
    """
    BART base, context 128           |  16.41 13.05 10.99 12.52 13.18 13.65 14.02
    BART base, context 256           |  22.12 12.83 10.94 12.29 12.97 13.37 13.78
    BART base, context 512           |  36.80 12.68 10.92 12.14 12.77 13.19 13.61
    BART base, context 1024          |  64.65 12.53 10.81 11.93 12.50 13.10 13.55
    LED base, context 256            | 110.07 12.87 10.78 12.36 13.02 13.45 13.88
    LED base, context 512            | 113.73 12.69 10.77 12.19 12.79 13.22 13.67
    LED base, context 1024           | 115.96 12.55 10.74 12.12 12.59 13.02 13.48
    LED base, context 2048           | 227.75 12.52 10.76 12.13 12.59 12.93 13.42
    MemBART base (64), context 128   |  17.23 12.42 10.72 11.95 12.52 12.93 13.23
    MemBART base (64), context 256   |  29.39 12.34 10.66 11.86 12.46 12.84 13.16
    MemBART base (64), context 512   |  59.73 12.23 10.66 11.78 12.32 12.66 13.02
    MemBART base (128), context 128  |  20.42 12.41 10.72 11.95 12.52 12.88 13.23
    MemBART base (128), context 256  |  32.09 12.25 10.62 11.76 12.37 12.71 13.06
    MemBART base (128), context 512  |  66.70 12.15 10.63 11.67 12.23 12.57 12.97
    MemBART base (256), context 128  |  26.56 12.38 10.67 11.90 12.51 12.86 13.20
    MemBART base (256), context 256  |  40.92 12.25 10.59 11.76 12.38 12.74 13.07
    MemBART base (256), context 512  |  75.54 12.09 10.57 11.62 12.18 12.53 12.90
    GPT2-12, context 128             |  16.24 14.36 12.91 13.80 14.43 14.79 15.22
    GPT2-12, context 256             |  30.80 14.13 12.80 13.57 14.21 14.53 14.93
    GPT2-12, context 512             |  65.77 13.99 12.81 13.45 14.03 14.33 14.78
    GPT2-12, context 1024            | 149.05 13.56 12.82 13.48 13.84 13.53 13.82
    GPT2-24, context 128             |  42.39 12.03 11.17 11.52 12.07 12.30 12.62
    GPT2-24, context 256             |  81.80 11.78 11.02 11.28 11.82 12.04 12.36
    GPT2-24, context 512             | 172.43 11.65 11.07 11.14 11.66 11.86 12.20
    GPT2-24, context 1024            | 395.84 11.56 11.03 11.12 11.52 11.75 12.11
    BART large, context 128          |  45.37 10.61  9.50 10.13 10.68 10.94 11.29
    BART large, context 256          |  63.79 10.37  9.38  9.86 10.44 10.67 11.02
    BART large, context 512          | 103.20 10.23  9.44  9.71 10.26 10.52 10.85
    BART large, context 1024         | 190.79 10.10  9.41  9.64 10.06 10.36 10.68
    LED large, context 256           | 316.42 10.43  9.34  9.95 10.52 10.75 11.11
    LED large, context 512           | 322.68 10.28  9.37  9.77 10.32 10.57 10.92
    LED large, context 1024          | 334.87 10.13  9.42  9.66 10.11 10.38 10.72
    LED large, context 2048          | 655.19 10.05  9.43  9.60 10.04 10.27 10.60
    MemBART large (128), context 128 |  59.51 10.17  9.22  9.61 10.24 10.47 10.85
    MemBART large (128), context 256 | 102.42 10.09  9.20  9.65 10.09 10.38 10.72
    MemBART large (128), context 512 | 197.79  9.99  9.22  9.51 10.03 10.23 10.58
    """
)
_SHORT = ("BART base, context 128", "MemBART base (128), context 128")
_BLOCKS = ("BART base, context 512", "MemBART base (128), context 512")
_table = partial(PaperTable, "membart")
_PPL = columns("perplexity")
TABLES = (
    _table("Table 1", "convai2", "", columns=columns("perplexity f1"), rows=_CONVAI2, ours=_SHORT),
    _table("Table 4", "persuasion", "", columns=_PPL, rows=_PERSUASION, ours=_SHORT),
    _table("Table 5", "long", "Arxiv", columns=_PPL, rows=part(_LONG, 0, 1), ours=_BLOCKS),
    _table("Table 5", "long", "PG-19", columns=_PPL, rows=part(_LONG, 1, 2), ours=_BLOCKS),
    _table("Table 9", "msc", "validation", columns=_MSC, rows=_MSC_VALIDATION, ours=_SHORT),
    _table("Table 10", "msc", "test", columns=_MSC, rows=_MSC_TEST, ours=_SHORT),
)
"""Table 3 is part of Table 10."""
