"""Fixtures for every test: a tiny shard set, built once."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

os.environ.setdefault("DS_ACCELERATOR", "cpu")


@pytest.fixture(scope="session")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A shard set of made-up text, see `support.tiny.shard_set`."""
    from tests.support import tiny

    return tiny.shard_set(tmp_path_factory.mktemp("made"))
