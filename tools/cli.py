"""The `membart` command: thin wrappers, the work is in `pretrain` and `finetune`."""

from __future__ import annotations

import sys

import typer

from finetune.__main__ import finetune
from pretrain.__main__ import pretrain
from pretrain.errors import UserError
from tools import dialogues, export, fill, finetuning, keys, knowledge, shards, simulate, study, tracking
from tools.bench import cli as bench
from tools.demo.cli import demo
from tools.plan import cli as planning
from tools.serve import cli as serving
from tools.slurm import cli as slurm

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Raw text to a pretrained MemBART, and from there to five families of dialogue models.\n\n"
    "`membart demo` shows all of it at a small size; docs/commands.md has the page for each command.",
)
# The headings under which the help has the commands.
TEXT, TALK = "From text to a model", "From a model to dialogues"
CLUSTERS, FIGURES = "Clusters", "Measurements"

app.command(rich_help_panel=TEXT)(demo)
app.add_typer(
    shards.app,
    name="shards",
    help="Raw corpora to shard sets: tokenizer, build, verify, stats, peek.",
    rich_help_panel=TEXT,
)
app.command(rich_help_panel=TEXT)(keys.keys)
app.command(rich_help_panel=TEXT)(pretrain)
app.command(rich_help_panel=TEXT)(fill.fill)
app.command(rich_help_panel=TEXT)(tracking.report)
app.command(rich_help_panel=TEXT)(tracking.sync)
app.command(rich_help_panel=TEXT)(export.export)
app.command("import", rich_help_panel=TEXT)(export.import_)
app.add_typer(
    dialogues.app,
    name="data",
    help="Dialogues: inspect, convert, make-synthetic.",
    rich_help_panel=TALK,
)
app.add_typer(
    knowledge.app,
    name="ki",
    help="Word knowledge: base, train-retriever, index, annotate, inspect, picture.",
    rich_help_panel=TALK,
)
app.command(rich_help_panel=TALK)(finetune)
app.command(rich_help_panel=TALK)(finetuning.evaluate)
app.command(rich_help_panel=TALK)(finetuning.generate)
app.command(rich_help_panel=TALK)(serving.serve)
app.command(rich_help_panel=CLUSTERS)(planning.plan)
app.command(rich_help_panel=CLUSTERS)(simulate.simulate)
app.add_typer(
    slurm.app,
    name="slurm",
    help="A whole pipeline as cluster jobs: submit, status, cancel.",
    rich_help_panel=CLUSTERS,
)
app.add_typer(
    bench.app, name="bench", help="Measure speed and memory, as ratios in one run.", rich_help_panel=FIGURES
)
app.add_typer(
    study.app,
    name="study",
    help="The papers' experiments at a size that fits a CPU.",
    rich_help_panel=FIGURES,
)


def main() -> None:
    """Entry point: a user's mistake is one line and its exit code, never a stack trace."""
    try:
        app()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)


if __name__ == "__main__":
    main()
