"""`membart bench targets`: every speed and memory target of the project in one run, beside what came out.

Each benchmark runs as its own command, so a figure here is that command's; what it printed is kept.
"""

from __future__ import annotations

import json
import operator
import os
import shlex
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Annotated, Any

import typer

from pretrain.errors import UserError

Found = Mapping[str, Any]
"""What a benchmark prints with --json."""
AT_MOST, AT_LEAST = "at most", "at least"
HOLDS = {AT_MOST: operator.le, AT_LEAST: operator.ge}


@dataclass(frozen=True)
class Target:
    """One row: a ratio, unless its `what` says otherwise, and where it must lie."""

    what: str
    against: str
    sense: str
    bound: float
    figure: Callable[[Found], float]


@dataclass(frozen=True)
class Benchmark:
    """A command with the targets that it measures."""

    words: str
    targets: tuple[Target, ...]
    quick: str = ""
    """Words that make it a matter of seconds, to see that it runs."""
    environment: Mapping[str, str] = field(default_factory=dict)

    def command(self, quick: bool = False) -> str:
        """As a user would type it, but for `--json`."""
        set_ = " ".join(f"{name}={value}" for name, value in self.environment.items())
        return " ".join(word for word in (set_, "membart bench", self.words, self.quick * quick) if word)


def mode(name: str, field_: str) -> Callable[[Found], float]:
    """A figure of one mode of `bench replay`."""
    return lambda found: {row["mode"]: row for row in found["modes"]}[name][field_]


def against_authors(found: Found) -> float:
    """How many times as long as ours a step of the authors' form takes."""
    return mode("authors", "seconds")(found) / mode("replay", "seconds")(found)


def peak_growth(found: Found) -> float:
    """Replay's peak at twelve timesteps over that at two."""
    peaks = {(peak["mode"], peak["horizon"]): peak["megabytes"] for peak in found["peaks"]}
    return peaks["replay", 12] / peaks["replay", 2]


def turn(name: str) -> Callable[[Found], float]:
    """How many times as long as MemBART's a turn of another model is."""
    return lambda found: {row["name"]: row for row in found["turns"]}[name]["ratio"]


def stall(found: Found) -> float:
    """A save's stall in training steps, median over the rounds."""
    return median(one["stall"] / one["step"] for one in found["rounds"])


def above_imports(found: Found) -> float:
    """The slower of a start and a resume."""
    return max(median(one[kind] - one["imports"] for one in found["rounds"]) for kind in ("start", "resume"))


def benchmarks(cuda: bool) -> dict[str, Benchmark]:
    """All of them, as they are run on this kind of machine."""
    one_thread = {"OMP_NUM_THREADS": "1"}
    faster, bart, led = (3.0, 3.2, 11.0) if cuda else (1.5, 2.5, 6.0)
    gpu = " --device cuda --dtype bfloat16" if cuda else ""
    small = "--shape small --window 16 --rounds 1"
    step = [
        Target("replay step, T = 6, base", "BPTT", AT_MOST, 1.12, mode("replay", "ratio")),
        Target("training step, base", "the authors' form", AT_LEAST, faster, against_authors),
    ]
    if cuda:
        step.append(Target("MFU, base, bf16", "the matmul ceiling", AT_LEAST, 0.45, mode("replay", "useful")))
    return {
        "replay": Benchmark(
            f"replay --rounds 2 --horizons ''{gpu}" + (" --batch 64" if cuda else ""),
            tuple(step),
            small,
            {} if cuda else one_thread,
        ),
        "peak": Benchmark(
            f"replay --window 128 --rounds 0 --horizons 2,12{gpu}",
            (Target("peak memory of a step, T = 12, base", "T = 2", AT_MOST, 1.1, peak_growth),),
            "--shape small --window 16",
        ),
        "data": Benchmark(
            "data",
            (
                Target(
                    "dispatcher, tokens/s on one core", "", AT_LEAST, 2e6, lambda found: found["dispatcher"]
                ),
                Target("dispatcher", "webdataset", AT_LEAST, 3.0, lambda found: found["ratio"]),
            ),
            "--rounds 1 --seconds 0.2",
        ),
        "shards": Benchmark(
            "shards",
            (
                Target(
                    "shard build", "`tokenizers.encode_batch`", AT_LEAST, 0.8, lambda found: found["ratio"]
                ),
            ),
            "--rounds 1 --characters 100000",
        ),
        "checkpoint": Benchmark(
            "checkpoint --shape base --batch 1 --window 512 --steps 1 --rounds 2"
            + (" --device cuda" if cuda else ""),
            (Target("stall of an asynchronous save", "a training step", AT_MOST, 1.0, stall),),
            "--shape small --window 16 --horizon 2 --rounds 1",
        ),
        "latency": Benchmark(
            f"latency --rounds 5 --bart 128,1024 --membart 128{gpu}",
            (
                Target("a turn of BART, 1,024 tokens", "128 + 128 slots", AT_LEAST, bart, turn("BART 1024")),
                Target("a turn of LED, 2,048 tokens", "128 + 128 slots", AT_LEAST, led, turn("LED 2048")),
            ),
            "--shape small --rounds 1",
        ),
        "startup": Benchmark(
            "startup",
            (Target("first update, resumed or not, seconds above", "imports", AT_MOST, 10.0, above_imports),),
            "--rounds 1",
        ),
    }


