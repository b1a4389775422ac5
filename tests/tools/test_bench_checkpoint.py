"""The benchmark saves as a run does, and leaves nothing behind."""

from __future__ import annotations

import json
from pathlib import Path

from tests.support import forked


def bench(*words: str) -> None:
    """A target: `membart bench WORDS`."""
    from tools.bench.cli import app

    app([*words], standalone_mode=False)


def test_both_kinds_of_save_are_timed_against_a_step(tmp_path: Path) -> None:
    words = ["checkpoint", "--shape", "small", "--batch", "1", "--window", "16", "--horizon", "1"]
    words += ["--rounds", "2", "--steps", "1", "--folder", str(tmp_path), "--json"]
    [said] = forked.run(bench, tuple(words), 1)
    found = json.loads(said.splitlines()[-1])
    assert len(found["rounds"]) == 2
    for turn in found["rounds"]:
        assert min(turn[name] for name in ("step", "waited", "stall", "writing")) > 0
        assert turn["beside"] >= 1
        assert turn["gigabytes"] > 0.01
    assert list(tmp_path.iterdir()) == []
