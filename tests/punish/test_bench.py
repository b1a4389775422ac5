"""Benchmarks that start whole programs."""

from __future__ import annotations

from pathlib import Path

import pytest

from tools.bench.startup import docs_shards, turn

pytestmark = pytest.mark.punish


def test_a_start_and_a_resume_reach_an_update_after_the_imports(tmp_path: Path) -> None:
    found = turn(docs_shards(tmp_path), tmp_path / "run")
    assert 0 < found.imports < min(found.start, found.resume)
