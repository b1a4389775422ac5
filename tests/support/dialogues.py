"""Made-up dialogues, a tokenizer that knows their words, a fine-tune's recipe that trains in seconds."""

from __future__ import annotations

import random
from functools import cache
from pathlib import Path
from typing import Any

from finetune.dialogue.dialogue import Dialogue, Turn
from tests.support import tiny
from tests.support.folders import temporary

NAMES = ("anna", "bob", "carl", "dora", "emil", "fay")
SMALL_TALK = (
    ("how are you?", "fine, and you?"),
    ("nice weather today.", "yes, it is."),
    ("do you like tea?", "i like coffee."),
    ("what do you do?", "i sing in a band."),
)


def dialogues(number: int, seed: int = 0, turns: int = 5) -> list[Dialogue]:
    """Speaker 0 tells a name and asks for it at the end; speaker 1 has a persona of two sentences."""
    rng = random.Random(seed)
    found = []
    for count in range(number):
        name = rng.choice(NAMES)
        said = [(f"hello, i am {name}.", "nice to meet you.")]
        said += [rng.choice(SMALL_TALK) for _ in range(rng.randrange(turns - 1))]
        said.append(("what is my name?", f"your name is {name}."))
        flat = [Turn(who, text) for pair in said for who, text in enumerate(pair)]
        persona = ("i sing in a band.", "i like coffee.")
        found.append(Dialogue(f"made-{seed}-{count}", tuple(flat), ((f"i am {name}.",), persona)))
    return found


@cache
def tokenizer_folder() -> Path:
    """A byte-level BPE tokenizer of BART's layout, trained on these words."""
    from pretrain.corpus.tokenizer import train_tokenizer

    texts = [turn.text + "\n\n" for dialogue in dialogues(50) for turn in dialogue.turns]
    folder = temporary("tokenizer")
    train_tokenizer(texts + ["<conversation starts>\n\nyour persona: A: B:"] * 20, 400).save(folder)
    return folder


def write(folder: Path, train: int = 24, valid: int = 6) -> str:
    """Dialogues as files of our own JSON lines; returns the `NAME:PATH` to load them by."""
    from finetune.dialogue import jsonl

    folder.mkdir(parents=True, exist_ok=True)
    for number, (split, count) in enumerate((("train", train), ("valid", valid), ("test", valid))):
        jsonl.write(folder / f"{split}.jsonl", dialogues(count, seed=number))
    return f"jsonl:{folder}"


def recipe(family: str, source: str, root: Path, **changes: Any) -> dict[str, Any]:
    """Plain content of a fine-tune from scratch; `changes` replace dotted keys, `data__memory="off"`."""
    content: dict[str, Any] = {
        "name": "run",
        "root": str(root),
        "family": family,
        "backbone": "scratch",
        "tokenizer": str(tokenizer_folder()),
        "model": {"config": {**tiny.MODEL, "max_position_embeddings": 128}},
        "data": {
            "sources": [source],
            "lanes": 4,
            "agents_per_lane": 1,
            "context_tokens": 24,
            "target_tokens": 16,
        },
        "replay": {"horizon": 2},
        "optimizer": {"lr": 1e-2, "warmup_steps": 2, "gradient_clipping": 1.0},
        "train": {"steps": 6, "deepspeed": "zero2", "collective_timeout": 600},
        "validation": {"every": 3, "max_timesteps": 4},
        "checkpoint": {"every": 3},
        "generation": {"beams": 2, "max_new_tokens": 8},
        "tracking": {"mlflow": False},
    }
    for key, value in changes.items():
        *parents, leaf = key.split("__")
        node = content
        for parent in parents:
            node = node.setdefault(parent, {})
        node[leaf] = value
    return content
