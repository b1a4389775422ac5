"""From predictions to reports: all of them together, or by session, length of history, or any key."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import TypeVar

from finetune.metrics.catalogue import METRICS, Metric, check_names
from finetune.metrics.prediction import Prediction
from finetune.metrics.report import Report
from finetune.metrics.resources import Resources
from pretrain.errors import UserError


def evaluate(predictions: Sequence[Prediction], names: Sequence[str], resources: Resources) -> Report:
    """Compute metrics.

    Where contexts have N replies they are N independent draws: a metric is computed on all first replies, on
    all second ones and so on, and averaged; metrics that compare the replies to one context see all of them.
    N is the same for all contexts: extra replies of some are left out.

    Args:
        names: keys of `METRICS`.

    Returns:
        A figure for each name, or the reason why there is none; what a resource lacks never stops the others.

    Raises:
        UserError: no predictions, one without a reply, or an unknown name.
    """
    check_names(names)
    if not predictions:
        raise UserError("no predictions to score", where="metrics", mend="check the data and the split")
    for one in predictions:
        if not one.replies:
            raise UserError("no reply to score", where=f"dialogue {one.dialogue}, turn {one.turn}")
    draws = min(len(one.replies) for one in predictions)
    trimmed = [replace(one, replies=one.replies[:draws]) for one in predictions]
    report = Report({})
    for name in names:
        metric = METRICS[name]
        try:
            report.values[name] = _compute(metric, trimmed, draws, resources)
        except UserError as error:
            report.unavailable[name] = str(error)
        else:
            report.notes[name] = _note(metric, resources)
    return report


K = TypeVar("K", str, int)


def evaluate_by(
    predictions: Sequence[Prediction],
    names: Sequence[str],
    resources: Resources,
    key: Callable[[Prediction], K],
) -> dict[K, Report]:
    """`evaluate` of each group of predictions with one key, by sorted keys.

    Raises:
        UserError: as `evaluate`.
    """
    groups: dict[K, list[Prediction]] = {}
    for one in predictions:
        groups.setdefault(key(one), []).append(one)
    return {found: evaluate(groups[found], names, resources) for found in sorted(groups)}


def by_session(prediction: Prediction) -> int:
    """Key: the number of the session."""
    return prediction.session


def by_history(prediction: Prediction) -> str:
    """Key: length of the history as in the fusion paper's Table 2, short up to 3 turns, long from 10."""
    turns = len(prediction.context)
    return "1 short" if turns <= 3 else "3 long" if turns > 9 else "2 medium"


def _compute(metric: Metric, predictions: list[Prediction], draws: int, resources: Resources) -> float:
    if metric.together or draws == 1:
        return float(metric.compute(predictions, resources))
    each = ([replace(one, replies=one.replies[n : n + 1]) for one in predictions] for n in range(draws))
    return statistics.fmean(metric.compute(draw, resources) for draw in each)


def _note(metric: Metric, resources: Resources) -> str:
    made_by = [f"{metric.library} {version(metric.library)}"] if metric.library else []
    paths = ((name, getattr(resources, name)) for name in metric.resources)
    made_by += [f"{name} {path.name}" for name, path in paths if isinstance(path, Path)]
    better = f"; {metric.better} is better" if metric.better else ""
    return metric.meaning + better + (f" ({', '.join(made_by)})" if made_by else "")
