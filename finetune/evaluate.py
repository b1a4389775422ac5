"""Evaluation of a fine-tuned model: perplexity, generated replies, and the metrics of its family.

Dialogues run turn by turn with the memory of training over the gold history: what was said before a reply is
what people said, not what the model did.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from finetune import job, stream
from finetune.batch import TurnBatch
from finetune.fitted import Fitted
from finetune.metrics import Report, Resources, by_history, check_names, evaluate_by
from finetune.metrics import evaluate as measure
from finetune.metrics.catalogue import METRICS
from finetune.metrics.prediction import Prediction, write_predictions
from finetune.recipe import FineTuneRecipe, GenerationSection
from finetune.stream import TurnStream
from finetune.tally import Recall, Scored, Sums, Tally
from pretrain.distributed import World
from pretrain.files import write_atomically

ALONE = World(rank=0, size=1, local_rank=0, address="127.0.0.1", port=0)


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
    carried = recipe.data.memory == "carry" and family.memory_shape(model)[0] > 0
    how = recipe.generation if generate else None
    cell = family.cell(model).eval()
    tally = Tally(Recall.of(found.dialogues))
    memory = fitted.memory(agents)
    for number, batch in enumerate(batches):
        on_device = batch.to(model.device)
        scored, memory = _score(
            fitted, cell, on_device, memory, ("evaluate", number), how, tally.recall if carried else None
        )
        tally.add(on_device, scored)
        if progress:
            progress(tally.total.replies, found.turns)
    figures = tally.total.figures(carried) | tally.recall.figures(carried)
    figures |= dict(family.summary(tally.gathered()))
    report = measure(tally.predictions, names, resources or Resources()) if generate else Report({})
    facts = {
        "family": recipe.family,
        "model": str(fitted.place),
        "split": split,
        "sources": list(recipe.data.sources),
        "dialogues": len(found.dialogues),
        "replies": tally.total.replies,
        "target_tokens": tally.total.tokens,
        "rejected": found.rejected,
        "memory": recipe.data.memory,
        "context_tokens": recipe.data.context_tokens,
        "settings": recipe.model,
        "generation": None if how is None else how.model_dump(mode="json"),
    }
    by_session = {session: sums.figures(carried) for session, sums in sorted(tally.sessions.items())}
    return Evaluation(
        figures,
        by_session if len(by_session) > 1 else {},
        _by_history(tally.histories, carried, tally.predictions, names),
        report,
        tuple(tally.predictions),
        facts,
    )


def _score(
    fitted: Fitted,
    cell: Any,
    batch: TurnBatch,
    memory: Tensor,
    key: tuple[int | str, ...],
    how: GenerationSection | None,
    carried: Recall | None,
) -> tuple[Scored, Tensor]:
    """One timestep, and the memory `[A, slots, d_model]` that it leaves.

    Args:
        memory: `[A, slots, d_model]`, entering.
        how: settings of the replies; None: no replies.
        carried: where memory is carried, the answers that need it; else None.
    """
    family, model = fitted.family, fitted.model
    parts = len(family.parts)
    with torch.no_grad():
        nll, after = _row_losses(cell, batch, memory, key, parts)
        reset = nll if carried is None else _row_losses(cell, batch.with_resets(), memory, key, parts)[0]
        figures = family.figures(model, batch, memory)
    tokens = family.count(batch, per_row=True).view(parts, -1)[0].tolist()
    answer = None if how is None else family.generate(model, batch, memory, how, key)
    replies = answer.texts if answer else None
    forgetful = replies
    asked = carried is not None and any(carried.asks(one.about) for one in batch.examples if one)
    if how is not None and replies and asked:
        forgetful = family.generate(model, batch.with_resets(), memory, how, key).texts
    selected = answer.selected if answer else None
    return Scored(nll, reset, tokens, figures, replies, forgetful, selected), after


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
