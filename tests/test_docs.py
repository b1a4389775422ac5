"""What the documentation names is there, and packages import each other in the direction that it shows."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[1]
PAGES = [
    REPOSITORY / "README.md",
    *sorted((REPOSITORY / "docs").rglob("*.md")),
    *(REPOSITORY / folder / "README.md" for folder in ("ds_configs", "slurm")),
]
LINK = re.compile(r"\]\(([^)\s]+)\)")
PAGE_PATH = re.compile(r"(?<![\w/])docs/[\w/.-]+\.md")
TEST_NAME = re.compile(r"(tests/[\w/]+\.py)::(\w+)")
MESSAGE = re.compile(r"^\| `([^`]+)` \|")
VARIABLE = "\0"
FORBIDDEN = {"pretrain": {"finetune", "tools"}, "finetune": {"tools"}}


def shown(page: Path) -> str:
    return str(page.relative_to(REPOSITORY))


@pytest.mark.parametrize("page", PAGES, ids=shown)
def test_every_link_and_every_page_that_is_named_exists(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    links = [link.partition("#")[0] for link in LINK.findall(text) if "://" not in link]
    missing = [link for link in links if not (page.parent / link).exists()]
    missing += [path for path in PAGE_PATH.findall(text) if not (REPOSITORY / path).is_file()]
    assert not missing


@pytest.mark.parametrize("page", PAGES, ids=shown)
def test_fences_and_tables_have_lines_of_their_own(page: Path) -> None:
    lines = page.read_text(encoding="utf-8").splitlines()
    fences = [line for line in lines if "```" in line]
    assert [line for line in fences if not re.fullmatch(r" *```\w*", line)] == []
    assert len(fences) % 2 == 0
    rules = [line for line in lines if re.search(r"\| ?---+:? ?\|", line)]
    assert [line for line in rules if not re.fullmatch(r" *(\| ?:?---+:? ?)+\|", line)] == []


def test_every_test_that_a_promise_names_exists() -> None:
    text = (REPOSITORY / "docs" / "promises.md").read_text(encoding="utf-8")
    named = TEST_NAME.findall(text)
    files = {file: REPOSITORY / file for file, _ in named}
    assert len(files) > 40
    assert [file for file, path in files.items() if not path.is_file()] == []
    there = {file: functions(path) for file, path in files.items()}
    assert [f"{file}::{name}" for file, name in named if name not in there[file]] == []


def functions(file: Path) -> set[str]:
    """Names of the top-level functions of a file."""
    body = ast.parse(file.read_text(encoding="utf-8")).body
    return {node.name for node in body if isinstance(node, ast.FunctionDef)}


def test_a_promise_without_a_test_is_no_promise() -> None:
    text = (REPOSITORY / "docs" / "promises.md").read_text(encoding="utf-8")
    tables = text.partition("## Only in")[0]
    rows = [line for line in tables.splitlines() if line.startswith("| ")]
    promises = [row for row in rows if not row.startswith(("| promise |", "| --- |"))]
    assert [row for row in promises if not TEST_NAME.search(row)] == []


def test_every_message_that_is_explained_is_one_of_the_programs() -> None:
    text = (REPOSITORY / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
    tables = text.partition("## Command and recipe")[2]
    messages = [found[1] for line in tables.splitlines() if (found := MESSAGE.match(line))]
    assert len(messages) > 80
    said = "\n".join(sorted(texts()))
    unknown = [message for message in messages if not beginning(message).search(said)]
    assert unknown == []


def beginning(message: str) -> re.Pattern[str]:
    """Finds a text that begins as `message` does, where `...` is anything but nothing fixed is left out."""
    pieces = [re.escape(piece) for piece in re.split(r"\s*\.\.\.\s*", message)]
    assert sum(map(len, pieces)) > 5, message
    return re.compile(r"^" + r"[^\n]*".join(pieces), re.MULTILINE)


def texts() -> set[str]:
    """Every string of the programs, a line each, with `VARIABLE` for what is put into it."""
    found = set()
    for package in ("pretrain", "finetune", "tools"):
        for file in (REPOSITORY / package).rglob("*.py"):
            nodes = list(ast.walk(ast.parse(file.read_text(encoding="utf-8"))))
            prose = {id(node.value) for node in nodes if isinstance(node, ast.Expr)}  # docstrings
            for node in nodes:
                if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in prose:
                    found.add(" ".join(node.value.split()))
                elif isinstance(node, ast.JoinedStr):
                    parts = [
                        part.value if isinstance(part, ast.Constant) else VARIABLE for part in node.values
                    ]
                    found.add(" ".join("".join(map(str, parts)).split()))
    for file in (REPOSITORY / "slurm").glob("*.sh"):
        found |= set(re.findall(r'"([^"\n]+)"', file.read_text(encoding="utf-8")))
    return found


def imported(file: Path) -> Iterator[str]:
    """Top-level packages that a file imports, also inside of functions."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module.partition(".")[0]


@pytest.mark.parametrize("package", FORBIDDEN)
def test_imports_go_one_way(package: str) -> None:
    files = sorted((REPOSITORY / package).rglob("*.py"))
    assert files
    wrong = [shown(file) for file in files if FORBIDDEN[package] & set(imported(file))]
    assert not wrong
