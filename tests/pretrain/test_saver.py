"""Saving goes on beside training, and what goes wrong with it costs one checkpoint."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from pretrain.errors import UserError
from pretrain.saver import HostCopy
from tests.pretrain import saver_ranks
from tests.support import forked


def ranks(scenario: str, run_dir: Path) -> tuple[list[dict[str, Any]], list[str]]:
    """What two ranks found, and what each said before."""
    said = [output.splitlines() for output in forked.run(saver_ranks.main, (scenario, run_dir), 2)]
    return [json.loads(lines[-1]) for lines in said], ["\n".join(lines[:-1]) for lines in said]


def test_training_goes_on_while_a_rank_writes_and_what_is_saved_is_the_moment_it_began(
    tmp_path: Path,
) -> None:
    found, _ = ranks("beside", tmp_path)
    for rank in found:
        assert rank["told"] == 0, "nothing has ended while a rank still writes"
        assert rank["before"] == [], "rank 0 had written its part, but not all ranks had"
        assert rank["between"] == [1], "one save at a time"
        assert [save["path"] for save in rank["ended"]] == ["step-00000001", "step-00000006"]
        assert rank["ended"][0]["metrics"] == [
            "checkpoint_bytes",
            "checkpoint_failures",
            "checkpoint_seconds",
            "checkpoint_stall_seconds",
        ]
        assert rank["values"] == [[1.0], [6.0]]


def test_a_full_disk_under_one_rank_costs_that_checkpoint_and_is_said_once(tmp_path: Path) -> None:
    found, said = ranks("full", tmp_path)
    for rank in found:
        first, second, third, fourth, last = rank["ended"]
        assert [first["path"], last["path"]] == ["step-00000001", f"step-{last['update']:08d}"]
        assert "File too large" in second["error"]
        assert "File too large" in third["error"]
        assert "checkpoints has" in fourth["error"]
        assert "left, it needs" in fourth["error"]
        assert [save["failures"] for save in rank["ended"]] == [0, 1, 2, 3, 3]
        assert rank["left"] == [], "what was half-written gives its room back"
        assert rank["committed"] == [1, last["update"]]
    [failure, recovery] = said[0].splitlines()
    assert f"update {found[0]['ended'][1]['update']} could not be saved" in failure
    assert failure.endswith("the last checkpoint is step-00000001; training goes on")
    assert recovery == "checkpoints work again"
    assert said[1] == ""


def test_a_superseded_start_is_told_on_every_rank_and_commits_nothing(tmp_path: Path) -> None:
    found, _ = ranks("superseded", tmp_path)
    for rank in found:
        between, in_flight = rank["told"]
        assert "attempt 1 (" in between
        assert "was superseded by attempt 2 (" in between
        assert "attempt 3 (" in in_flight
        assert "was superseded by attempt 4 (" in in_flight
        assert rank["committed"] == []


def test_too_little_memory_for_the_copy_is_told_with_the_setting_that_needs_none() -> None:
    memory = HostCopy(torch.device("cpu"))
    with pytest.raises(
        UserError, match=r"no host memory .* 1073741824\.00 GiB .* checkpoint\.asynchronous=false"
    ):
        memory.reserve(1 << 60)
    memory.reserve(1 << 10)
