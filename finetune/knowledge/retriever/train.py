"""Training of the retriever: one process, one optimizer, resumable to the bit.

It is no `pretrain.job.Job`: that trainer moves agents through documents and their memory through time, and
pays for it with lanes, rollouts and DeepSpeed. Here a batch is a set of single sentences, negatives want the
whole batch in one place, and 6.4 M sentences of one epoch are 25,000 steps of two small encoders: one GPU.

What a step does depends on (seed, step) alone: which sentences, which negatives, which dropout. A checkpoint
is therefore weights, optimizer and counters.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from finetune.knowledge import artifact
from finetune.knowledge.base import KnowledgeBase
from finetune.knowledge.retriever.loss import Matched, match
from finetune.knowledge.retriever.model import KIND, Retriever
from finetune.knowledge.retriever.settings import RetrieverSettings
from finetune.knowledge.words import words
from pretrain import counter
from pretrain.errors import DivergedError, UserError

STATE, METRICS, BEST = "state.pt", "metrics.jsonl", "best.pt"
FEW_WORDS = 4
"""Most words of a sentence whose context is hidden."""
_ORDER, _STEP, _CHECK = range(3)
"""What random numbers are for."""


@dataclass
class Progress:
    """Where training stands."""

    step: int
    steps: int
    loss: float
    recall: float
    """Of the batch while training; of the held-out sentences after a validation."""
    sentences_per_second: float = 0.0
    validated: bool = False


@dataclass
class _Best:
    recall: float = -1.0
    step: int = 0
    since: int = 0
    """Validations since then."""


def train(
    base: KnowledgeBase,
    start: str,
    out: Path,
    settings: RetrieverSettings,
    *,
    device: torch.device,
    restart: bool = False,
    told: Callable[[Progress], None] = lambda progress: None,
) -> Retriever:
    """Train a retriever on the sentences of a knowledge base, or go on where an interrupted call stopped.

    The result is the state with the best recall@1 within held-out batches. Each validation saves.

    Args:
        start: what both encoders are copies of: a run, a folder, `hf:NAME`.

    Raises:
        UserError: `out` exists, was begun otherwise, or the base is too small. DivergedError: the loss is not
            finite.
    """
    order, held_out = _split(base, settings)
    steps = settings.steps or math.ceil(settings.epochs * len(order) / settings.batch)
    plan = {"base": base.hash, "from": start, "settings": settings.model_dump(mode="json")}
    model = Retriever.begin(start, settings)
    with artifact.resumable(out, plan, restart=restart) as folder:
        run = _Run(model.to(device), base, steps, folder, device)
        run.resume()
        began, first = time.perf_counter(), run.step
        while run.step < steps and not (settings.patience and run.best.since >= settings.patience):
            found = run.advance(order)
            speed = (run.step - first) * settings.batch / (time.perf_counter() - began)
            progress = Progress(run.step, steps, float(found.loss.detach()), float(found.recall), speed)
            if not math.isfinite(progress.loss):
                raise DivergedError(f"loss is {progress.loss} at step {run.step}", mend="a lower lr")
            if run.step % settings.validate_every == 0 or run.step == steps:
                loss, recall = run.validate(held_out)
                progress = Progress(run.step, steps, loss, recall, speed, validated=True)
                run.save(progress)
            told(progress)
        run.finish(plan)
    return Retriever.open(out)


class _Run:
    """Model, optimizer and counters."""

    def __init__(
        self, model: Retriever, base: KnowledgeBase, steps: int, folder: Path, device: torch.device
    ) -> None:
        self.model, self.base, self.steps, self.folder, self.device = model, base, steps, folder, device
        self.settings = model.settings
        heads = [*model.tokens.head.parameters(), *model.knowledge.head.parameters()]
        bodies = [*model.tokens.encoder.parameters(), *model.knowledge.encoder.parameters()]
        self.optimizer = torch.optim.AdamW(
            [
                {"params": bodies, "peak": self.settings.lr},
                {"params": heads, "peak": self.settings.head_lr},
            ],
            lr=self.settings.lr,
            weight_decay=self.settings.weight_decay,
        )
        self.step, self.best = 0, _Best()

    def advance(self, order: np.ndarray) -> Matched:
        """One step."""
        torch.manual_seed(int(counter.fold(self.settings.seed, _STEP, self.step)[0] >> np.uint64(1)))
        rows = _batch(order, self.step, self.settings)
        rate = _rate(self.step, self.steps, self.settings.warmup)
        for group in self.optimizer.param_groups:
            group["lr"] = group["peak"] * rate
        self.model.train()
        found = self._matched(rows, self.step, masked=True)
        self.optimizer.zero_grad(set_to_none=True)
        found.loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), self.settings.clip)
        self.optimizer.step()
        self.step += 1
        return found

    @torch.no_grad()
    def validate(self, rows: np.ndarray) -> tuple[float, float]:
        """Loss and recall@1 within batches of held-out sentences, means over batches."""
        self.model.eval()
        pieces = np.array_split(rows, math.ceil(len(rows) / self.settings.batch))
        found = [self._matched(piece, number, masked=False) for number, piece in enumerate(pieces)]
        return (
            float(np.mean([float(each.loss) for each in found])),
            float(np.mean([float(each.recall) for each in found])),
        )

    def _matched(self, rows: np.ndarray, number: int, masked: bool) -> Matched:
        sentences = self.base.sentences(rows)
        said = self._hide_context(rows, sentences, number) if masked else sentences
        told = self._hide_titles(rows, sentences, number) if masked else sentences
        texts = self.model.encode(said).to(self.device)
        known = texts if told is said else self.model.encode(told).to(self.device)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.device.type == "cuda"):
            outputs = self.model.token_outputs(texts)
            keys = self.model.keys(known)
        owners = texts.real.nonzero()[:, 0]
        tokens = F.normalize(outputs[texts.real].float(), dim=-1)
        hashes = torch.from_numpy(self.base.hashes[rows]).to(self.device)
        purpose = _STEP if masked else _CHECK
        seed = int(counter.fold(self.settings.seed, purpose, number)[0] >> np.uint64(1))
        generator = torch.Generator().manual_seed(seed)
        return match(tokens, keys, owners, hashes, self.settings.margin, generator)

    def _hide_titles(self, rows: np.ndarray, sentences: list[str], number: int) -> list[str]:
        """The sentences for the knowledge side, some with their title replaced by the mask token."""
        if not self.settings.mask_title:
            return sentences
        mask = self.model.tokenizer.mask_token or self.model.tokenizer.unk_token
        dice = self._dice(number, 1, len(rows))
        names = self.base.names(rows)
        return [
            sentence.replace(name, mask) if chance < self.settings.mask_title else sentence
            for sentence, name, chance in zip(sentences, names, dice, strict=True)
        ]

    def _hide_context(self, rows: np.ndarray, sentences: list[str], number: int) -> list[str]:
        """The sentences for the word side, of some only the title, of as many only a few words in a row."""
        if not self.settings.hide_context:
            return sentences
        dice = self._dice(number, 2, 4 * len(sentences)).reshape(-1, 4).tolist()
        found = []
        names = self.base.names(rows)
        for sentence, name, (chance, kind, length, place) in zip(sentences, names, dice, strict=True):
            if chance >= self.settings.hide_context:
                found.append(sentence)
            elif kind < 0.5 and name.lower() in sentence.lower():
                found.append(name)
            else:
                found.append(few_words(sentence, length, place))
        return found

    def _dice(self, number: int, purpose: int, count: int) -> np.ndarray:
        """`[count]` in [0, 1), a function of seed, step and purpose."""
        key = counter.fold(self.settings.seed, _STEP, number)
        return np.asarray(counter.draw(key, purpose, count)[0] / 2.0**64)

    def save(self, progress: Progress) -> None:
        """Remember a validation: the state to go on from, and the model if it is the best yet."""
        if progress.recall > self.best.recall:
            self.best = _Best(progress.recall, progress.step)
            artifact.put(self.folder / BEST, partial(torch.save, self.model.state_dict()))
        else:
            self.best.since += 1
        state = {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "step": self.step,
            "best": vars(self.best),
        }
        artifact.put(self.folder / STATE, partial(torch.save, state))
        row = {"step": progress.step, "loss": progress.loss, "recall": progress.recall}
        with (self.folder / METRICS).open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")

    def resume(self) -> None:
        """Go on from the last save, if there is one."""
        if not (self.folder / STATE).is_file():
            (self.folder / METRICS).unlink(missing_ok=True)
            return
        state = _loaded(self.folder / STATE, self.device)
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.step, self.best = state["step"], _Best(**state["best"])

    def finish(self, plan: Mapping[str, Any]) -> None:
        """Turn the folder into a finished retriever."""
        self.model.cpu().load_state_dict(_loaded(self.folder / BEST, torch.device("cpu")))
        self.model.save(self.folder)
        for name in (STATE, BEST):
            (self.folder / name).unlink()
        facts = {
            "knowledge_base": plan["base"],
            "joint_size": self.settings.joint_size,
            "recall": round(self.best.recall, 4),
            "step": self.best.step,
        }
        artifact.seal(self.folder, KIND, facts, {"from": plan["from"]})


def few_words(sentence: str, length: float, place: float) -> str:
    """One to `FEW_WORDS` words in a row.

    Args:
        length, place: in [0, 1): how many of them, and where.
    """
    row = words(sentence)
    count = min(1 + int(length * FEW_WORDS), len(row))
    first = int(place * (len(row) - count + 1))
    return sentence[row[first].start : row[first + count - 1].end] if row else sentence


def _loaded(file: Path, device: torch.device) -> Any:
    with artifact.left_behind(file):
        return torch.load(file, map_location=device, weights_only=True)


def _split(base: KnowledgeBase, settings: RetrieverSettings) -> tuple[np.ndarray, np.ndarray]:
    """Rows to train on and rows held out, both shuffled; a base of a few dozen is validated on itself."""
    rows = counter.permutation(len(base), settings.seed, _ORDER)
    count = min(settings.held_out, len(base) // 20)
    if len(base) < 2:
        raise UserError(f"{len(base)} sentences are too few to train on", where=str(base.folder))
    return (rows[count:], rows[:count]) if count >= 2 else (rows, rows)


def _batch(order: np.ndarray, step: int, settings: RetrieverSettings) -> np.ndarray:
    """The sentences of a step: every epoch is another permutation of all."""
    places = np.arange(step * settings.batch, (step + 1) * settings.batch)
    found = np.empty(len(places), np.int64)
    for epoch in np.unique(places // len(order)):
        mine = places // len(order) == epoch
        shuffled = _epoch(len(order), settings.seed, int(epoch))
        found[mine] = order[shuffled[places[mine] % len(order)]]
    return np.unique(found)


@lru_cache(maxsize=2)
def _epoch(count: int, seed: int, epoch: int) -> np.ndarray:
    return counter.permutation(count, seed, _ORDER, epoch + 1)


def _rate(step: int, steps: int, warmup: float) -> float:
    """Linearly up, then linearly to zero."""
    rising = warmup * steps
    return (step + 1) / (rising + 1) if step < rising else (steps - step) / max(steps - rising, 1)
