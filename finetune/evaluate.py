"""Evaluation of a fine-tuned model: perplexity, generated replies, and the metrics of its family.

Dialogues run turn by turn with the memory of training over the gold history: what was said before a reply is
what people said, not what the model did.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from finetune import job, stream
from finetune.batch import TurnBatch
from finetune.dialogue.dialogue import Dialogue
from finetune.fitted import Fitted
from finetune.metrics import Report, Resources, by_history, check_names, evaluate_by
from finetune.metrics import evaluate as measure
from finetune.metrics.catalogue import METRICS
from finetune.metrics.perplexity import perplexity
from finetune.metrics.prediction import Prediction, write_predictions
from finetune.recipe import FineTuneRecipe
from finetune.stream import TurnStream
from pretrain.distributed import World
from pretrain.files import write_atomically

ALONE = World(rank=0, size=1, local_rank=0, address="127.0.0.1", port=0)


@dataclass
class Sums:
    """Cross-entropy of the target tokens, with memory as in training and with memory reset."""

    nll: float = 0.0
    nll_reset: float = 0.0
    tokens: int = 0
    replies: int = 0

    def add(self, nll: float, nll_reset: float, tokens: int) -> None:
        self.nll, self.nll_reset = self.nll + nll, self.nll_reset + nll_reset
        self.tokens, self.replies = self.tokens + tokens, self.replies + 1

    def figures(self, carried: bool) -> dict[str, float]:
        found = {"perplexity": perplexity(self.nll, self.tokens)}
        if carried:
            found["perplexity_reset"] = perplexity(self.nll_reset, self.tokens)
            found["history_gain"] = found["perplexity_reset"] / found["perplexity"] - 1
        return found


@dataclass
class Recall:
    """How often an answer has the word that only an earlier turn tells (tag `recall`, see `synthetic`)."""

    words: dict[tuple[str, int], str]
    """What must be said, by dialogue and turn."""
    asked: int = 0
    right: int = 0
    right_reset: int = 0

    @classmethod
    def of(cls, dialogues: Sequence[Dialogue]) -> Recall:
        tagged = (
            (dialogue.id, number, turn)
            for dialogue in dialogues
            for number, turn in enumerate(dialogue.turns)
        )
        return cls(
            {(name, number): turn.tags["recall"] for name, number, turn in tagged if "recall" in turn.tags}
        )

    def asks(self, about: Prediction) -> bool:
        return (about.dialogue, about.turn) in self.words

    def add(self, about: Prediction, reply: str, reply_reset: str) -> None:
        word = self.words[about.dialogue, about.turn]
        self.asked += 1
        self.right += word in reply.split()
        self.right_reset += word in reply_reset.split()

    def figures(self, carried: bool) -> dict[str, float]:
        if not self.asked:
            return {}
        found = {"recall": self.right / self.asked, "recall_asked": float(self.asked)}
        return found | ({"recall_reset": self.right_reset / self.asked} if carried else {})


@dataclass(frozen=True)
class Evaluation:
    """What was found, and the replies it was found on."""

    figures: dict[str, float]
    by_session: dict[int, dict[str, float]]
    """Perplexities per session, where dialogues have more than one."""
    by_history: dict[str, dict[str, float]]
    """Perplexities and metrics by length of the history, see `metrics.by_history`; without metrics that need
    a model or a word list, which are dear."""
    metrics: Report
    predictions: tuple[Prediction, ...]
    facts: dict[str, Any]

    def write(self, folder: Path, table: str) -> None:
        """`evaluation.json`, `evaluation.md` (`table`) and `predictions.jsonl`, each complete or absent."""
        folder.mkdir(parents=True, exist_ok=True)
        write_predictions(folder / "predictions.jsonl", self.predictions)
        write_atomically(folder / "evaluation.md", table)
        content = {
            "facts": self.facts,
            "figures": self.figures,
            "by_session": {str(session): found for session, found in self.by_session.items()},
            "by_history": self.by_history,
            "metrics": self.metrics.values,
            "unavailable": self.metrics.unavailable,
            "computed_by": self.metrics.notes,
        }
        write_atomically(folder / "evaluation.json", json.dumps(content, indent=1) + "\n")


def evaluate(
    fitted: Fitted,
    split: str,
    *,
    sources: Sequence[str] = (),
    agents: int = 16,
    max_dialogues: int | None = None,
    generate: bool = True,
    metrics: Sequence[str] = (),
    resources: Resources | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Evaluation:
    """Score a split.

    Args:
        sources: `NAME:PATH` of the dialogues; the recipe's unless given.
        agents: dialogues that run side by side.
        max_dialogues: only so many of each source.
        generate: also answer every target turn; without it only perplexities are found.
        metrics: names in `finetune.metrics`; the family's unless given.
        progress: told (replies done, replies in all) after each timestep.

    Raises:
        UserError: no such dialogues, or no such metric.
    """
    family, model = fitted.family, fitted.model
    names = list(metrics or family.metrics) if generate else []
    check_names(names)
    agents = max(min(agents, max_dialogues or agents), 1)
    recipe, found, batches = timesteps(
        fitted, split, sources=sources, agents=agents, max_dialogues=max_dialogues
    )
    data = recipe.data
    carried = data.memory == "carry" and family.memory_shape(model)[0] > 0
    cell = family.cell(model).eval()
    total, recall = Sums(), Recall.of(found.dialogues)
    sessions: dict[int, Sums] = {}
    histories: dict[str, Sums] = {}
    gathered: dict[str, list[Tensor]] = {}
    predictions: list[Prediction] = []
    memory = fitted.memory(agents)
    for number, cpu_batch in enumerate(batches):
        batch = cpu_batch.to(model.device)
        key = ("evaluate", number)
        live = [row for row, example in enumerate(batch.examples) if example is not None]
        before = memory
        with torch.no_grad():
            nll, memory = _row_losses(cell, batch, before, key, len(family.parts))
            reset = (
                _row_losses(cell, batch.with_resets(), before, key, len(family.parts))[0] if carried else nll
            )
            for name, values in family.figures(model, batch, before).items():
                gathered.setdefault(name, []).append(values[live].cpu())
        counts = family.count(batch, per_row=True).view(len(family.parts), -1)[0].tolist()
        answer = family.generate(model, batch, before, recipe.generation, key) if generate else None
        texts = answer.texts if answer else None
        forgetful = texts
        if carried and texts and any(recall.asks(e.about) for e in batch.examples if e):
            forgetful = family.generate(model, batch.with_resets(), before, recipe.generation, key).texts
        for row in live:
            example = batch.examples[row]
            assert example is not None
            about = example.about
            group = histories.setdefault(by_history(about), Sums())
            for sums in (total, sessions.setdefault(about.session, Sums()), group):
                sums.add(nll[row], reset[row], counts[row])
            if texts is not None and forgetful is not None:
                if recall.asks(about):
                    recall.add(about, *(said[row][0] if said[row] else "" for said in (texts, forgetful)))
                selected = answer.selected[row] if answer and answer.selected else None
                predictions.append(dataclasses.replace(about, replies=tuple(texts[row]), selected=selected))
        if progress:
            progress(total.replies, found.turns)
    figures = total.figures(carried) | recall.figures(carried)
    figures |= dict(family.summary({name: torch.cat(values) for name, values in gathered.items()}))
    report = measure(predictions, names, resources or Resources()) if generate else Report({})
    facts = {
        "family": recipe.family,
        "model": str(fitted.place),
        "split": split,
        "sources": list(data.sources),
        "dialogues": len(found.dialogues),
        "replies": total.replies,
        "target_tokens": total.tokens,
        "rejected": found.rejected,
        "memory": data.memory,
        "context_tokens": data.context_tokens,
        "settings": recipe.model,
        "generation": recipe.generation.model_dump(mode="json") if generate else None,
    }
    by_session = {session: sums.figures(carried) for session, sums in sorted(sessions.items())}
    return Evaluation(
        figures,
        by_session if len(by_session) > 1 else {},
        _by_history(histories, carried, predictions, names),
        report,
        tuple(predictions),
        facts,
    )


def _by_history(
    histories: dict[str, Sums], carried: bool, predictions: Sequence[Prediction], names: Sequence[str]
) -> dict[str, dict[str, float]]:
    """Figures of each group, shortest histories first."""
    cheap = [name for name in names if not METRICS[name].resources]
    measured = evaluate_by(predictions, cheap, Resources(), by_history) if predictions else {}
    return {
        group: {
            "replies": float(sums.replies),
            **sums.figures(carried),
            **(measured[group].values if group in measured else {}),
        }
        for group, sums in sorted(histories.items())
    }


def timesteps(
    fitted: Fitted,
    split: str,
    *,
    sources: Sequence[str] = (),
    agents: int = 16,
    max_dialogues: int | None = None,
) -> tuple[FineTuneRecipe, job.Data, TurnStream]:
    """A split of the recipe's dialogues, or of `sources`, once, `agents` dialogues side by side on this
    process; with the recipe that says so.

    Raises:
        UserError: no such dialogues.
    """
    changes: dict[str, Any] = {"max_dialogues": max_dialogues, "validation_dialogues": None}
    if sources:
        changes["sources"] = tuple(sources)
    data = fitted.recipe.data.model_copy(update={**changes, "lanes": 1, "agents_per_lane": agents})
    recipe = fitted.recipe.model_copy(update={"data": data})
    found = job.read(recipe, fitted.family, split)
    batches = TurnStream(
        found.units,
        fitted.family,
        data,
        identity=stream.data_hash(found.dialogues),
        seed=recipe.train.seed,
        world=ALONE,
        epochs=1,
    )
    return recipe, found, batches


def _row_losses(
    cell: Any, batch: TurnBatch, memory: Tensor, key: tuple[int | str, ...], parts: int
) -> tuple[list[float], Tensor]:
    """Summed cross-entropy of each row, and the memory after it."""
    losses, memory, _ = cell(batch, memory, key, per_row=True)
    return losses.double().view(parts, -1)[0].tolist(), memory
