"""Small fusing models on both bodies, and batches of made-up dialogues."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from finetune.backbone import Backbone
from finetune.batch import TurnBatch, collate
from finetune.families.fusion import Family, FusionModel, FusionSettings
from finetune.families.fusion.stack import Context
from finetune.fitted import Fitted
from finetune.recipe import DialogueSection, FineTuneRecipe
from pretrain import recipe as recipes
from tests.support import dialogues as made
from tests.support import tiny

GPT2: dict[str, Any] = {
    "model_type": "gpt2",
    "n_embd": 16,
    "n_layer": 2,
    "n_head": 2,
    "n_positions": 96,
    "initializer_range": 0.2,
    "resid_pdrop": 0.0,
    "embd_pdrop": 0.0,
    "attn_pdrop": 0.0,
}
MEMBART = {**tiny.MODEL, "max_position_embeddings": 96}
SHAPES: dict[str, dict[str, Any]] = {"membart": MEMBART, "gpt2": GPT2}
NOWHERE = Path("nowhere")
METHODS = ("avg", "max", "min", "sw", "dw", "linear", "att")


def tokenizer(kind: str) -> PreTrainedTokenizerBase:
    """Of BART's layout; for a GPT-2 with one token for both ends and none for padding."""
    found: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(made.tokenizer_folder())
    if kind == "gpt2":
        found.bos_token, found.pad_token, found.mask_token = found.eos_token, None, None
    return found


def family(kind: str = "membart", memory: str = "reset", **settings: Any) -> Family:
    """A family for `tests.support.dialogues`."""
    data = DialogueSection(memory=memory, context_tokens=40, target_tokens=24, targets="both")
    wanted = FusionSettings(**{"config": SHAPES[kind], **settings})
    return Family(wanted, data, tokenizer(kind), steps=100)


def built(
    kind: str = "membart", memory: str = "reset", lively: bool = True, **settings: Any
) -> tuple[Family, FusionModel]:
    """A seeded float32 model in eval mode, with its family.

    Args:
        lively: also draw what starts at zero or at equal weights, so that nothing cancels by chance.
    """
    found = family(kind, memory, **settings)
    torch.manual_seed(0)
    model, _ = found.build(Backbone("scratch", None, found.text.tokenizer))
    found.prepare(model)
    if lively:
        generator = torch.Generator().manual_seed(1)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if ".fusion." in name or name.startswith("types."):
                    parameter += 0.2 * torch.randn(parameter.shape, generator=generator)
    return found, model.eval()


def batch(which: Family, rows: int = 3, dry: int = 0, seed: int = 9) -> TurnBatch:
    """The last reply of some dialogues, with dry rows after them."""
    talk = made.dialogues(rows, seed=seed)
    examples = [which.example(d, which.targets(d, number % 2)[-1]) for number, d in enumerate(talk)]
    return collate([*examples, *[None] * dry], [1] * (rows + dry), which.pads, which.numbers)


def memory(which: Family, model: FusionModel, rows: int) -> Tensor:
    return torch.zeros(rows, *which.memory_shape(model))


def contexts(which: Family, model: FusionModel, one: TurnBatch) -> list[Context]:
    """What the decoder attends to."""
    return model.contexts(model.read(one, memory(which, model, len(one.labels))), one)


def logits(which: Family, model: FusionModel, one: TurnBatch) -> Tensor:
    """Of every label, `[A, R, V]`."""
    return model.logits(model.reply_states(contexts(which, model, one), one))


def fitted(which: Family, model: FusionModel, source: str) -> Fitted:
    """As `finetune.fitted.load` would give the model, for dialogues at `source`."""
    content = made.recipe("fusion", source, NOWHERE, data__memory=which.data.memory)
    wanted = recipes.parse(
        {**content, "data": {**content["data"], "targets": "both"}}, "test", FineTuneRecipe
    )
    return Fitted(wanted, which, model, which.text.tokenizer, NOWHERE, None)
