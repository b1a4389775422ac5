"""The page of a report: one run, or several with a table that compares them; needs no other file."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from string import Template

from markdown_it import MarkdownIt

from pretrain.plots import Plots


@dataclass(frozen=True)
class Section:
    """Something to show below the curves. `text` is escaped; `html`, if given, is shown instead, as it is."""

    title: str
    text: str = ""
    html: str = ""


def from_markdown(text: str, folder: Path) -> str:
    """HTML of Markdown with tables; what looks like HTML in it is shown as it stands.

    Pictures that lie in `folder` are put inside, so that the page needs no other file; others are named.
    """
    markdown = MarkdownIt("commonmark", {"html": False}).enable("table")
    parsed = markdown.parse(text)
    for token in parsed:
        for inner in token.children or ():
            if inner.type == "image":
                path = folder / Path(str(inner.attrs["src"])).name
                inner.attrs["src"] = _data(path) if path.is_file() else "data:,"
    return str(markdown.renderer.render(parsed, markdown.options, {}))


@dataclass(frozen=True)
class Content:
    """What a page tells of one run."""

    title: str
    state: str
    figures: Mapping[str, str]
    plots: Plots
    sections: Sequence[Section]
    places: Mapping[str, str]
    recipe: str


def one_run(run: Content) -> str:
    """The page of a run."""
    return _page(run.title, _body(run, level=1))


def several_runs(title: str, facts: Sequence[Mapping[str, str]], runs: Sequence[Content]) -> str:
    """A page that compares runs by their `facts`, one row each, and shows every run below, folded away.

    The keys of `facts` are the columns; a run that lacks one has an empty cell.
    """
    columns = list(dict.fromkeys(key for row in facts for key in row))
    head = "".join(f'<th scope="col">{escape(column)}</th>' for column in ("run", *columns))
    rows = "\n".join(
        f'<tr><th scope="row"><a href="#run-{number}">{escape(run.title)}</a></th>'
        + "".join(f"<td>{escape(row.get(column, ''))}</td>" for column in columns)
        + "</tr>"
        for number, (run, row) in enumerate(zip(runs, facts, strict=True))
    )
    folded = "\n".join(
        f'<section class="run" id="run-{number}">\n{_body(run, level=2)}\n</section>'
        for number, run in enumerate(runs)
    )
    table = f'<div class="wide"><table class="compared"><tr>{head}</tr>\n{rows}</table></div>'
    return _page(title, f"<h1>{escape(title)}</h1>\n{table}\n{folded}")


def _body(run: Content, level: int) -> str:
    pictures = "\n".join(_image(name, path) for name, path in run.plots.panels.items())
    below = f"h{level + 1}"
    parts = [
        f"<h{level}>{escape(run.title)}</h{level}>",
        f'<p class="state">{escape(run.state)}</p>',
        f'<table class="figures">{_rows(run.figures)}</table>',
    ]
    if pictures:
        parts.append(f'<{below}>Curves</{below}>\n<div class="plots">\n{pictures}\n</div>')
    for section in run.sections:
        shown = section.html or f"<pre>{escape(section.text)}</pre>"
        parts.append(f'<{below}>{escape(section.title)}</{below}>\n<div class="wide">{shown}</div>')
    parts.append(f"<{below}>Where things are</{below}>\n<table>{_rows(run.places)}</table>")
    if run.recipe:
        parts.append(f"<details><summary>Recipe</summary><pre>{escape(run.recipe)}</pre></details>")
    return "\n".join(parts)


def _rows(entries: Mapping[str, str]) -> str:
    return "\n".join(
        f'<tr><th scope="row">{escape(name)}</th><td>{escape(value)}</td></tr>'
        for name, value in entries.items()
    )


def _image(title: str, path: Path) -> str:
    return f'<img alt="{escape(title)}" src="{_data(path)}">'


def _data(path: Path) -> str:
    return f"data:image/png;base64,{base64.b64encode(path.read_bytes()).decode()}"


def _page(title: str, body: str) -> str:
    return _PAGE.substitute(title=escape(title), body=body)


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
h3 { font-size: 1rem; margin: 1.4rem 0 .5rem; }
.state { color: #6b7280; margin: .2rem 0 1.4rem; }
.run { margin-top: 3rem; border-top: 2px solid #111827; }
.run > h2 { font-size: 1.3rem; margin: .8rem 0 0; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; }
th, td { text-align: left; font-weight: normal; padding: .3rem .8rem .3rem 0; border-top: 1px solid #e5e7eb;
         vertical-align: top; }
th { color: #4b5563; white-space: nowrap; }
th[scope=row] { width: 1%; }
td { overflow-wrap: anywhere; }
.figures td, .compared td { font-variant-numeric: tabular-nums; }
.figures td { font-weight: 600; }
.compared { margin-top: 1.4rem; }
.compared td { overflow-wrap: normal; }
.plots { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(26rem, 100%), 1fr));
         gap: 1rem; }
.plots img, .wide img { width: 100%; max-width: 40rem; }
.wide h1 { display: none; }
code { background: #f3f4f6; padding: 0 .2rem; }
details { margin-top: 2rem; }
pre { background: #f9fafb; border: 1px solid #e5e7eb; padding: .8rem; white-space: pre-wrap;
      overflow-wrap: anywhere; }
@media (max-width: 40rem) { th[scope=row] { white-space: normal; width: 45%; } }
</style>
</head>
<body>
$body
</body>
</html>
"""
)
