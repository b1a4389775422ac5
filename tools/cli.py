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
    help="Pretrain stateful dialogue models: raw text to shards to MemBART to a model folder.",
)
app.add_typer(shards.app, name="shards", help="Raw corpora to shard sets: build, verify, stats, peek.")
app.add_typer(dialogues.app, name="data", help="Dialogues: inspect, convert, make-synthetic.")
app.add_typer(knowledge.app, name="ki", help="Word knowledge: base, train-retriever, index, annotate.")
app.command()(pretrain)
app.command()(finetune)
app.command()(finetuning.evaluate)
app.command()(finetuning.generate)
app.command()(serving.serve)
app.command()(export.export)
app.command("import")(export.import_)
app.command()(fill.fill)
app.command()(tracking.report)
app.command()(tracking.sync)
app.command()(planning.plan)
app.command()(simulate.simulate)
app.command()(keys.keys)
app.command()(demo)
app.add_typer(bench.app, name="bench", help="Measure speed and memory, as ratios in one run.")
app.add_typer(slurm.app, name="slurm", help="The pipeline as cluster jobs: submit, status, cancel.")
app.add_typer(study.app, name="study", help="The papers' experiments at a size that fits a CPU.")


def main() -> None:
    """Entry point: a user's mistake is one line and its exit code, never a stack trace."""
    try:
        app()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)


if __name__ == "__main__":
    main()
