"""`membart bench`: every benchmark is one run that prints ratios side by side."""

from __future__ import annotations

import typer

from tools.bench.checkpoint import checkpoint
from tools.bench.data import data
from tools.bench.dior import dior
from tools.bench.latency import latency
from tools.bench.model import attention, loss
from tools.bench.replay import replay
from tools.bench.shards import shards
from tools.bench.startup import startup
from tools.bench.targets import targets
from tools.bench.tracking import tracking

app = typer.Typer(no_args_is_help=True)
for benchmark in (
    attention,
    checkpoint,
    data,
    dior,
    latency,
    loss,
    replay,
    shards,
    startup,
    targets,
    tracking,
):
    app.command()(benchmark)
