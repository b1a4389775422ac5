"""`membart study fusion-methods`: the ways to fuse sources, trained side by side on models of any size.

Each row of the paper's Table 1 is a run of its own that goes on where it was.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import typer

from pretrain.errors import UserError
from tools.study_runs import (
    Changes,
    Data,
    Dialogues,
    Out,
    Split,
    Start,
    Variant,
    as_json,
    figures,
    sweep,
    write,
)

FAMILY = "fusion"
METHODS: Mapping[str, tuple[str, ...]] = {
    **{name: (f"model.fusion={name}",) for name in ("avg", "max", "min", "sw", "dw", "linear", "att")},
    "shared": ("model.fusion=avg", "model.shared_attention=true"),
    "single": ("model.inputs=single", "model.fusion=none", "model.aux_loss=none"),
}
"""Our names of the rows, and their switches; `shared`: one attention for all sources, as in MI-GPT; `single`:
one sequence, as in TransferGPT2."""
PRINTED = {"shared": "MI-GPT", "single": "TransferGPT2"}
"""Rows of the paper that are not called GPT2-METHOD."""
METRICS = ("bleu_4", "nist_4", "entropy_4_no_articles", "distinct_2_no_articles", "length_no_articles", "f1")


def fusion_methods(
    start: Start,
    data: Data,
    changes: Changes = None,
    recipe: Annotated[str, typer.Option(help="fusion, or fusion_gpt2 for the paper's body.")] = FAMILY,
    out: Out = Path("study/fusion-methods"),
    rows: Annotated[str, typer.Option(help="Which to train, by name.")] = ",".join(METHODS),
    split: Split = "test",
    dialogues: Dialogues = None,
) -> None:
    """Table 1: avg, max, min, sw, dw, linear and att, one attention for all, and one sequence of all."""
    from finetune.metrics import papers, table

    wanted = [name.strip() for name in rows.split(",") if name.strip()]
    unknown = [name for name in wanted if name not in METHODS]
    if unknown or not wanted:
        what = f"no row {unknown[0]}" if unknown else "no row"
        raise UserError(f"--rows: {what}", mend=f"of {', '.join(METHODS)}")
    variants = {name: Variant(recipe, start, METHODS[name]) for name in wanted}
    found = sweep(variants, data, changes or [], out, split, dialogues, METRICS)
    (printed,) = papers.tables(FAMILY)
    for name, one in found.items():
        ours = {**figures(one, "perplexity", "history_gain"), **one.metrics.values}
        paper = PRINTED.get(name, f"GPT2-{name}")
        typer.echo(f"\n{name}\n{table({'ours': ours, f'{paper} (paper)': printed.figures(paper)})}")
    write(out / "methods.json", {name: as_json(one) for name, one in found.items()})


COMMANDS = (fusion_methods,)
