"""The whole mission in one pipeline file: a pretraining, knowledge, and all five families."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from transformers import AutoTokenizer

from finetune import fitted
from finetune.chat import continue_dialogue
from pretrain.model import MemBartForConditionalGeneration
from tests.slurm.traces import recipe_file
from tests.support import dialogues
from tests.support.families import TINY

FAMILIES = ("membart", "fusion", "persona_cvae", "ki", "dior_cvae")
FACTS = {
    "tea": "Tea is a hot drink made of leaves .",
    "coffee": "Coffee is a dark drink made of beans .",
    "weather": "Weather is what the sky does today .",
    "band": "A band is some people who play together .",
    "name": "A name is what people call somebody .",
}
"""An encyclopedia of words that are said in the dialogues."""


def write_pipeline(
    folder: Path, shards: Path, site: str, steps: int, tuned: Sequence[str] = FAMILIES, **changes: Any
) -> Path:
    """A pipeline file `made` with all that it names, in `folder`; fine-tunes have two ranks.

    Args:
        site: name of the site file.
        steps: of the pretraining.
        tuned: families to fine-tune.
        changes: stages with more keys, or fine-tunes besides, as `finetune__families__NAME={...}`.
    """
    recipe_file(folder / "recipe.yaml", shards, steps=steps)
    (folder / "facts.tsv").write_text("".join(f"{title}\t{text}\n" for title, text in FACTS.items()))
    source = dialogues.write(folder / "dialogues")
    families = {}
    for name in tuned:
        write_recipe(folder / f"{name}.yaml", name, source)
        families[name] = {"family": f"{name}.yaml", "data": [source]}
    retriever = ["joint_size=8", "head_size=8", "batch=4", "steps=2", "held_out=0"]
    stages: dict[str, Any] = {
        "pretrain": {"recipe": "recipe.yaml", "nodes": 2},
        "knowledge": {"inputs": ["facts.tsv"], "from": "pretrain", "set": retriever},
        "finetune": {"families": families, "tasks_per_node": 2, "preflight": False, "at_once": 2},
        "evaluate": {"words": ["--dialogues", "2"]},
        "export": {},
        "report": {},
    }
    for key, value in changes.items():
        *parents, leaf = key.split("__")
        node = stages
        for parent in parents:
            node = node[parent]
        node[leaf] = value
    file = folder / "pipeline.yaml"
    content = {"name": "made", "folder": "made", "site": site, "stages": stages}
    file.write_text(yaml.safe_dump(content, sort_keys=False))
    return file


def write_recipe(file: Path, name: str, source: str) -> None:
    """A fine-tune of two updates; where it starts and what it knows is for the pipeline to say."""
    changes: dict[str, Any] = {
        **TINY[name],
        "train__steps": 2,
        "train__collective_timeout": 900,  # ranks of many jobs share few cores
        "validation__every": 0,
    }
    if name == "persona_cvae":
        changes["model__inference_layers"] = 1  # as many as the pretraining's encoder has
    tuned = dialogues.recipe(name, source, Path("nowhere"), **changes)
    for key in ("config", "knowledge"):
        tuned["model"].pop(key, None)
    del tuned["tokenizer"], tuned["tracking"]
    file.write_text(yaml.safe_dump(tuned))


def speaks(model: Path) -> bool:
    """Whether an exported folder can be loaded and generates: text, or as a fine-tune replies."""
    if model.name in FAMILIES:
        loaded, [dialogue] = fitted.load(model), dialogues.dialogues(1)
        return len(continue_dialogue(loaded, dialogue)) == loaded.recipe.generation.replies
    network = MemBartForConditionalGeneration.from_pretrained(model)
    ids = AutoTokenizer.from_pretrained(model)("kadan", return_tensors="pt")["input_ids"]
    return int(network.generate(ids, max_new_tokens=4).shape[1]) > 1


def tracked(runs: Path) -> dict[str, str | None]:
    """Names of the MLflow runs with the names of their parents, all of them in the experiment `made`."""
    with sqlite3.connect(runs / "mlflow.db") as store:
        rows = store.execute(
            "select child.name, parent.name, experiments.name from runs child "
            "join experiments using (experiment_id) "
            "left join tags on child.run_uuid = tags.run_uuid and tags.key = 'mlflow.parentRunId' "
            "left join runs parent on parent.run_uuid = tags.value"
        ).fetchall()
    assert {experiment for _, _, experiment in rows} == {"made"}
    assert len({name for name, _, _ in rows}) == len(rows)
    return {name: parent for name, parent, _ in rows}
