"""`membart report` and `membart sync`: look at a run, and bring to MLflow what could not get there."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Run = Annotated[Path, typer.Argument(help="A run folder.", show_default=False)]


def report(
    runs: Annotated[list[Path], typer.Argument(help="Run folders.", show_default=False)],
    samples: Annotated[
        Path | None,
        typer.Option(help="JSON with `title` and `text` (or `html`), kept in the first run's folder."),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="One page that compares the runs and holds them all.")
    ] = None,
) -> None:
    """Draw the plots and the one-page report of each run from its folder; print the summaries."""
    from pretrain.report import read_section, save_section, write_comparison, write_report

    if samples is not None:
        save_section(runs[0], samples.stem, read_section(samples))
    reports = write_comparison(runs, out) if out else [write_report(run) for run in runs]
    typer.echo("\n".join(report.text for report in reports), nl=False)
    if out:
        typer.echo(f"\nall {len(runs)} on one page: {out}")


def sync(
    run: Run,
    tracking_uri: Annotated[
        str | None,
        typer.Option(help="Another MLflow store.  [default: MLFLOW_TRACKING_URI, else the run's own]"),
    ] = None,
    timeout: Annotated[float, typer.Option(help="Seconds to keep trying.", min=0)] = 60.0,
) -> None:
    """Upload to MLflow what a run folder still holds back; sends nothing twice."""
    from pretrain.tracking import sync as upload
    from pretrain.tracking import view_hint

    done = upload(run, tracking_uri=tracking_uri, timeout=timeout)
    typer.echo(
        f"{done.metrics_sent} metric values sent to MLflow run {done.run_id}: {view_hint(done.tracking_uri)}"
    )
