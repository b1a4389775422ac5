"""Conversations with an exported model, each with its own memory: what an MLflow model of ours runs.

A server module has the names `REQUIREMENTS`, `COLUMNS`, `options` and `_load_pyfunc`. This is the one for
models that read texts and write, `finetune.serving` the one for those that hold dialogues. Either reads the
model folder and nothing else.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

import pretrain.model.modeling  # noqa: F401 -- registers MemBART with the Auto classes

REQUIREMENTS = ("torch", "transformers", "tokenizers", "safetensors", "numpy", "mlflow")
"""Packages that this module and what it imports need."""
COLUMNS = {"conversation": "string", "text": "string", "reset": "boolean"}
"""Columns of a question by MLflow type; only the first two are required."""
REQUIRED = ("conversation", "text")
CONVERSATIONS = 10_000
"""States kept; past that, the conversation that has been silent longest is forgotten."""

State = TypeVar("State")
Say = Callable[[State | None, Mapping[str, Any], dict[str, Any]], tuple[State, str]]
"""(what a conversation carries, None where it begins; a row; options) -> (what it carries on, the reply)."""


class Conversations(Generic[State]):
    """Keeps apart what each conversation carries.

    The states live in this object: a second process, or the same one started anew, knows none of them.
    """

    def __init__(self, say: Say[State], limit: int = CONVERSATIONS) -> None:
        self._say, self._limit = say, limit
        self._states: OrderedDict[str, State] = OrderedDict()
        self._lock = threading.Lock()

    def predict(self, model_input: Any, params: dict[str, Any] | None = None) -> list[str]:
        """One reply a row, in the order of the rows; MLflow's entry.

        Args:
            model_input: a data frame with `conversation` (any name), `text`, and if wanted `reset`: true
                where the conversation starts afresh with this row.
            params: some of `options`.
        """
        with self._lock:
            return [self._answer(row, dict(params or {})) for row in model_input.to_dict("records")]

    def _answer(self, row: Mapping[str, Any], options: dict[str, Any]) -> str:
        name = str(row["conversation"])
        begins = row.get("reset") in (True, 1)  # a missing cell is NaN
        state, reply = self._say(None if begins else self._states.get(name), row, options)
        self._states[name] = state
        self._states.move_to_end(name)
        if len(self._states) > self._limit:
            self._states.popitem(last=False)
        return reply


class Writer:
    """Reads a text into memory and writes what the model makes of it."""

    def __init__(self, model: Any, tokenizer: Any) -> None:
        self.model, self.tokenizer = model.eval(), tokenizer

    @torch.inference_mode()
    def say(
        self, memory: Tensor | None, row: Mapping[str, Any], options: dict[str, Any]
    ) -> tuple[Tensor, str]:
        """`memory` is `[1, slots, d_model]`; see `Say`."""
        for piece in self.pieces(str(row["text"])):
            ids = torch.tensor([piece], device=self.model.device)
            encoded = self.model.encode(ids, torch.ones_like(ids), memory)
            memory = encoded.memory_states
        if not options.get("do_sample"):
            options = {key: value for key, value in options.items() if key not in ("temperature", "top_p")}
        if "max_new_tokens" in options:  # the decoder has no more positions
            most = self.model.config.max_position_embeddings - 1
            options["max_new_tokens"] = min(options["max_new_tokens"], most)
        made = self.model.generate(
            ids, attention_mask=torch.ones_like(ids), encoder_outputs=encoded, **options
        )
        reply = self.tokenizer.decode(made[0], skip_special_tokens=True)
        return encoded.memory_states, str(reply).strip()

    def pieces(self, text: str) -> list[list[int]]:
        """Token ids in pieces that fit the model's positions; an early piece reaches the reply by memory."""
        ids = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        room = self.model.config.max_position_embeddings - 2
        start, end = self.tokenizer.bos_token_id, self.tokenizer.eos_token_id
        return [[start, *ids[at : at + room], end] for at in range(0, max(len(ids), 1), room)]


def options(folder: Path) -> dict[str, int | float | bool]:
    """Options of a question and their defaults: those of `generate`."""
    return {"max_new_tokens": 64, "num_beams": 1, "do_sample": False, "temperature": 1.0, "top_p": 1.0}


def _load_pyfunc(path: str) -> Conversations[Tensor]:
    """MLflow calls this with the model folder; a GPU is used where there is one."""
    folder = Path(path)
    model = AutoModelForSeq2SeqLM.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    model.to("cuda" if torch.cuda.is_available() else "cpu")
    return Conversations(Writer(model, tokenizer).say)
