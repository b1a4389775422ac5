"""Annotations of made-up dialogues, and small models of every body that learn from them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoTokenizer

from finetune.backbone import Backbone
from finetune.batch import TurnBatch, collate
from finetune.dialogue.dialogue import Dialogue
from finetune.families.ki import Family, KiSettings
from finetune.knowledge.annotations import Annotations, Spans, annotated_turns
from finetune.knowledge.words import words
from finetune.recipe import DialogueSection
from tests.support import annotated, tiny
from tests.support import dialogues as made
from tests.support.folders import temporary

SIZE = 8
"""Dimensions of the joint space."""
MEMBART = {**tiny.MODEL, "max_position_embeddings": 128}
SHAPES: dict[str, dict[str, Any]] = {
    "membart": MEMBART,
    "bart": MEMBART,
    "transformer": {"width": 16, "layers": 2, "ffn": 32, "heads": 2},
    "lstm": {"embedding": 12, "hidden": 8},
    "bert": {
        "encoder": {
            "model_type": "bert",
            "hidden_size": 16,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "intermediate_size": 32,
            "max_position_embeddings": 128,
        },
        "layers": 2,
        "ffn": 32,
        "heads": 2,
    },
    "diffks": {"embedding": 12, "hidden": 8, "decoder": 16, "sentence_tokens": 8},
}
TALK = made.dialogues(8, seed=3)


def known(text: str, vocabulary: dict[str, int]) -> Spans:
    """An item for every word of more than two letters, the same for the same word."""
    found = [word for word in words(text) if len(word.text) > 2]
    rows = [(w.start, w.end, vocabulary.setdefault(w.text, len(vocabulary)), True, 1.0) for w in found]
    return Spans.of(rows)


def unit(rows: int, size: int = SIZE, seed: int = 0) -> np.ndarray:
    """Random unit rows, float32."""
    found = np.random.default_rng(seed).normal(size=(rows, size))
    return (found / np.linalg.norm(found, axis=1, keepdims=True)).astype(np.float32)


def write(folder: Path, dialogues: Iterable[Dialogue], tagged: bool = False) -> Annotations:
    """Every word of every turn that an encoder may read, with a random key; `tagged`: half of them nouns."""
    vocabulary: dict[str, int] = {}
    rows = []
    for dialogue in dialogues:
        for turn in annotated_turns(dialogue):
            spans = known(dialogue.turns[turn].text, vocabulary)
            rows.append((dialogue, turn, replace(spans, nouns=spans.items % 2 == 0) if tagged else spans))
    sentences = [f"All about {word}." for word in vocabulary]
    return annotated.write(folder, rows, unit(len(vocabulary)), sentences)


@cache
def folder() -> str:
    """Annotations of all that `tests.support.dialogues.write` writes, and of `TALK`."""
    place = temporary("knowledge") / "annotations"
    talk = [one for number, count in enumerate((24, 6, 6)) for one in made.dialogues(count, seed=number)]
    write(place, [*talk, *TALK])
    return str(place)


def family(body: str = "membart", **settings: Any) -> Family:
    """A family that internalizes, unless told not to, with both speakers' replies as targets."""
    memory = settings.pop("memory", "carry" if body == "membart" else "reset")
    data = DialogueSection(
        memory=memory, context_tokens=40, target_tokens=24, lanes=2, agents_per_lane=2, targets="both"
    )
    wanted = {"body": body, "config": SHAPES[body], "knowledge": folder(), **settings}
    return Family(KiSettings(**wanted), data, AutoTokenizer.from_pretrained(made.tokenizer_folder()), 100)


def built(body: str = "membart", **settings: Any) -> tuple[Family, Any]:
    """A seeded float32 model in eval mode, with its family, ready to train."""
    found = family(body, **settings)
    torch.manual_seed(0)
    model, _ = found.build(Backbone("scratch", None, found.text.tokenizer))
    found.prepare(model)
    return found, model.eval()


def batch(
    which: Family, rows: int = 4, dry: int = 0, talk: Sequence[Dialogue] = (), complete: bool = True
) -> TurnBatch:
    """Last and first replies of dialogues by turns, then dry rows; two lanes, `complete` as in training."""
    some = (talk or TALK)[:rows]
    found = [which.example(d, 1 if number % 2 else len(d.turns) - 1) for number, d in enumerate(some)]
    number = len(found) + dry
    gathered = collate([*found, *[None] * dry], [1] * number, which.pads, which.numbers)
    if not complete:
        return gathered
    lanes = torch.arange(number) * 2 // number
    return which.complete(gathered, lanes, [(0, 0, "row", row) for row in range(number)])


def memory(which: Family, model: Any, rows: int) -> torch.Tensor:
    return torch.zeros(rows, *which.memory_shape(model))


def grounded(dialogues: Sequence[Dialogue] = TALK) -> list[Dialogue]:
    """The same, in which every reply was written from one of three sentences."""
    found = []
    for number, dialogue in enumerate(dialogues):
        turns = [
            replace(
                turn, knowledge=("i sing.", "coffee is a drink.", "a band plays."), chosen=(number + at) % 3
            )
            for at, turn in enumerate(dialogue.turns)
        ]
        found.append(replace(dialogue, turns=tuple(turns)))
    return found
