"""For every test: how processes share the machine, and a tiny shard set, built once."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

os.environ.setdefault("DS_ACCELERATOR", "cpu")
os.environ.setdefault("OMP_NUM_THREADS", "1")  # models are tiny, and several tests run at once

CLUSTER = Path("tests/slurm/test_jobs.py")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The cluster goes first: it takes longest and mostly waits, so others have the cores meanwhile."""
    items.sort(key=lambda item: item.path.relative_to(item.config.rootpath) != CLUSTER)


@pytest.fixture(scope="session")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A shard set of made-up text, see `support.tiny.shard_set`."""
    from tests.support import tiny

    return tiny.shard_set(tmp_path_factory.mktemp("made"))
