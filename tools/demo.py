"""`membart demo`: the whole path on this machine in minutes, in stages that can each be run again.

A stage leaves `demo/stages/NAME.json` when it is done and is skipped then; `--again NAME` repeats it and
everything after it.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from pretrain.errors import EXIT_REQUEUE, UserError

DOCUMENTS = 2000
VOCABULARY = 2048
WINDOW, OVERLAP = 64, 16
UPDATES = 700
PROCESSES = 2


@dataclass(frozen=True)
class Demo:
    """Where the demo keeps its things."""

    folder: Path

    @property
    def tokenizer(self) -> Path:
        return self.folder / "tokenizer"

    @property
    def shards(self) -> Path:
        return self.folder / "shards" / "docs"

    @property
    def run(self) -> Path:
        return self.folder / "runs" / "demo"

    @property
    def model(self) -> Path:
        return self.folder / "model"

    @property
    def samples(self) -> Path:
        return self.folder / "samples.json"

    def done(self, stage: str) -> Path:
        return self.folder / "stages" / f"{stage}.json"


Stage = Callable[[Demo], dict[str, Any]]


def demo(
    folder: Annotated[Path, typer.Option(help="Where everything goes.")] = Path("demo"),
    again: Annotated[str | None, typer.Option(help="Repeat from this stage on.")] = None,
) -> None:
    """Real text to shards to a pretrained, interrupted, resumed and exported MemBART, with a report."""
    place, began = Demo(folder), time.perf_counter()
    run_stages(place, STAGES, again)
    print(f"demo: {time.perf_counter() - began:.0f} s; report: {place.run / 'report.html'}")


def run_stages(place: Demo, stages: Mapping[str, Stage], again: str | None = None) -> None:
    """Run what is not done yet, in order; what a stage returns is kept in its file.

    Args:
        again: repeat this stage and all after it.

    Raises:
        UserError: no such stage, or a stage failed; the ones before it stay done.
    """
    names = list(stages)
    if again is not None and again not in stages:
        raise UserError(f"no stage '{again}'", where="membart demo", mend=f"one of {', '.join(names)}")
    place.done(names[0]).parent.mkdir(parents=True, exist_ok=True)
    for number, (name, stage) in enumerate(stages.items(), start=1):
        if place.done(name).is_file() and name != again:
            print(f"[{number}/{len(stages)}] {name}: done before", flush=True)
            continue
        print(f"[{number}/{len(stages)}] {name} ...", flush=True)
        for later in names[number - 1 :]:
            place.done(later).unlink(missing_ok=True)
        started = time.perf_counter()
        result = stage(place)
        result["seconds"] = round(time.perf_counter() - started, 1)
        place.done(name).write_text(json.dumps(result, indent=1), encoding="utf-8")


def train_tokenizer(place: Demo) -> dict[str, Any]:
    """A byte-level BPE on the docstrings of the installed packages."""
    shutil.rmtree(place.tokenizer, ignore_errors=True)
    membart(
        "shards", "tokenizer", "--source", "docs", "--out", place.tokenizer,
        "--vocab-size", VOCABULARY, "--characters", 5_000_000,
    )  # fmt: skip
    return {"tokenizer": str(place.tokenizer)}


def build_shards(place: Demo) -> dict[str, Any]:
    """An even sample of the `docs` source as a shard set."""
    shutil.rmtree(place.shards, ignore_errors=True)
    membart(
        "shards", "build", "--source", "docs", "--max-documents", DOCUMENTS, "--tokenizer", place.tokenizer,
        "--out", place.shards, "--window", WINDOW, "--overlap", OVERLAP, "--held-out", "0.05",
        "--workers", PROCESSES,
    )  # fmt: skip
    return {"shards": str(place.shards)}


def pretrain_until_stopped(place: Demo) -> dict[str, Any]:
    """Two DeepSpeed processes; SIGTERM half-way, as a cluster sends it."""
    shutil.rmtree(place.run, ignore_errors=True)
    ranks = start_ranks(place)
    try:
        while all(rank.poll() is None for rank in ranks) and updates(place) < UPDATES // 2:
            time.sleep(0.5)
        for rank in ranks:
            rank.send_signal(signal.SIGTERM)
    finally:
        codes = [rank.wait() for rank in ranks]
    if codes != [EXIT_REQUEUE] * PROCESSES:
        raise UserError(
            f"exit codes {codes} instead of {EXIT_REQUEUE} (saved, run again)", where=str(place.run)
        )
    return {"stopped_after": updates(place)}


def resume(place: Demo) -> dict[str, Any]:
    """The same command again: it goes on from the checkpoint of the stop."""
    codes = [rank.wait() for rank in start_ranks(place)]
    if any(codes):
        raise UserError(f"exit codes {codes}", where=str(place.run), mend="see the message above")
    return {"updates": updates(place)}


def export(place: Demo) -> dict[str, Any]:
    """The last checkpoint as a Hugging Face folder."""
    shutil.rmtree(place.model, ignore_errors=True)
    membart("export", place.run, place.model)
    return {"model": str(place.model)}


def fill_masks(place: Demo) -> dict[str, Any]:
    """The exported folder in a fresh process: masks of a held-out document with memory and without."""
    membart("fill", place.model, place.shards, "--out", place.samples)
    return {"samples": str(place.samples)}


def report(place: Demo) -> dict[str, Any]:
    """One page about the run, and where everything is."""
    membart("report", place.run, "--samples", place.samples)
    return {"report": str(place.run / "report.html")}


def start_ranks(place: Demo) -> list[subprocess.Popen[bytes]]:
    """What `srun` does on a cluster: one process a rank, told apart by its environment."""
    words = [
        sys.executable, "-m", "pretrain", "tiny", "name=demo", f"root={place.folder / 'runs'}",
        f"data.shards=[{place.shards}]", f"train.steps={UPDATES}",
    ]  # fmt: skip
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    common = {"WORLD_SIZE": PROCESSES, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "OMP_NUM_THREADS": 1}
    return [
        subprocess.Popen(
            words,
            env={**os.environ, **{k: str(v) for k, v in {**common, "RANK": r, "LOCAL_RANK": r}.items()}},
        )
        for r in range(PROCESSES)
    ]


def updates(place: Demo) -> int:
    """Updates that the run has logged."""
    metrics = place.run / "metrics.jsonl"
    if not metrics.is_file():
        return 0
    lines = [line for line in metrics.read_text(encoding="utf-8").splitlines() if line.endswith("}")]
    return max((int(json.loads(line)["step"]) for line in lines), default=0)


def membart(*words: object) -> None:
    run([sys.executable, "-m", "tools.cli", *words])


def run(words: list[object]) -> None:
    """A command in a process of its own.

    Raises:
        UserError: it failed; its own message is on the screen.
    """
    done = subprocess.run([str(word) for word in words])
    if done.returncode:
        raise UserError(
            f"exit code {done.returncode}", where=" ".join(map(str, words)), mend="see the message above"
        )


STAGES: dict[str, Stage] = {
    "tokenizer": train_tokenizer,
    "shards": build_shards,
    "pretrain": pretrain_until_stopped,
    "resume": resume,
    "export": export,
    "fill": fill_masks,
    "report": report,
}
