"""`membart study`: the papers' experiments on models that fit a CPU, a module for each paper."""

from __future__ import annotations

import typer

from tools import study_dior, study_fusion, study_ki, study_persona, study_recall

app = typer.Typer(no_args_is_help=True)
for study_of in (study_recall, study_fusion, study_persona, study_ki, study_dior):
    for analysis in study_of.COMMANDS:
        app.command()(analysis)
