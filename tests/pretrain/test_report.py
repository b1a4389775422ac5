"""The report says what the run folder says, on one page that needs no other file."""

from __future__ import annotations

import base64
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from pretrain.errors import UserError
from pretrain.page import Section, from_markdown
from pretrain.report import save_section, write_comparison, write_report
from pretrain.tracking import Tracker

NASTY = "</pre><script>alert('x')</script> & \"quotes\" <mask>"


class Page(HTMLParser):
    """Text, rows and references of a page; fails on a tag that is not closed in order."""

    def __init__(self, content: str) -> None:
        super().__init__()
        self.text: list[str] = []
        self.tags: list[str] = []
        self.open: list[str] = []
        self.references: list[str] = []
        self.feed(content)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.references += [value or "" for name, value in attrs if name in ("src", "href")]
        if tag not in ("meta", "img"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    """A run of 100 steps, validated twice, with two committed checkpoints."""
    folder = tmp_path / "runs" / "tiny"
    folder.mkdir(parents=True)
    tracker = Tracker.start(
        folder, experiment="e", run_name="tiny", params={}, tags={}, upload=False, system_interval=None
    )
    for step in range(1, 101):
        tracker.log(
            step, "train", {"loss": 9 - step / 20, "tokens_per_second": 51000.0, "padding_share": 0.08}
        )
        if step % 50 == 0:
            values = {"validation/perplexity": 2000.0 / step, "validation/perplexity_reset": 2100.0 / step}
            tracker.log(step, "validation", {**values, "validation/history_gain": 0.05})
    assert tracker.finish("FINISHED", timeout=0)
    for name, mark in (
        ("step-00000050", "COMMIT.json"),
        ("step-00000100", "COMMIT.json"),
        ("step-00000110", "part"),
    ):
        (folder / "checkpoints" / name).mkdir(parents=True)
        (folder / "checkpoints" / name / mark).write_text("{}")
    (folder / "recipe.yaml").write_text(f"name: tiny\nnote: {NASTY}\n")
    return folder


def test_the_page_tells_figures_places_curves_and_recipe(run_dir: Path) -> None:
    report = write_report(run_dir, places={"exported model": "out/tiny-hf"})
    assert report.page == run_dir / "report.html"
    page = Page(report.page.read_text(encoding="utf-8"))
    shown = " ".join(" ".join(page.text).split())
    for content in (shown, " ".join(report.text.split())):
        assert "step 100, finished" in content
        assert "held-out perplexity, with memory 20.00" in content
        assert "held-out perplexity, memory reset 21.00" in content
        assert "history gain +5.00%" in content
        assert "tokens/s 51.0k" in content
        assert "training loss, first and last 5 % 8.850 to 4.100 nats/token" in content
        assert f"run folder {run_dir}" in content
        assert f"last checkpoint {run_dir / 'checkpoints' / 'step-00000100'}" in content
        assert "checkpoints kept step-00000050, step-00000100" in content, "one not committed is not listed"
        assert "exported model out/tiny-hf" in content
    assert f"note: {NASTY}" in " ".join(page.text)
    assert "script" not in page.tags
    assert len(page.references) == page.tags.count("img") == len(report.content.plots.panels) == 5
    for reference, path in zip(page.references, report.content.plots.panels.values(), strict=True):
        kind, data = reference.split(",", 1)
        assert kind == "data:image/png;base64"
        assert base64.b64decode(data) == path.read_bytes()


def test_sections_are_kept_in_the_run_folder_and_escaped(run_dir: Path) -> None:
    save_section(run_dir, "masks", Section("first", text="will be replaced"))
    save_section(run_dir, "masks", Section(f"Masks {NASTY}", text=f"with memory: {NASTY}\nwithout: b"))
    for _ in range(2):
        report = write_report(
            run_dir, sections=[Section("Table", html="<table><tr><td>raw</td></tr></table>")]
        )
        page = Page(report.page.read_text(encoding="utf-8"))
        text = "".join(page.text)
        assert f"Masks {NASTY}" in text
        assert f"with memory: {NASTY}\nwithout: b" in text
        assert "will be replaced" not in text
        assert "script" not in page.tags
        assert "raw" in text
        assert page.tags.count("table") == 3
        assert f"Masks {NASTY}\n  with memory: {NASTY}\n  without: b\n" in report.text


def test_a_run_with_little_in_it_gets_a_little_page(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "time": 1.0, "kind": "train", "loss": "NaN"}\ntorn')
    report = write_report(tmp_path)
    page = Page(report.page.read_text(encoding="utf-8"))
    assert page.references == []
    assert "Curves" not in page.text
    assert "step 1, not ended" in report.text
    assert not re.search(r"nan|None", report.text.replace(str(tmp_path), ""), re.IGNORECASE)


def test_no_metrics_is_one_clear_line(tmp_path: Path) -> None:
    for content in (None, "", "torn"):
        if content is not None:
            (tmp_path / "metrics.jsonl").write_text(content)
        with pytest.raises(UserError, match=r"no metrics .* -- name a run folder"):
            write_report(tmp_path)
        assert not (tmp_path / "report.html").exists()


@pytest.mark.parametrize("content", ['{"titel": "x"}', '{"title": 3}', "[1]", "{", ""])
def test_a_file_that_is_no_section_is_named(run_dir: Path, content: str) -> None:
    (run_dir / "report").mkdir()
    (run_dir / "report" / "odd.json").write_text(content)
    with pytest.raises(UserError, match=r"odd\.json: not a report section"):
        write_report(run_dir)
    assert not (run_dir / "report.html").exists()
    assert not (run_dir / "plots").exists()


def test_one_page_compares_several_runs_and_holds_them_all(run_dir: Path, tmp_path: Path) -> None:
    child = tmp_path / "runs" / "child"
    child.mkdir()
    (child / "metrics.jsonl").write_text(
        '{"step": 3, "time": 1.0, "kind": "validation", "validation/perplexity": 7.5}\n'
    )
    (child / "recipe.yaml").write_text(f"family: fusion\nbackbone: {run_dir}\n")
    page = tmp_path / "made" / "all.html"
    reports = write_comparison([run_dir, child], page, "Ours & theirs")
    shown = Page(page.read_text(encoding="utf-8"))
    text = " ".join(" ".join(shown.text).split())
    assert text.count("Ours & theirs") == 2, "as the title and as the heading"
    assert re.search(r"tiny pretraining step 100, finished, [\d:]+ 20\.00 21\.00 \+5\.00% 51\.0k", text)
    assert "child fusion tiny step 3, not ended" in text
    assert f"note: {NASTY}" in " ".join(shown.text)
    assert {"#run-0", "#run-1"} <= set(shown.references)
    assert [report.page for report in reports] == [run_dir / "report.html", child / "report.html"]
    with pytest.raises(UserError, match="cannot be written"):
        write_comparison([run_dir], run_dir / "recipe.yaml" / "all.html")


def test_markdown_becomes_tables_with_its_pictures_inside_and_no_foreign_html(tmp_path: Path) -> None:
    (tmp_path / "curve.png").write_bytes(b"picture")
    table, pictures = "| metric | ours |\n|---|---|\n| f1 | 3.5 |", "![curve](curve.png)\n\n![gone](gone.png)"
    text = f"{table}\n\n{pictures}\n\n- `{NASTY}` {NASTY}\n"
    page = Page(from_markdown(text, tmp_path))
    assert {"table", "th", "td", "code"} <= set(page.tags)
    assert "script" not in page.tags
    assert "".join(page.text).count(NASTY) == 2
    assert page.references == [f"data:image/png;base64,{base64.b64encode(b'picture').decode()}", "data:,"]
