"""A training that is disturbed says what happened in one line, and can be started again."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
import yaml

from pretrain import checkpoint
from pretrain.attempt import Attempt
from pretrain.control import Control, Request
from pretrain.distributed import World
from pretrain.errors import EXIT_REQUEUE, EXIT_RESTART
from tests.support import forked, tiny

SECONDS = 100
"""What a loaded machine may take for anything."""
AGAIN = "run the same command to go on from the last checkpoint"


@contextlib.contextmanager
def training(recipe: Path, ranks: int = 2) -> Iterator[forked.Ranks]:
    """`python -m pretrain RECIPE`; nothing of it is left when the test ends."""
    started = forked.start(forked.pretrain, (str(recipe),), ranks)
    try:
        yield started
    finally:
        started.kill()


def until(condition: Callable[[], bool]) -> None:
    latest = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < latest
        time.sleep(0.02)


def make_progress(ranks: forked.Ranks, run_dir: Path, updates: int = 3) -> None:
    """Wait until so many updates more are logged."""
    metrics = run_dir / "metrics.jsonl"

    def logged() -> int:
        return metrics.read_text().count("\n") if metrics.is_file() else 0

    wanted = logged() + updates
    until(lambda: logged() >= wanted or not all(process.is_alive() for process in ranks.processes))
    assert logged() >= wanted, ranks.wait(0)


def end(ranks: forked.Ranks) -> tuple[list[int | None], list[str]]:
    """Exit codes, and the lines that tell why, once all ranks have ended by themselves."""
    for process in ranks.processes:
        process.join(SECONDS)
    ended = ranks.wait(0)
    lines = [line for _, said in ended for line in said.splitlines()]
    assert not [line for line in lines if "Traceback" in line], ended
    return [code for code, _ in ended], [line for line in lines if "error" in line or "(exit" in line]


def status(run_dir: Path) -> str:
    return str(json.loads((run_dir / "status.json").read_text())["status"])


def test_a_run_is_stalled_killed_and_stopped_by_hand_and_goes_on_after_each(
    shards: Path, tmp_path: Path
) -> None:
    run_dir, recipe = tmp_path / "run", tmp_path / "recipe.yaml"
    content = tiny.recipe(
        shards,
        tmp_path,
        train__steps=10**6,
        train__stall_seconds=5,
        data__workers=1,
        checkpoint__every=10**6,
        validation__every=0,
        tracking__mlflow=False,
    )
    recipe.write_text(yaml.safe_dump(content))

    with training(recipe) as ranks:
        make_progress(ranks, run_dir)
        assert status(run_dir) == "running"
        (run_dir / "control" / "save").touch()
        until(lambda: len(checkpoint.committed(run_dir)) == 1)
        assert not (run_dir / "control" / "save").exists()
        make_progress(ranks, run_dir)
        # Its data stop coming: rank 1 waits in Python, rank 0 for rank 1 inside of a collective.
        [worker] = [
            p for p in psutil.Process(ranks.processes[1].pid).children() if "worker" in " ".join(p.cmdline())
        ]
        worker.suspend()
        try:
            codes, lines = end(ranks)
        finally:
            worker.kill()
    assert codes == [EXIT_RESTART] * 2
    [line] = lines
    assert line.startswith("error: rank 1: no progress for 5 s in data of update ")
    assert f"{AGAIN}; the stacks of all threads are in {run_dir / 'watchdog'}" in line
    assert status(run_dir) == "restart"
    assert "in _next_rollout" in (run_dir / "watchdog" / "rank-00001.log").read_text()
    assert "in all_reduce" in (run_dir / "watchdog" / "rank-00000.log").read_text()

    with training(run_dir) as ranks:
        make_progress(ranks, run_dir)
        os.kill(ranks.processes[0].pid or 0, signal.SIGKILL)
        codes, lines = end(ranks)
    assert codes == [-signal.SIGKILL, EXIT_RESTART]
    [line] = lines
    assert line.startswith("error: rank 0: the process is gone, last heard of in ")

    with training(run_dir) as ranks:
        make_progress(ranks, run_dir)
        (run_dir / "control" / "stop").touch()
        codes, lines = end(ranks)
    assert codes == [EXIT_REQUEUE] * 2
    [line] = lines
    saved = checkpoint.resolve(run_dir)
    assert line.startswith(f"run: control/stop: saved {saved.path}")
    assert "it stays stopped until somebody runs the same command (exit 75)" in line
    assert status(run_dir) == "stopped"
    assert list((run_dir / "control").iterdir()) == []
    assert saved.state["attempt"] == 3


@pytest.fixture
def handlers() -> Iterator[None]:
    """Puts back what a Control installs."""
    numbers = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)
    before = {number: signal.getsignal(number) for number in numbers}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.usefixtures("handlers")
def test_of_several_requests_the_one_that_lasts_longest_counts(tmp_path: Path) -> None:
    mine = Attempt(tmp_path, 1)
    first, second = (Control(mine, World(rank, 2, rank, "localhost", 1), every=0) for rank in (0, 1))
    assert first.heard() == Request.NONE
    (tmp_path / "control" / "save").touch()
    assert (first.heard(), second.heard()) == (Request.SAVE, Request.NONE)
    second.clear(Request.SAVE)
    assert first.heard() == Request.SAVE, "rank 0 alone takes files away"
    first.clear(Request.SAVE)
    assert first.heard() == Request.NONE

    signalled = Control(mine, World(0, 2, 0, "localhost", 1), every=0)
    for number in (signal.SIGUSR1, signal.SIGTERM, signal.SIGTERM, signal.SIGINT):
        os.kill(os.getpid(), number)
    assert signalled.heard() == Request.PREEMPT
    assert str(signalled.ending(Request.PREEMPT, "saved")) == "SIGUSR1: saved"
    for name in ("save", "stop"):
        (tmp_path / "control" / name).touch()
    assert signalled.heard() == Request.STOP
    assert signalled.ending(Request.STOP, "saved").status == "stopped"
    signalled.clear(Request.STOP)
    assert signalled.heard() == Request.PREEMPT
    assert list((tmp_path / "control").iterdir()) == []


@pytest.mark.usefixtures("handlers")
def test_the_file_system_is_asked_for_requests_once_a_second_at_most(tmp_path: Path) -> None:
    control = Control(Attempt(tmp_path, 1), World(0, 1, 0, "localhost", 1), every=10**6)
    assert control.heard() == Request.NONE
    (tmp_path / "control" / "stop").touch()
    assert control.heard() == Request.NONE
