"""Only the newest start of a run owns its folder."""

from __future__ import annotations

import json
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from pretrain import attempt
from pretrain.errors import EXIT_SUPERSEDED, SupersededError, UserError


def test_every_start_claims_the_next_number_and_says_who_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "77")
    assert attempt.newest(tmp_path / "run") == 0
    assert [attempt.claim(tmp_path / "run").number for _ in range(3)] == [1, 2, 3]
    record = json.loads((tmp_path / "run" / "attempts" / "000002.json").read_text())
    assert record["pid"] == os.getpid()
    assert record["slurm_job"] == "77"
    assert f"pid {os.getpid()}, Slurm job 77" in attempt.describe(tmp_path / "run", 2)
    assert attempt.describe(tmp_path / "run", 9) == "attempt 9"


def test_starts_at_the_same_time_get_different_numbers_and_one_of_them_owns_the_run(tmp_path: Path) -> None:
    def start(_: int) -> attempt.Attempt | None:
        try:
            return attempt.claim(tmp_path)
        except SupersededError:
            return None

    with ThreadPoolExecutor(8) as pool:
        claimed = [mine for mine in pool.map(start, range(40)) if mine]
    assert len({mine.number for mine in claimed}) == len(claimed)
    assert sorted(int(path.stem) for path in (tmp_path / "attempts").iterdir()) == list(range(1, 41))
    [owner] = [mine for mine in claimed if not mine.superseded]
    assert owner.number == 40
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == [owner.staging.name]


def test_a_newer_start_takes_the_folder_of_the_older_one_and_both_are_named(tmp_path: Path) -> None:
    older = attempt.claim(tmp_path)
    (older.staging / "step-00000010").mkdir()
    (older.staging / "step-00000010" / "half").write_text("written")
    older.require_newest()
    newer = attempt.claim(tmp_path)
    assert not older.staging.exists()
    assert newer.staging.is_dir()
    newer.require_newest()
    with pytest.raises(SupersededError, match=r"attempt 1 \(.*\) was superseded by attempt 2 \(") as told:
        older.require_newest()
    assert told.value.exit_code == EXIT_SUPERSEDED


def test_what_fails_for_want_of_the_folder_is_told_as_what_it_is(tmp_path: Path) -> None:
    older = attempt.claim(tmp_path)
    with pytest.raises(FileNotFoundError), older.owning():
        (older.staging / "none" / "file").touch()
    attempt.claim(tmp_path)
    with pytest.raises(SupersededError), older.owning():
        (older.staging / "file").touch()


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("a file")
    with pytest.raises(UserError, match="the run folder cannot be written"):
        attempt.claim(tmp_path / "run")
