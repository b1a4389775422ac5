"""The one-page report of a run, made from its folder alone.

    RUN/metrics.jsonl          the curves and figures
    RUN/recipe.yaml            shown in full; optional
    RUN/checkpoints/step-*     listed; optional
    RUN/tracking/*.json        name, state and MLflow run; optional
    RUN/report/*.json          sections that other programs left, as `save_section` writes them; optional

Written: `RUN/report.html` (self-contained: the pictures are inside) and `RUN/plots/*.png`.
"""

from __future__ import annotations

import base64
import json
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from html import escape
from pathlib import Path
from string import Template
from typing import Any

import numpy as np
from tqdm import tqdm

from pretrain.account import account
from pretrain.console import short_number
from pretrain.errors import UserError
from pretrain.plots import Plots, write_plots
from pretrain.tracking import METRICS_FILE, spool
from pretrain.tracking.destination import local_store, view_hint
from pretrain.tracking.history import History

_SECTIONS = "report"


@dataclass(frozen=True)
class Section:
    """Something to show below the curves. `text` is escaped; `html`, if given, is shown instead, as it is."""

    title: str
    text: str = ""
    html: str = ""


@dataclass(frozen=True)
class Report:
    """What was written, and the same in plain text for a console."""

    page: Path
    plots: Plots
    text: str


def save_section(run_dir: Path, name: str, section: Section) -> None:
    """Leave a section in the run folder for every later report; one of the same name is replaced."""
    path = run_dir / _SECTIONS / f"{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    _write(path, json.dumps(asdict(section), indent=1))


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
    record = spool.load(spool.run_record_path(run_dir), spool.RunRecord)
    title = record.run_name if record is not None else run_dir.resolve().name
    shown = [*_saved_sections(run_dir), *sections]
    plots = write_plots(history, run_dir / "plots")
    page = run_dir / "report.html"
    figures = {**summarize(history), **account(_last_state(run_dir))}
    located = _places(run_dir, record, page, plots, places or {})
    state = _state(history, record)
    _write(page, _html(title, state, figures, located, plots, shown, _recipe(run_dir)))
    return Report(page, plots, _text(title, state, figures, located, shown))


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
        ("validation/perplexity", "held-out perplexity, with memory", "{:,.2f}"),
        ("validation/perplexity_reset", "held-out perplexity, memory reset", "{:,.2f}"),
        ("validation/history_gain", "history gain", "{:+.2%}"),
    ):
        series = history.finite(name)
        if series is not None:
            figures[label] = form.format(series.last)
    for name, label in (
        ("tokens_per_second", "tokens/s"),
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
    plots: Plots,
    more: Mapping[str, str | Path],
) -> dict[str, str]:
    places = {"run folder": str(run_dir), "metrics": str(run_dir / METRICS_FILE)}
    checkpoints = [mark.parent.name for mark in _marks(run_dir)]
    if checkpoints:
        places["last checkpoint"] = str(run_dir / "checkpoints" / checkpoints[-1])
        places["checkpoints kept"] = ", ".join(checkpoints)
    places["this page"] = str(page)
    if plots.page is not None:
        places["all plots in one picture"] = str(plots.page)
    progress = spool.load(spool.progress_path(run_dir), spool.Progress)
    if record is not None and progress is not None and progress.run_id is not None:
        places["MLflow run"] = progress.run_id
        places["MLflow"] = view_hint(record.tracking_uri or local_store(run_dir))
    return {**places, **{name: str(place) for name, place in more.items()}}


def _recipe(run_dir: Path) -> str:
    path = run_dir / "recipe.yaml"
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


def _text(
    title: str, state: str, figures: dict[str, str], places: dict[str, str], sections: Sequence[Section]
) -> str:
    width = max(len(name) for name in (*figures, *places))
    lines = [f"Run {title}: {state}", ""]
    lines += [f"  {name:<{width}}  {value}" for name, value in figures.items()]
    lines += ["", "Where things are"]
    lines += [f"  {name:<{width}}  {place}" for name, place in places.items()]
    for section in sections:
        if section.text:
            lines += ["", section.title, *(f"  {line}" for line in section.text.splitlines())]
    return "\n".join(lines) + "\n"


_PAGE = Template(
    """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>$title</title>
<style>
body { font: 15px/1.5 system-ui, sans-serif; color: #111827; background: #fff; max-width: 66rem;
       margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.6rem; margin: 0; }
h2 { font-size: 1.1rem; margin: 2rem 0 .6rem; }
.state { color: #6b7280; margin: .2rem 0 1.4rem; }
table { border-collapse: collapse; width: 100%; }
th, td { text-align: left; font-weight: normal; padding: .3rem .8rem .3rem 0; border-top: 1px solid #e5e7eb;
         vertical-align: top; }
th { color: #4b5563; white-space: nowrap; width: 1%; }
td { overflow-wrap: anywhere; }
.figures td { font-variant-numeric: tabular-nums; font-weight: 600; }
.plots { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(26rem, 100%), 1fr));
         gap: 1rem; }
.plots img { width: 100%; }
details { margin-top: 2rem; }
pre { background: #f9fafb; border: 1px solid #e5e7eb; padding: .8rem; white-space: pre-wrap;
      overflow-wrap: anywhere; }
@media (max-width: 40rem) { th { white-space: normal; width: 45%; } }
</style>
</head>
<body>
<h1>$title</h1>
<p class="state">$state</p>
<table class="figures">$figures</table>
$plots
$sections
<h2>Where things are</h2>
<table>$places</table>
$recipe
</body>
</html>
"""
)


def _html(
    title: str,
    state: str,
    figures: dict[str, str],
    places: dict[str, str],
    plots: Plots,
    sections: Sequence[Section],
    recipe: str,
) -> str:
    pictures = "\n".join(_image(name, path) for name, path in plots.panels.items())
    return _PAGE.substitute(
        title=escape(title),
        state=escape(state),
        figures=_rows(figures),
        plots=f'<h2>Curves</h2>\n<div class="plots">\n{pictures}\n</div>' if pictures else "",
        sections="\n".join(
            f"<h2>{escape(section.title)}</h2>\n{section.html or f'<pre>{escape(section.text)}</pre>'}"
            for section in sections
        ),
        places=_rows(places),
        recipe=f"<details><summary>Recipe</summary><pre>{escape(recipe)}</pre></details>" if recipe else "",
    )


def _rows(entries: Mapping[str, str]) -> str:
    return "\n".join(
        f'<tr><th scope="row">{escape(name)}</th><td>{escape(value)}</td></tr>'
        for name, value in entries.items()
    )


def _image(title: str, path: Path) -> str:
    data = base64.b64encode(path.read_bytes()).decode()
    return f'<img alt="{escape(title)}" src="data:image/png;base64,{data}">'


def _write(path: Path, content: str) -> None:
    aside = path.with_name(f"{path.name}.new")
    aside.write_text(content, encoding="utf-8")
    os.replace(aside, path)
