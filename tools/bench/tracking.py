"""`membart bench tracking`: what a training step costs with tracking on, against the same step without."""

from __future__ import annotations

import itertools
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated

import typer

TARGET = 1.05
Cost = tuple[float, float]
"""Seconds of a step: by the clock, and of processor time over all threads (steady on a busy machine)."""


def tracking(
    seconds: Annotated[float, typer.Option(help="Seconds of training in each part.", min=1)] = 10.0,
    rounds: Annotated[int, typer.Option(help="Parts without and with tracking, in turn.", min=1)] = 3,
    tracking_uri: Annotated[
        str | None, typer.Option(help="MLflow store.  [default: a fresh SQLite file]", show_default=False)
    ] = None,
) -> None:
    """Time a tiny training step with tracking off and on, in turn, in one process; print the ratio.

    The first part with tracking also imports mlflow and makes the store; it is told apart, since a run
    pays it once.
    """
    step, numbers, calls = _tiny_step(), itertools.count(1), list[float]()
    _timed(step, 1.0)
    plain, tracked = list[Cost](), list[Cost]()
    with tempfile.TemporaryDirectory() as folder:
        run_dir = Path(folder) / "runs" / "bench"
        run_dir.mkdir(parents=True)
        first = _tracked(step, seconds, run_dir, tracking_uri, numbers, calls)
        for _ in range(rounds):
            plain += _timed(step, seconds)
            tracked += _tracked(step, seconds, run_dir, tracking_uri, numbers, calls)
    typer.echo("ms a step                 wall   processor")
    off, on, once = _mean(plain), _mean(tracked), _mean(first)
    for label, (wall, processor) in (("without tracking", off), ("with tracking", on)):
        typer.echo(f"{label:<20} {1e3 * wall:10.3f}  {1e3 * processor:10.3f}")
    typer.echo(f"{'ratio':<20} {on[0] / off[0]:10.3f}  {on[1] / off[1]:10.3f}   target: at most {TARGET}")
    typer.echo(
        f"one log() call: {1e3 * statistics.median(calls):.3f} ms median, {1e3 * max(calls):.3f} ms worst"
    )
    typer.echo(
        f"mlflow's import and a new store, once a run: {(once[1] - off[1]) * len(first):.1f} s of processor"
    )


def _timed(step: Callable[[], None], seconds: float) -> list[Cost]:
    """The cost of each step made in `seconds` seconds."""
    costs = list[Cost]()
    end = time.perf_counter() + seconds
    while (began := time.perf_counter()) < end:
        used = time.process_time()
        step()
        costs.append((time.perf_counter() - began, time.process_time() - used))
    return costs


def _mean(costs: list[Cost]) -> Cost:
    wall, processor = zip(*costs, strict=True)
    return statistics.fmean(wall), statistics.fmean(processor)


def _tracked(
    step: Callable[[], None],
    seconds: float,
    run_dir: Path,
    uri: str | None,
    numbers: Iterator[int],
    calls: list[float],
) -> list[Cost]:
    """One part with tracking, going on with the run; draining at its end is not part of a step."""
    from pretrain.tracking import Tracker

    tracker = Tracker.start(
        run_dir, experiment="bench", run_name="bench", params={"seed": 1}, tags={}, tracking_uri=uri
    )

    def step_and_log() -> None:
        step()
        number = next(numbers)
        began = time.perf_counter()
        tracker.log(number, "train", _record(number))
        calls.append(time.perf_counter() - began)

    times = _timed(step_and_log, seconds)
    tracker.finish("FINISHED", timeout=60)
    return times


def _record(step: int) -> dict[str, float]:
    """A training record as long as a real one: its values have all their digits."""
    names = (
        *("loss", "perplexity", "tokens_per_second", "mfu", "learning_rate", "gradient_norm"),
        *("memory_gradient_norm", "gate_mean", "data_wait_share", "padding_share", "memory_bytes"),
        *("step_seconds", "target_tokens", "skipped_steps"),
    )
    return {name: (step + number) / 7 for number, name in enumerate(names)}


def _tiny_step() -> Callable[[], None]:
    """Forward, backward and AdamW of a two-layer transformer on the CPU: many small operations."""
    import torch
    from torch import nn

    torch.set_num_threads(1)  # more would spin while they wait, and count that against tracking
    torch.manual_seed(1)
    layer = nn.TransformerEncoderLayer(
        d_model=128, nhead=4, dim_feedforward=512, dropout=0.0, batch_first=True
    )
    model = nn.TransformerEncoder(layer, num_layers=2)
    optimizer = torch.optim.AdamW(model.parameters())
    rows = torch.randn(16, 256, 128)

    def step() -> None:
        optimizer.zero_grad()
        model(rows).square().mean().backward()
        optimizer.step()

    return step
