"""The docstring corpus."""

from __future__ import annotations

import hashlib

import pytest

from pretrain.corpus.docs import module_files, parse_module
from pretrain.corpus.documents import BadRecordError, Block
from pretrain.corpus.sources import SourceSpec, expand
from pretrain.corpus.texts import source_texts
from pretrain.errors import UserError

MODULE = b'''"""About the module.

    Indented text.
"""
import warnings

def solve(a, b=1, /, *rest, key, **more):
    """Solve it."""
    def inner():
        """Inside."""
    "no docstring"

class Error(Exception):
    """An error.

    It is bad."""
    value: int = 3
    """Not a docstring for Python."""
    async def tell(self):
        r"""Tell \\d of it."""
    def silent(self): ...
'''


def _parse(source: bytes) -> list[str]:
    return [document.text for document in parse_module(Block("module", "m.py", source))]


def test_docstrings_in_order_under_the_names_they_belong_to() -> None:
    assert _parse(MODULE) == [
        "About the module.\n\nIndented text.\n\n"
        "solve(a, b, *rest, key, **more)\nSolve it.\n\n"
        "inner()\nInside.\n\n"
        "class Error\nAn error.\n\nIt is bad.\n\n"
        "tell(self)\nTell \\d of it.\n"
    ]


def test_modules_without_docstrings_are_no_documents() -> None:
    assert _parse(b"x = 1\n") == []
    assert _parse(b"") == []


@pytest.mark.parametrize("source", [b"def broken(:\n", b"print 'old'\n", b"x = '\xff'\n", b"\0"])
def test_files_that_do_not_parse(source: bytes) -> None:
    with pytest.raises(BadRecordError) as caught:
        _parse(source)
    assert caught.value.reason == "bad_python"


def test_modules_of_one_package_in_the_order_of_their_hashes() -> None:
    names = [file.name for file in module_files("json")]
    assert {"json/__init__.py", "json/decoder.py"} <= set(names)
    assert all(name.startswith("json/") for name in names)
    assert names == sorted(names, key=lambda name: hashlib.sha256(name.encode()).digest())


def test_standard_library_and_installed_packages_without_tests() -> None:
    names = [file.name for file in expand(SourceSpec("docs")).files]
    assert {"argparse.py", "numpy/__init__.py", "json/__init__.py"} <= set(names)
    assert len(names) > 1000
    assert not [name for name in names if "/tests/" in name or name.startswith("test/")]


def test_texts_of_a_source_stop_at_a_limit() -> None:
    spec = SourceSpec("docs", ("docs://json", "docs://argparse"))
    every = list(source_texts([spec]))
    some = list(source_texts([spec], max_characters=len(every[0]) + 1))
    assert some == every[:2]
    assert "JSON" in every[0] + every[1]


def test_a_package_that_is_not_installed() -> None:
    with pytest.raises(UserError, match="no Python module called 'nowhere'"):
        expand(SourceSpec("docs", ("docs://nowhere",)))
