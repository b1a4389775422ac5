"""`membart bench startup`: from a command to its first update, fresh and resumed, against bare imports.

The tiny recipe on one rank, everything on as a user has it, in processes that take turns round by round. The
floor is a process that imports PyTorch and DeepSpeed and does nothing else.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Annotated

import typer

from pretrain.errors import EXIT_REQUEUE, UserError
from tools.bench.model import Json

TARGET = 10.0
"""Seconds above the imports."""
PATIENCE = 600.0
"""Seconds in which an update must come."""


@dataclass(frozen=True)
class Round:
    """One turn; seconds."""

    imports: float
    """A process that imports torch and deepspeed, and ends."""
    start: float
    """From the command to the record of the first update."""
    resume: float
    """The same for a run that was stopped, from the command to the first update after it."""


def startup(
    shards: Annotated[
        Path | None, typer.Option(help="Shard set.  [default: made of the docs source]")
    ] = None,
    rounds: Annotated[int, typer.Option(min=1, help="Each takes so many turns.")] = 3,
    as_json: Json = False,
) -> None:
    """Seconds to the first update of the tiny recipe, resume included, against the imports alone."""
    with tempfile.TemporaryDirectory() as folder:
        made = shards or docs_shards(Path(folder))
        found = [turn(made, Path(folder) / str(number)) for number in range(rounds)]
    if as_json:
        print(json.dumps({"rounds": [asdict(one) for one in found]}))
        return
    imports = median(one.imports for one in found)
    print(f"{'seconds, medians over rounds':<40}{'in all':>8}{'above imports':>15}")
    print(f"{'import torch, deepspeed':<40}{imports:>8.1f}")
    for label, times in (
        ("command to first update", [(one.start, one.imports) for one in found]),
        ("resume to next update", [(one.resume, one.imports) for one in found]),
    ):
        print(f"{label:<40}{median(t for t, _ in times):>8.1f}{median(t - i for t, i in times):>+15.1f}")
    print(f"target: at most +{TARGET:g}")


def turn(shards: Path, root: Path) -> Round:
    """The imports, a start, a stop that saves, and a resume."""
    began = time.perf_counter()
    subprocess.run([sys.executable, "-c", "import torch, deepspeed"], check=True, capture_output=True)
    imports = time.perf_counter() - began
    start, updates = first_update(shards, root, after=0)
    resume, _ = first_update(shards, root, after=updates)
    return Round(imports, start, resume)


def first_update(shards: Path, root: Path, after: int) -> tuple[float, int]:
    """Seconds from the command to the record of an update above `after`, and the update that a stop saved.

    Raises:
        UserError: the run ended by itself, or nothing came.
    """
    run = root / "run"
    words = ["tiny", f"data.shards=[{shards}]", f"root={root}", "name=run", "train.log_every=1"]
    log = root.with_suffix(".log")
    root.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as output:
        began = time.perf_counter()
        process = subprocess.Popen([sys.executable, "-m", "pretrain", *words], stdout=output, stderr=output)
        try:
            while last_update(run) <= after:
                if process.poll() is not None or time.perf_counter() - began > PATIENCE:
                    raise UserError(f"no update came:\n{log.read_text(encoding='utf-8')}", where=str(run))
                time.sleep(0.02)
            seconds = time.perf_counter() - began
            stop = run / "control" / "stop"
            stop.parent.mkdir(exist_ok=True)
            stop.touch()
            if process.wait(PATIENCE) != EXIT_REQUEUE:
                raise UserError(f"exit code {process.returncode}", where=str(run))
        finally:
            process.kill()
            process.wait()
    return seconds, last_update(run)


def last_update(run: Path) -> int:
    """The newest training record's update, 0 before there is one."""
    file = run / "metrics.jsonl"
    lines = file.read_text(encoding="utf-8").splitlines(keepends=True) if file.is_file() else []
    records = [json.loads(line) for line in lines if line.endswith("\n")]
    return max((record["step"] for record in records if record["kind"] == "train"), default=0)


def docs_shards(folder: Path) -> Path:
    """A small shard set of docstrings."""
    from pretrain.corpus.build import build
    from pretrain.corpus.sources import SourceSpec
    from pretrain.corpus.texts import source_texts
    from pretrain.corpus.tokenizer import train_tokenizer

    source = SourceSpec("docs", max_tokens=200_000)
    tokenizer = train_tokenizer(source_texts([source], max_characters=1_000_000), 1024)
    build([source], tokenizer, folder / "shards", held_out=0.1)
    return folder / "shards"
