"""An evaluation for people: a table beside the paper's figures, the run's report, its MLflow run."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from finetune.evaluate import Evaluation
from finetune.fitted import Fitted
from finetune.metrics import papers
from finetune.metrics.prediction import Prediction
from finetune.metrics.report import table as by_metric
from pretrain.page import Section, from_markdown
from pretrain.plots import write_lines
from pretrain.report import save_section
from pretrain.tracking import METRICS_FILE, read_records, sync
from pretrain.tracking.metrics_file import MetricsFile

FOLDER = "evaluation"
_NUMBERED = re.compile(r"(.+)/(.+)/(\d+)")
"""Figures of one kind that have a place each: `KIND_by_PLACE/SERIES/NUMBER`."""


def table(family: str, found: Evaluation) -> str:
    """Markdown: every figure beside the paper's, sessions, samples, and what could not be measured."""
    facts = found.facts
    theirs: dict[str, dict[str, float]] = {}
    rows = papers.rows_beside(family, facts.get("settings", {}))
    for name in dict.fromkeys(source.partition(":")[0] for source in facts["sources"]):
        theirs |= papers.beside(family, name, rows=rows)
    parts = [
        f"# {family}: {facts['split']} split\n",
        f"{facts['replies']:,} replies of {facts['dialogues']:,} dialogues ({', '.join(facts['sources'])}), "
        f"memory {facts['memory']}, context {facts['context_tokens']} tokens, model {facts['model']}\n",
        found.metrics.with_values(_plain(found.figures)).markdown(theirs),
        *(["The paper's models are far larger, and trained on whole data sets.\n"] if theirs else []),
    ]
    if found.by_session:
        parts.append(by_metric({f"session {number}": row for number, row in found.by_session.items()}))
    if found.by_history:
        parts.append("By turns before the reply (short: up to 3, long: more than 9):\n")
        parts.append(by_metric({group[2:]: row for group, row in found.by_history.items()}))
    for kind, series in numbered(found.figures).items():
        places = sorted({place for row in series.values() for place in row})
        columns = {
            str(place): {name: row[place] for name, row in series.items() if place in row} for place in places
        }
        parts.append(f"![{kind}]({kind}.png)\n")
        parts.append(by_metric(columns))
    if found.predictions:
        shown = [_sample(one) for one in last_replies(found.predictions)[:5]]
        parts.append("\n".join(["Samples, each the last reply of a dialogue:", "", *shown]) + "\n")
    return "\n".join(parts)


def last_replies(predictions: Sequence[Prediction]) -> list[Prediction]:
    """Of each dialogue the one with most turns before it, which asks most of a memory."""
    found: dict[str, Prediction] = {}
    for one in predictions:
        if one.dialogue not in found or one.turn > found[one.dialogue].turn:
            found[one.dialogue] = one
    return list(found.values())


def numbered(figures: Mapping[str, float]) -> dict[str, dict[str, dict[int, float]]]:
    """Figures named `KIND_by_PLACE/SERIES/NUMBER`, by their first part, series and number."""
    found: dict[str, dict[str, dict[int, float]]] = {}
    for name, value in figures.items():
        if match := _NUMBERED.fullmatch(name):
            kind, series, number = match.groups()
            found.setdefault(kind, {}).setdefault(series, {})[int(number)] = value
    return found


def _plain(figures: Mapping[str, float]) -> dict[str, float]:
    return {name: value for name, value in figures.items() if not _NUMBERED.fullmatch(name)}


def draw(found: Evaluation, folder: Path) -> list[Path]:
    """A picture for each kind of `numbered` figures, named like it."""
    return [
        write_lines(
            series,
            folder / f"{kind}.png",
            title=kind.replace("_", " "),
            x_label=kind.rpartition("_by_")[2].replace("_", " "),
        )
        for kind, series in numbered(found.figures).items()
    ]


def _sample(one: Prediction) -> str:
    heard = one.context[-1] if one.context else ""
    return (
        f"- turn {one.turn + 1}: `{heard}` -> `{' / '.join(one.replies)}` (reference: `{one.references[0]}`)"
    )


def folder_for(fitted: Fitted, split: str) -> Path:
    """Where results go: below the run, or the exported model."""
    return (_run_of(fitted) or fitted.place) / FOLDER / split


def _run_of(fitted: Fitted) -> Path | None:
    """The run that trained the model; an exported one has none."""
    return fitted.place.parent.parent if (fitted.place / "state.json").is_file() else None


def publish(fitted: Fitted, split: str, found: Evaluation, text: str, folder: Path) -> None:
    """Leave figures, text and the pictures of `folder` with the run that trained the model, if any."""
    run_dir = _run_of(fitted)
    if run_dir is None:
        return
    step = int(fitted.place.name.removeprefix("step-"))
    title = f"Evaluation on the {split} split"
    save_section(run_dir, f"evaluation-{split}", Section(title, text, from_markdown(text, folder)))
    figures = {**found.figures, **found.metrics.values}
    metrics = MetricsFile(run_dir / METRICS_FILE)
    # The best checkpoint may be older than the last record, and records do not go back.
    step = max([step, *(record.step for record, _ in read_records(run_dir / METRICS_FILE) if record)])
    metrics.append(step, f"evaluation-{split}", {f"{split}/{name}": value for name, value in figures.items()})
    metrics.close()
    if fitted.recipe.tracking.mlflow:
        sync(run_dir)
