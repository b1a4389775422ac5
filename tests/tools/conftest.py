"""A browser for the tests of pages, started once."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests.support import browser as support


@pytest.fixture(scope="session")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A driver of Chromium."""
    if not support.is_here():
        pytest.skip(support.MISSING)
    with support.chromium(tmp_path_factory.mktemp("chromium")) as driver:
        yield driver
