"""A rank that dies, hangs or fails is named in one line, and all ranks end together."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from pretrain.errors import EXIT_FAILURE, EXIT_REQUEUE, EXIT_RESTART, EXIT_USER_ERROR, UserError
from pretrain.lifeline import Hub, Spoke
from pretrain.pulse import Pulse
from pretrain.standings import Limits, Table, Verdict
from tests.pretrain import watch_ranks
from tests.support import forked

WORDS = ("done", "left")
AGAIN = " -- run the same command to go on from the last checkpoint"


@contextlib.contextmanager
def running(folder: Path, what: str, who: int, ranks: int, **limits: int) -> Iterator[forked.Ranks]:
    """Ranks of `watch_ranks`; none is left when the test ends."""
    started = forked.start(watch_ranks.main, (folder, what, who, limits), ranks)
    try:
        yield started
    finally:
        started.kill()


def wait_for_event(ranks: forked.Ranks) -> None:
    """Until every rank is in its third update."""
    until = time.monotonic() + 100
    while not all(path.exists() and "at the event" in path.read_text() for path in ranks.outputs):
        assert time.monotonic() < until
        time.sleep(0.02)


def end(ranks: forked.Ranks) -> tuple[list[int | None], list[str], list[str]]:
    """Exit codes, outputs, and the lines that tell of errors, once all ranks have ended by themselves."""
    for process in ranks.processes:
        process.join(100)
    ended = ranks.wait(0)
    said = [output for _, output in ended]
    return [code for code, _ in ended], said, [line for line in "".join(said).splitlines() if "rror" in line]


def status(folder: Path) -> str:
    return str(json.loads((folder / "run" / "status.json").read_text())["status"])


@pytest.mark.parametrize("victim", [0, 1])
def test_a_killed_rank_ends_the_others_at_once(tmp_path: Path, victim: int) -> None:
    with running(tmp_path, "loop", victim, 3) as ranks:
        wait_for_event(ranks)
        os.kill(ranks.processes[victim].pid or 0, signal.SIGKILL)
        codes, _, lines = end(ranks)
    assert codes == [-signal.SIGKILL if rank == victim else EXIT_RESTART for rank in range(3)]
    [line] = lines
    assert line.startswith(f"error: rank {victim}: the process is gone, last heard of in ")
    assert AGAIN in line
    assert status(tmp_path) == "restart"


@pytest.mark.parametrize("victim", [0, 1])
def test_a_frozen_rank_is_given_up_and_ends_when_it_wakes(tmp_path: Path, victim: int) -> None:
    with running(tmp_path, "loop", victim, 2, peer_timeout=3) as ranks:
        wait_for_event(ranks)
        frozen, other = ranks.processes[victim], ranks.processes[1 - victim]
        os.kill(frozen.pid or 0, signal.SIGSTOP)
        other.join(100)
        assert other.exitcode == EXIT_RESTART
        assert status(tmp_path) == "restart"
        (tmp_path / "run" / "status.json").unlink()
        os.kill(frozen.pid or 0, signal.SIGCONT)
        codes, _, lines = end(ranks)
    assert codes == [EXIT_RESTART] * 2
    assert [line for line in lines if line.startswith(f"error: rank {victim}: silent ")]
    assert not [line for line in lines if line.startswith(f"error: rank {1 - victim}")]
    assert not (tmp_path / "run" / "status.json").exists(), "who wakes up late leaves the run alone"


def test_a_stalled_rank_is_named_with_phase_and_time_and_stacks_are_left(tmp_path: Path) -> None:
    with running(tmp_path, "stall", 1, 3, stall_seconds=2) as ranks:
        codes, _, lines = end(ranks)
    assert codes == [EXIT_RESTART] * 3
    [line] = lines
    assert line.startswith(
        f"error: rank 1: no progress for 2 s in data of update 3{AGAIN}; the stacks of all"
    )
    logs = [
        (tmp_path / "run" / "watchdog" / f"rank-{rank:05d}.log").read_text(encoding="utf-8")
        for rank in range(3)
    ]
    assert all("\nrank 1: no progress for 2 s in data of update 3 -- run" in log for log in logs)
    assert ["in all_reduce" in log for log in logs] == [True, False, True]
    assert "rank 0: counting of update 3, no progress for" in logs[0]
    assert "rank 1: data of update 3, no progress for" in logs[0]
    assert status(tmp_path) == "restart"


def test_a_mistake_on_one_rank_is_told_once_and_ends_all_with_its_code(tmp_path: Path) -> None:
    with running(tmp_path, "mistake", 1, 3) as ranks:
        codes, _, lines = end(ranks)
    assert codes == [EXIT_USER_ERROR] * 3
    assert lines == ["error: rank 1: shard 7: is torn -- mend it"]
    assert status(tmp_path) == "refused"


def test_a_bug_shows_its_trace_and_the_other_ranks_show_nothing(tmp_path: Path) -> None:
    with running(tmp_path, "bug", 0, 2) as ranks:
        codes, (said, quiet), lines = end(ranks)
    assert codes == [EXIT_FAILURE] * 2
    assert said.count("Traceback") == 1
    assert lines[-1] == "error: rank 0: ZeroDivisionError: of mine"
    assert "rror" not in quiet
    assert status(tmp_path) == "failed"


@pytest.mark.parametrize("peer_timeout", [120, 0])
def test_no_group_waits_longer_than_the_recipe_says(tmp_path: Path, peer_timeout: int) -> None:
    """Nor does a group made without a timeout; where ranks do not watch one another, each ends by itself."""
    with running(tmp_path, "stay away", 1, 2, collective_timeout=3, peer_timeout=peer_timeout) as ranks:
        codes, said, lines = end(ranks)
    assert codes == [EXIT_RESTART] * 2
    assert "Traceback" not in "".join(said)
    if peer_timeout:
        assert len(lines) == 1
        assert "in data of update 3" in lines[0]


def test_nobody_leaves_before_all_have_done_their_work(tmp_path: Path) -> None:
    """Launchers kill the rest of a job as soon as one rank has ended with a code that is not 0."""
    with running(tmp_path, "finish", 0, 2) as ranks:
        codes, said, lines = end(ranks)
    assert (codes, lines) == ([EXIT_REQUEUE] * 2, [])
    done, left = (
        float(output.split(f"{word} ")[1].split()[0]) for output, word in zip(said, WORDS, strict=True)
    )
    assert left > done


def table(**places: tuple[str, float]) -> Table:
    """Rank `r0`, `r1`, ... in a phase, without progress for so long; phases are entered in this order."""
    found = Table(range(len(places)), Limits(silence=50, stall=10, slow=100))
    for rank, (phase, quiet) in enumerate(places.values()):
        pulse = Pulse()
        pulse.settle()
        for entered in ("data", "counting", "reduction", "save")[: PLACE[phase]]:
            pulse.enter(entered, 7)  # type: ignore[arg-type]
        found.hear(rank, pulse.standing, quiet)
    return found


PLACE = {"data": 1, "counting": 2, "reduction": 3, "save": 4}


def test_who_is_behind_is_named_and_who_waits_is_not() -> None:
    assert table(r0=("counting", 11), r1=("data", 5)).stalled() is None, "the one behind still moves"
    found = table(r0=("counting", 11), r1=("data", 12), r2=("reduction", 90)).stalled()
    assert found == Verdict((1,), "no progress for 12 s in data of update 7")
    same = table(r0=("reduction", 11), r1=("reduction", 12)).stalled()
    assert same == Verdict((1,), "no progress for 12 s in reduction of update 7, where all ranks wait")


def test_slow_phases_may_take_their_time() -> None:
    assert table(r0=("save", 99), r1=("save", 99)).stalled() is None
    assert table(r0=("save", 101), r1=("save", 99)).stalled() is not None
    fresh = Table([0], Limits(silence=50, stall=10, slow=100))
    pulse = Pulse()
    pulse.enter("forward/backward", 1)
    fresh.hear(0, pulse.standing, quiet=99)
    assert fresh.stalled() is None, "layers may be compiling in the first update"


def test_the_ranks_of_a_lost_node_are_named_together() -> None:
    lost = table(r0=("data", 0), r1=("data", 0), r2=("data", 0), r3=("data", 0))
    lost.farewell(3)
    lost.pass_time(51)
    lost.hear(0, Pulse().standing)
    found = lost.silent()
    assert found is not None
    assert found.ranks == (1, 2), "not who lives, nor who has done its work"
    line = found.line(("a", "b", "b", "c"))
    assert line.startswith(
        "ranks 1-2 on b: silent 51 s, last heard of in data of update 7: frozen, or the no"
    )


def test_a_line_carries_messages_both_ways_and_tells_of_its_end() -> None:
    hub = Hub(["localhost"])
    with ThreadPoolExecutor() as pool:
        connecting = pool.submit(Spoke, 1, hub.address, 60.0)
        while not connecting.done():
            assert hub.poll(0.05) == []
    spoke = connecting.result()
    spoke.tell({"here": [1, "é"]})
    assert hub.poll(60) == [(1, {"here": [1, "é"]})]
    hub.tell({"there": None})
    assert spoke.poll(60) == [(0, {"there": None})]
    spoke.close()
    assert hub.poll(60) == [(1, None)]
    hub.close()
    with pytest.raises(
        UserError, match=r"rank 1: cannot reach rank 0 at localhost, port \d+: .* -- let the n"
    ):
        Spoke(1, hub.address, timeout=0)


def test_who_does_not_know_the_token_is_not_listened_to() -> None:
    hub = Hub(["localhost"])
    with socket.create_connection(("localhost", hub.address.port), timeout=60) as stranger:
        stranger.sendall(b'{"rank": 1, "token": "guessed"}\n{"words": {}}\n\xff nonsense\n')
        heard = [event for _ in range(3) for event in hub.poll(0.2)]
        assert heard == []
        assert stranger.recv(1) == b"", "it was hung up on"
    hub.close()