def targets(
    only: Annotated[str, typer.Option(help="Benchmarks, by name; empty: all.")] = "",
    quick: Annotated[
        bool, typer.Option(help="Small shapes, to see that all runs; no figure counts.")
    ] = False,
    out: Annotated[
        Path | None, typer.Option(help="JSON file of the table and of all that was printed.")
    ] = None,
) -> None:
    """All targets in one run, as a Markdown table with each one's command. Takes about half an hour."""
    import torch

    known = benchmarks(torch.cuda.is_available())
    names = [name.strip() for name in only.split(",") if name.strip()] or list(known)
    unknown = [name for name in names if name not in known]
    if unknown:
        raise UserError(f"--only: no benchmark {unknown[0]}", mend=f"one of: {', '.join(known)}")
    rows, printed = [], {}
    for name in names:
        typer.echo(f"{name}: {known[name].command(quick)}", err=True)
        printed[name] = found = run(known[name], quick)
        rows += [row(target, found, known[name].command(quick)) for target in known[name].targets]
        typer.echo("\n".join(cells(one) for one in rows[-len(known[name].targets) :]), err=True)
    heading = ("what", "against", "target", "figure", "held", "command")
    typer.echo(
        "\n".join(["| " + " | ".join(heading) + " |", "| --- " * len(heading) + "|", *map(cells, rows)])
    )
    if out is not None:
        out.write_text(json.dumps({"targets": rows, "printed": printed}, indent=1) + "\n", encoding="utf-8")


def run(benchmark: Benchmark, quick: bool) -> Found:
    """What the benchmark's command printed.

    Raises:
        UserError: it failed.
    """
    words = shlex.split(f"{benchmark.words} {benchmark.quick if quick else ''} --json")
    ended = subprocess.run(
        [sys.executable, "-m", "tools.cli", "bench", *words],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, **benchmark.environment},
    )
    if ended.returncode:
        raise UserError(f"exit code {ended.returncode}", where=benchmark.command(quick), mend="see above")
    found: Found = json.loads(ended.stdout.splitlines()[-1])
    return found


def row(target: Target, found: Found, command: str) -> dict[str, Any]:
    """The figure beside its target."""
    figure = target.figure(found)
    return {
        "what": target.what,
        "against": target.against,
        "target": f"{target.sense} {target.bound:,g}",
        "figure": figure,
        "held": bool(HOLDS[target.sense](figure, target.bound)),
        "command": command,
    }


def cells(one: Mapping[str, Any]) -> str:
    """A row of the printed table."""
    figure = one["figure"]
    shown = f"{figure:,.0f}" if figure >= 1000 else f"{figure:.3g}"
    values: Sequence[str] = (
        one["what"],
        one["against"],
        one["target"],
        shown,
        "yes" if one["held"] else "**no**",
        f"`{one['command']}`",
    )
    return "| " + " | ".join(values) + " |"
