"""Small implicit-persona CVAEs on both bodies, and batches of made-up dialogues."""

from __future__ import annotations

from typing import Any

import torch
from transformers import AutoTokenizer, GPT2Config, GPT2LMHeadModel

from finetune.backbone import Backbone
from finetune.batch import TurnBatch, collate
from finetune.families.persona_cvae import Family, PersonaCvae, PersonaSettings
from finetune.recipe import DialogueSection
from tests.support import dialogues as made
from tests.support import tiny

GPT2: dict[str, Any] = {
    "model_type": "gpt2",
    "n_embd": 16,
    "n_layer": 6,
    "n_head": 2,
    "n_positions": 96,
    "initializer_range": 0.2,
    "resid_pdrop": 0.0,
    "embd_pdrop": 0.0,
    "attn_pdrop": 0.0,
}
MEMBART = {**tiny.MODEL, "encoder_layers": 3, "decoder_layers": 3, "max_position_embeddings": 96}
SHAPES: dict[str, dict[str, Any]] = {"membart": MEMBART, "gpt2": GPT2}


def family(kind: str = "membart", memory: str = "reset", **settings: Any) -> Family:
    """A family with all replies of `tests.support.dialogues` as targets."""
    shared: dict[str, Any] = {"config": SHAPES[kind]}
    shared |= {"min_utterances": 2, "min_response": 1, "filter_self_centred": "off", "inference_heads": 2}
    data = DialogueSection(memory=memory, context_tokens=40, target_tokens=24, persona=False, targets="both")
    wanted = PersonaSettings(**{**shared, **settings})
    return Family(wanted, data, AutoTokenizer.from_pretrained(made.tokenizer_folder()), steps=100)


def built(kind: str = "membart", memory: str = "reset", **settings: Any) -> tuple[Family, PersonaCvae]:
    """A seeded float32 model in eval mode, with its family."""
    found = family(kind, memory, **settings)
    torch.manual_seed(0)
    model, _ = found.build(Backbone("scratch", None, found.text.tokenizer))
    found.prepare(model)
    return found, model.eval()


def batch(which: Family, rows: int = 3, dry: int = 0, seed: int = 9) -> TurnBatch:
    """The last reply of some dialogues, with dry rows after them."""
    talk = made.dialogues(rows, seed=seed)
    examples = [which.example(d, which.targets(d, number % 2)[-1]) for number, d in enumerate(talk)]
    return collate([*examples, *[None] * dry], [1] * (rows + dry), which.pads, which.numbers)


def memory(which: Family, model: PersonaCvae, rows: int) -> torch.Tensor:
    return torch.zeros(rows, *which.memory_shape(model))


def gpt2() -> GPT2LMHeadModel:
    """A GPT-2 as transformers has it."""
    fields = {key: value for key, value in GPT2.items() if key != "model_type"}
    special = {"vocab_size": tiny.VOCABULARY, "bos_token_id": 0, "eos_token_id": 2}
    torch.manual_seed(0)
    return GPT2LMHeadModel(GPT2Config(**{**fields, **special})).eval()
