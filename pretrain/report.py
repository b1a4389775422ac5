"""The one-page report of a run, made from its folder alone, and the one that compares several.

    RUN/metrics.jsonl          the curves and figures
    RUN/recipe.yaml            shown in full; optional
    RUN/checkpoints/step-*     listed; optional
    RUN/tracking/*.json        name, state and MLflow run; optional
    RUN/report/*.json          sections that other programs left, as `save_section` writes them; optional

Written: `RUN/report.html` (self-contained: the pictures are inside) and `RUN/plots/*.png`; for several runs
a page that the caller names.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from tqdm import tqdm

from pretrain.account import account
from pretrain.console import short_number
from pretrain.errors import UserError
from pretrain.files import write_atomically
from pretrain.page import Content, Section, one_run, several_runs
from pretrain.plots import write_plots
from pretrain.recipe import RECIPE_FILE
from pretrain.tracking import METRICS_FILE, spool
from pretrain.tracking.destination import local_store, view_hint
from pretrain.tracking.history import History

_SECTIONS = "report"
_WITH, _RESET = "held-out perplexity, with memory", "held-out perplexity, memory reset"
_GAIN, _SPEED = "history gain", "tokens/s"
_COMPARED = {_WITH: "perplexity", _RESET: "memory reset", _GAIN: _GAIN, _SPEED: _SPEED}
"""Figures that the table of several runs has, and what they are called there."""


@dataclass(frozen=True)
class Report:
    """What was written, and the same in plain text for a console."""

    page: Path
    content: Content
    text: str


def save_section(run_dir: Path, name: str, section: Section) -> None:
    """Leave a section in the run folder for every later report; one of the same name is replaced."""
    path = run_dir / _SECTIONS / f"{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, json.dumps(asdict(section), indent=1))


def read_section(path: Path) -> Section:
    """The section in a JSON file with `title` and `text` or `html`.

    Raises:
        UserError: no such file, or something else in it.
    """
    mend = "a section is a JSON object of strings: title, and text or html"
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
        section = Section(**fields)
    except (OSError, ValueError, TypeError) as error:
        raise UserError(f"not a report section: {error}", where=str(path), mend=mend) from error
    if not all(isinstance(value, str) for value in fields.values()):
        raise UserError("not a report section: a field is not a string", where=str(path), mend=mend)
    return section


def write_report(
    run_dir: Path, *, sections: Sequence[Section] = (), places: Mapping[str, str | Path] | None = None
) -> Report:
    """Draw the plots, write the page, return both with a plain-text summary.

    Args:
        sections: shown after those saved in the run folder.
        places: more rows for "Where things are", such as the exported model.

    Raises:
        UserError: no metrics there, or a saved section that is not one.
    """
    history = History.read(run_dir)
    if history is None:
        raise UserError(
            f"no metrics ({METRICS_FILE}) here", where=str(run_dir), mend="name a run folder that has trained"
        )
    shown = [*_saved_sections(run_dir), *sections]
    record = spool.load(spool.run_record_path(run_dir), spool.RunRecord)
    page = run_dir / "report.html"
    plots = write_plots(history, run_dir / "plots")
    located = _places(run_dir, record, page, places or {})
    if plots.page is not None:
        located["all plots in one picture"] = str(plots.page)
    content = Content(
        title=record.run_name if record is not None else run_dir.resolve().name,
        state=_state(history, record),
        figures={**summarize(history), **account(_last_state(run_dir))},
        plots=plots,
        sections=shown,
        places=located,
        recipe=_recipe(run_dir),
    )
    write_atomically(page, one_run(content))
    return Report(page, content, _text(content))


def write_comparison(run_dirs: Sequence[Path], page: Path, title: str = "Runs") -> list[Report]:
    """Write the report of each run, and `page`, which compares them and holds them all.

    Raises:
        UserError: as `write_report`; or the page cannot be written.
    """
    reports = [write_report(run_dir) for run_dir in run_dirs]
    facts = [_compared(report.content) for report in reports]
    try:
        page.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(page, several_runs(title, facts, [report.content for report in reports]))
    except OSError as error:
        raise UserError(f"cannot be written: {error.strerror}", where=str(page)) from None
    return reports


def _compared(content: Content) -> dict[str, str]:
    """Cells of a run in the table that compares runs."""
    recipe = yaml.safe_load(content.recipe) if content.recipe else {}
    model = recipe.get("model") or {}
    start = Path(str(recipe.get("backbone") or model.get("init") or ""))
    return {
        "family": str(recipe.get("family", "pretraining")),
        "started from": start.name,
        "state": content.state.partition(" until ")[0],
        **{short: content.figures[name] for name, short in _COMPARED.items() if name in content.figures},
    }


def summarize(history: History) -> dict[str, str]:
    """The figures of a run that are told first, ready to print; what was not logged is left out.

    Speeds and shares are medians over the run: compiling and validating do not move them.
    """
    figures: dict[str, str] = {}
    loss = history.finite("loss")
    if loss is not None:
        edge = max(1, len(loss.values) // 20)
        figures["training loss, first and last 5 %"] = (
            f"{np.mean(loss.values[:edge]):.3f} to {np.mean(loss.values[-edge:]):.3f} nats/token"
        )
    for name, label, form in (
        ("validation/perplexity", _WITH, "{:,.2f}"),
        ("validation/perplexity_reset", _RESET, "{:,.2f}"),
        ("validation/history_gain", _GAIN, "{:+.2%}"),
    ):
        series = history.finite(name)
        if series is not None:
            figures[label] = form.format(series.last)
    for name, label in (
        ("tokens_per_second", _SPEED),
        ("mfu", "model FLOP/s utilization"),
        ("data_wait_share", "waiting for data"),
        ("padding_share", "padding"),
    ):
        series = history.finite(name)
        if series is not None:
            median = float(np.median(series.values))
            figures[label] = short_number(median) if name == "tokens_per_second" else f"{median:.1%}"
    skipped = history.finite("skipped_steps")
    if skipped is not None and skipped.last > 0:
        figures["steps skipped (not finite)"] = f"{skipped.last:,.0f}"
    return figures


def _state(history: History, record: spool.RunRecord | None) -> str:
    status = (record.status if record is not None else None) or "not ended"
    took = tqdm.format_interval(history.last_time - history.first_time)
    day = time.strftime("%Y-%m-%d %H:%M", time.localtime(history.last_time))
    attempts = len(record.rewinds) if record is not None else 1
    resumed = f", resumed {attempts - 1} x" if attempts > 1 else ""
    return f"step {history.last_step:,}, {status.lower().replace('_', ' ')}{resumed}, {took} until {day}"


def _places(
    run_dir: Path,
    record: spool.RunRecord | None,
    page: Path,
    more: Mapping[str, str | Path],
) -> dict[str, str]:
    places = {"run folder": str(run_dir), "metrics": str(run_dir / METRICS_FILE)}
    checkpoints = [mark.parent.name for mark in _marks(run_dir)]
    if checkpoints:
        places["last checkpoint"] = str(run_dir / "checkpoints" / checkpoints[-1])
        places["checkpoints kept"] = ", ".join(checkpoints)
    places["this page"] = str(page)
    progress = spool.load(spool.progress_path(run_dir), spool.Progress)
    if record is not None and progress is not None and progress.run_id is not None:
        places["MLflow run"] = progress.run_id
        places["MLflow"] = view_hint(record.tracking_uri or local_store(run_dir))
    return {**places, **{name: str(place) for name, place in more.items()}}


def _recipe(run_dir: Path) -> str:
    path = run_dir / RECIPE_FILE
    return path.read_text(encoding="utf-8") if path.exists() else ""


def _marks(run_dir: Path) -> list[Path]:
    """Commit marks of the checkpoints, oldest first."""
    return sorted(run_dir.glob("checkpoints/step-*/COMMIT.json"))


def _last_state(run_dir: Path) -> dict[str, Any]:
    """What the newest checkpoint says of the data; nothing where there is none, or it is damaged."""
    marks = _marks(run_dir)
    try:
        return dict(json.loads((marks[-1].parent / "state.json").read_text(encoding="utf-8")))
    except (IndexError, OSError, ValueError):
        return {}


def _saved_sections(run_dir: Path) -> list[Section]:
    return [read_section(path) for path in sorted((run_dir / _SECTIONS).glob("*.json"))]


def _text(run: Content) -> str:
    width = max(len(name) for name in (*run.figures, *run.places))
    lines = [f"Run {run.title}: {run.state}", ""]
    lines += [f"  {name:<{width}}  {value}" for name, value in run.figures.items()]
    lines += ["", "Where things are"]
    lines += [f"  {name:<{width}}  {place}" for name, place in run.places.items()]
    for section in run.sections:
        if section.text:
            lines += ["", section.title, *(f"  {line}" for line in section.text.splitlines())]
    return "\n".join(lines) + "\n"
