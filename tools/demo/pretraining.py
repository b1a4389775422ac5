"""The demo's way from real text to a pretrained MemBART."""

from __future__ import annotations

import json
import shutil
import signal
import time
from typing import Any

from pretrain.errors import EXIT_REQUEUE, UserError
from tools.demo.stages import PROCESSES, Demo, membart, run_ranks, start_ranks

DOCUMENTS = 2000
VOCABULARY = 2048
WINDOW, OVERLAP = 64, 16
RECALL_UPDATES = 800
RECALL_WINDOW = 14
UPDATES = 450


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


def learn_to_remember(place: Demo) -> dict[str, Any]:
    """The paper's text recall first: a segment asks for the one before it.

    Denoising pays a memory so little that a small model from scratch lets its slots collapse into one before
    they are of use. One that has learned to carry a segment over keeps them.
    """
    run = place.runs / "recall"
    for old in (run, place.recall):
        shutil.rmtree(old, ignore_errors=True)
    run_ranks([
        "pretrain", "tiny", "name=recall", f"root={place.runs}", f"data.shards=[{place.shards}]",
        "data.objective=recall", f"data.window={RECALL_WINDOW}", "data.overlap=0", "data.agents_per_lane=8",
        "replay.horizon=2", f"train.steps={RECALL_UPDATES}", "train.log_every=10", "checkpoint.every=400",
        "validation.every=200", "validation.max_timesteps=8", "tracking.experiment=demo",
    ])  # fmt: skip
    membart("export", run, place.recall)
    return {"updates": RECALL_UPDATES, "model": str(place.recall)}


def pretrain_until_stopped(place: Demo) -> dict[str, Any]:
    """Two DeepSpeed processes; SIGTERM half-way, as a cluster sends it."""
    shutil.rmtree(place.run, ignore_errors=True)
    ranks = start_ranks(_pretraining(place))
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
    run_ranks(_pretraining(place))
    return {"updates": updates(place)}


def export(place: Demo) -> dict[str, Any]:
    """The last checkpoint as a Hugging Face folder."""
    folder = place.model("pretraining")
    shutil.rmtree(folder, ignore_errors=True)
    membart("export", place.run, folder)
    return {"model": str(folder)}


def fill_masks(place: Demo) -> dict[str, Any]:
    """The exported folder in a fresh process: masks of a held-out document with memory and without."""
    membart("fill", place.model("pretraining"), place.shards, "--out", place.samples)
    return {"samples": str(place.samples)}


def updates(place: Demo) -> int:
    """Updates that the run has logged."""
    metrics = place.run / "metrics.jsonl"
    if not metrics.is_file():
        return 0
    lines = [line for line in metrics.read_text(encoding="utf-8").splitlines() if line.endswith("}")]
    return max((int(json.loads(line)["step"]) for line in lines), default=0)


def _pretraining(place: Demo) -> list[object]:
    return [
        "pretrain", "tiny", f"name={place.run.name}", f"root={place.runs}", f"data.shards=[{place.shards}]",
        f"model.init={place.recall}", "model.config={}", f"train.steps={UPDATES}", "tracking.experiment=demo",
    ]  # fmt: skip
