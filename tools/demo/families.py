"""The demo's five fine-tunes from its checkpoint, on dialogues out of the grammar, and one report of all."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from typing import Any

from finetune.dialogue import synthetic
from pretrain.errors import UserError
from tools.demo.stages import Demo, membart, run_ranks

MEMORY, CHAT = "memory", "chat"
"""Two sets of dialogues: facts to remember; personas, knowledge and small talk."""
CONTEXT = 32
"""Tokens: two turns and a half, so that a fact has left the window when it is asked for."""
SMALL = (
    "data.lanes=4", "data.agents_per_lane=8", "data.target_tokens=32", "optimizer.lr=1e-3",
    "optimizer.warmup_steps=20", "train.log_every=5", "data.validation_dialogues=32",
    "validation.patience=0", "checkpoint.every=500", "tracking.experiment=demo",
)  # fmt: skip
FAMILIES: dict[str, tuple[str, ...]] = {
    "membart": (
        f"data.context_tokens={CONTEXT}", "data.persona=false", "data.agents_per_lane=4",
        "replay.horizon=5", "train.steps=300", "optimizer.warmup_steps=50", "optimizer.eps=1e-12",
        "validation.every=50", "generation.beams=1",
    ),
    "fusion": ("data.context_tokens=64", "replay.horizon=2", "train.steps=60", "validation.every=30"),
    "persona_cvae": (
        "data.context_tokens=64", "replay.horizon=2", "train.steps=80", "validation.every=40",
        "model.min_utterances=2", "model.min_response=1", 'model.filter_self_centred="off"',
        "model.inference_layers=2",
    ),
    "ki": (
        "data.context_tokens=64", "train.steps=80", "validation.every=40", "replay.agent_chunks=1",
        "data.epochs=null", "generation.beams=1",
    ),
    "dior_cvae": (
        "data.context_tokens=64", "replay.horizon=2", "train.steps=80", "validation.every=40",
        "model.latent_size=16", "model.kl_anneal_steps=40", "model.inverse_sqrt_after=80",
        "generation.beams=1",
    ),
}  # fmt: skip
RECALLED = (
    "--dialogues", 4000, "--facts", 2, "--near", 3, "--far", 5, "--values", 4, "--persona", 0,
    "--wordings", 1,
)  # fmt: skip
"""Two facts, asked for three to five turns later. Nothing else is left to choice, so that the rest is soon
learned and the few updates of a demo go into remembering."""
EVALUATED = {"membart": 100}
"""Test dialogues; 20 where nothing is said."""


def make_dialogues(place: Demo) -> dict[str, Any]:
    """Facts told early and asked for late; and, for the other families, personas and knowledge."""
    for name, options in (
        (MEMORY, RECALLED),
        (CHAT, ("--dialogues", 1000, "--facts", 1, "--near", 5, "--far", 9, "--values", 4)),
    ):
        shutil.rmtree(place.dialogues(name), ignore_errors=True)
        membart("data", "make-synthetic", place.dialogues(name), *options)
    membart("data", "inspect", f"jsonl:{place.dialogues(MEMORY)}")
    return {"dialogues": str(place.dialogues(MEMORY).parent)}


def find_knowledge(place: Demo) -> dict[str, Any]:
    """What is known of each animal, a retriever trained on it, and an item for the words of the dialogues."""
    shutil.rmtree(place.knowledge(""), ignore_errors=True)
    place.knowledge("").mkdir(parents=True)
    facts = place.knowledge("animals.tsv")
    facts.write_text(
        "".join(
            f"{animal}\tThe {animal} lives in the {home} , eats {food} and is {nature} .\n"
            for animal, (home, food, nature) in synthetic.ANIMALS.items()
        ),
        encoding="utf-8",
    )
    base, retriever, index = (place.knowledge(name) for name in ("base", "retriever", "index"))
    membart("ki", "base", facts, "--out", base)
    membart(
        "ki", "train-retriever", "--base", base, "--from", place.run, "--out", retriever,
        "steps=60", f"batch={len(synthetic.ANIMALS)}", "lr=1e-3", "held_out=0",
    )  # fmt: skip
    membart("ki", "index", "--base", base, "--retriever", retriever, "--out", index)
    membart(
        "ki", "annotate", "--index", index, "--data", f"jsonl:{place.dialogues(CHAT)}",
        "--out", place.knowledge("annotations"),
    )  # fmt: skip
    return {"annotations": str(place.knowledge("annotations"))}


def fine_tune(family: str) -> Callable[[Demo], dict[str, Any]]:
    """The stage of a family: train on two ranks, score, export."""

    def stage(place: Demo) -> dict[str, Any]:
        run, model = place.runs / family, place.model(family)
        for old in (run, model):
            shutil.rmtree(old, ignore_errors=True)
        dialogues = place.dialogues(MEMORY if family == "membart" else CHAT)
        settings = [*SMALL, *FAMILIES[family]]
        if family == "ki":
            settings.append(f"model.knowledge={place.knowledge('annotations')}")
        run_ranks([
            "finetune", family, "--from", place.run, "--data", f"jsonl:{dialogues}",
            f"name={family}", f"root={place.runs}", *settings,
        ])  # fmt: skip
        membart("evaluate", run, "--dialogues", EVALUATED.get(family, 20))
        membart("export", run, model)
        return {"run": str(run), "model": str(model)}

    return stage


def report(place: Demo) -> dict[str, Any]:
    """One page about all runs, and where everything is."""
    runs = [place.runs / "recall", place.run, *(place.runs / family for family in FAMILIES)]
    membart("report", place.run, "--samples", place.samples)
    membart("report", *runs, "--out", place.report)
    if not place.report.is_file():
        raise UserError("no report was written", where=str(place.report))
    return {"report": str(place.report)}
