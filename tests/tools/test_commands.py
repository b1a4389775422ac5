"""Every command of `membart` stands in `docs/commands.md`; the commands that documents show can be typed."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer

from tools.cli import app

REPOSITORY = Path(__file__).parents[2]
PAGES = [
    REPOSITORY / "README.md",
    *sorted((REPOSITORY / "docs").rglob("*.md")),
    *(REPOSITORY / folder / "README.md" for folder in ("ds_configs", "slurm")),
]
ROOT: Any = typer.main.get_command(app)
FENCE = re.compile(r"^ *```\w*\n(.*?)^ *```", re.DOTALL | re.MULTILINE)


def names(command: Any, path: str = "membart") -> Iterator[str]:
    """Every command that does something, as it is typed."""
    below = getattr(command, "commands", None)
    if below is None:
        yield path
        return
    for name, one in below.items():
        yield from names(one, f"{path} {name}")


def shown(page: Path) -> Iterator[str]:
    """What a page shows behind `membart`, a command at a time."""
    text = page.read_text(encoding="utf-8").replace("\\\n", " ")
    for block in FENCE.findall(text):
        yield from re.findall(r"(?:^ *(?:\$ |'|\w+=\S+ )?|; )membart ([^#;\n]*)", block, re.MULTILINE)
    yield from re.findall(r"`membart ([^`]*)`", FENCE.sub("", text))


def mistake(line: str) -> str:
    """What the program has not of a line behind `membart`; empty if it has all."""
    words = [word.strip("[]()'\".,:|") for word in line.split()]
    command = ROOT
    while (below := getattr(command, "commands", None)) is not None:
        if not words or words[0] in ("--help", "COMMAND"):
            return ""
        if words[0] not in below:
            return f"no command '{words[0]}': membart {line}"
        command = below[words.pop(0)]
    known = {
        option for parameter in command.params for option in (*parameter.opts, *parameter.secondary_opts)
    }
    asked = {word.partition("=")[0] for word in words if re.match(r"--\w", word)}
    unknown = sorted(asked - known - {"--help"})
    return f"no option {unknown[0]}: membart {line}" if unknown else ""


def test_every_command_is_on_the_page_of_commands() -> None:
    text = (REPOSITORY / "docs" / "commands.md").read_text(encoding="utf-8")
    listed = re.findall(r"^\| `(membart [^`]+)` \|", text, re.MULTILINE)
    assert sorted(listed) == sorted(names(ROOT))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(REPOSITORY)))
def test_what_a_page_shows_can_be_typed(page: Path) -> None:
    assert [wrong for line in shown(page) if (wrong := mistake(line))] == []


def test_help_does_not_wait_for_torch() -> None:
    """Loading it takes seconds, and most commands that look at something do without."""
    program = (
        "import sys, tools.cli; print(*{'torch', 'transformers', 'mlflow', 'deepspeed'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=REPOSITORY)
    assert (done.returncode, done.stdout.split()) == (0, []), done.stderr


def test_a_slip_in_a_page_is_found(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        "`membart shard build`\n```sh\n$ membart export RUN \\\n    --two mlflow   # a folder\n```\n"
    )
    assert [mistake(line) for line in shown(page)] == [
        "no option --two: membart export RUN      --two mlflow   ",
        "no command 'shard': membart shard build",
    ]
