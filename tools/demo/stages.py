"""Stages of the demo: each leaves a file when it is done, is skipped then, and can be run again."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pretrain.errors import UserError

PROCESSES = 2


@dataclass(frozen=True)
class Demo:
    """Where the demo keeps its things."""

    folder: Path

    @property
    def tokenizer(self) -> Path:
        """Trained on the docstrings."""
        return self.folder / "tokenizer"

    @property
    def shards(self) -> Path:
        """The shard set that is pretrained on."""
        return self.folder / "shards" / "docs"

    @property
    def runs(self) -> Path:
        """All run folders, and the MLflow store."""
        return self.folder / "runs"

    @property
    def recall(self) -> Path:
        """The model that has learned to remember, from which pretraining starts."""
        return self.folder / "recall"

    @property
    def run(self) -> Path:
        """The pretraining that the families start from."""
        return self.runs / "pretraining"

    @property
    def samples(self) -> Path:
        """Mended masks, as a section of the report."""
        return self.folder / "samples.json"

    def dialogues(self, name: str) -> Path:
        """A set of made-up dialogues."""
        return self.folder / "dialogues" / name

    def knowledge(self, name: str) -> Path:
        """A part of what `ki` learns from; the folder of them all for no name."""
        return self.folder / "knowledge" / name

    def model(self, name: str) -> Path:
        """The exported model of a run."""
        return self.folder / "models" / name

    @property
    def report(self) -> Path:
        """The page about all runs."""
        return self.folder / "report.html"

    def done(self, stage: str) -> Path:
        """There once the stage is done: what it returned, as JSON."""
        return self.folder / "stages" / f"{stage}.json"


Stage = Callable[[Demo], dict[str, Any]]


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


def start_ranks(words: list[object]) -> list[subprocess.Popen[bytes]]:
    """What `srun` does on a cluster: one process a rank, told apart by its environment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    common = {"WORLD_SIZE": PROCESSES, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "OMP_NUM_THREADS": 1}
    return [
        subprocess.Popen(
            [sys.executable, "-m", *(str(word) for word in words)],
            env={**os.environ, **{k: str(v) for k, v in {**common, "RANK": r, "LOCAL_RANK": r}.items()}},
        )
        for r in range(PROCESSES)
    ]


def run_ranks(words: list[object]) -> None:
    """A module on all ranks, to its end.

    Raises:
        UserError: a rank failed; its own message is on the screen.
    """
    codes = [rank.wait() for rank in start_ranks(words)]
    if any(codes):
        raise UserError(f"exit codes {codes}", where=" ".join(map(str, words)), mend="see the message above")


def membart(*words: object) -> None:
    """A `membart` command in a process of its own.

    Raises:
        UserError: it failed; its own message is on the screen.
    """
    done = subprocess.run([sys.executable, "-m", "tools.cli", *(str(word) for word in words)])
    if done.returncode:
        raise UserError(
            f"exit code {done.returncode}",
            where=" ".join(map(str, ("membart", *words))),
            mend="see the message above",
        )
