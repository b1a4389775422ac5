"""Data workers under fire: killed, signalled, orphaned, failing; never a hang, never a stray process."""

from __future__ import annotations

import gc
import os
import signal
import subprocess
import sys
from collections import deque
from itertools import islice
from pathlib import Path
from typing import Any

import psutil
import pytest

from pretrain.corpus.shardset import ShardSet
from pretrain.dispatch import Dispatcher
from pretrain.dispatch.worker import DEAF_TO
from pretrain.dispatch.workers import WorkerError, Workers
from pretrain.errors import EXIT_FAILURE, ShardError

LAYOUT: dict[str, Any] = {"lanes": 2, "agents_per_lane": 2, "seed": 5}


@pytest.fixture(scope="module")
def shard_set(tmp_path_factory: pytest.TempPathFactory, write_set) -> ShardSet:
    return write_set(tmp_path_factory.mktemp("set"), [("a", [900] * 10), ("b", [1300] * 10)])


def drain(dispatcher: Dispatcher) -> None:
    """Take many batches and keep none."""
    deque(islice(dispatcher, 200), maxlen=0)


def children() -> set[psutil.Process]:
    return set(psutil.Process().children(recursive=True))


def open_files() -> int:
    return len(os.listdir("/proc/self/fd"))


@pytest.mark.parametrize("victim", [0, 1])
def test_a_killed_worker_is_named_and_ends_the_run(shard_set: ShardSet, victim: int):
    before = children()
    with Dispatcher(shard_set, **LAYOUT, rank=1, world_size=2, workers=2, prefetch=1) as dispatcher:
        next(dispatcher)
        pid = dispatcher.worker_pids[victim]
        os.kill(pid, signal.SIGKILL)
        with pytest.raises(WorkerError) as caught:
            drain(dispatcher)
        assert f"data worker {victim} of 2 of rank 1 (pid {pid}) was killed by SIGKILL" in str(caught.value)
        assert caught.value.exit_code == EXIT_FAILURE
        position = dispatcher.state_dict()
    assert children() == before
    resumed = Dispatcher(shard_set, **LAYOUT, rank=1, world_size=2)
    resumed.load_state_dict(position)
    assert next(resumed).timestep == position["timestep"] >= 1


def test_signals_to_the_process_group_leave_workers_at_work(shard_set: ShardSet):
    with Dispatcher(shard_set, **LAYOUT, workers=2, prefetch=1) as dispatcher:
        next(dispatcher)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2, signal.SIGHUP):
            for pid in dispatcher.worker_pids:
                os.kill(pid, number)
        assert [next(dispatcher).timestep for _ in range(20)] == list(range(1, 21))


def test_a_signal_while_a_worker_is_starting_does_not_end_it(shard_set: ShardSet):
    dispatcher = Dispatcher(shard_set, **LAYOUT)
    workers = Workers(dispatcher.order, dispatcher.state_dict(), 1, 1, lambda product: product)
    for pid in workers.pids:
        os.kill(pid, signal.SIGTERM)
    product = workers.take()
    workers.close()
    assert product is not None
    assert product.timestep == 0


def test_starting_workers_leaves_the_callers_signals_as_they_were(shard_set: ShardSet):
    with Dispatcher(shard_set, **LAYOUT, workers=1) as dispatcher:
        next(dispatcher)
        assert not signal.pthread_sigmask(signal.SIG_BLOCK, []) & set(DEAF_TO)


def test_workers_end_when_the_training_process_is_killed(shard_set: ShardSet):
    script = (
        "import sys, time\n"
        "from pretrain.corpus.shardset import ShardSet\n"
        "from pretrain.dispatch import Dispatcher\n"
        "d = Dispatcher(ShardSet.open(sys.argv[1]), lanes=2, agents_per_lane=2, seed=5, workers=2)\n"
        "next(d)\n"
        "print(*d.worker_pids, flush=True)\n"
        "sys.stdin.read()\n"
    )
    training = subprocess.Popen(
        [sys.executable, "-c", script, str(shard_set.folders[0])],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert training.stdout is not None
    workers = [psutil.Process(int(pid)) for pid in training.stdout.readline().split()]
    assert len(workers) == 2
    training.kill()
    training.communicate()
    _, alive = psutil.wait_procs(workers, timeout=20)
    assert alive == []


def test_nothing_is_left_after_closing_dropping_or_ending(shard_set: ShardSet):
    gc.collect()
    before, others = open_files(), children()
    with Dispatcher(shard_set, **LAYOUT, workers=2) as closed:
        next(closed)
        assert len(children() - others) == 2
    dropped = Dispatcher(shard_set, **LAYOUT, workers=2)
    next(dropped)
    del dropped
    assert len(list(Dispatcher(shard_set, **LAYOUT, workers=2, epochs=1))) > 10
    gc.collect()
    assert children() == others
    assert open_files() == before


def test_workers_live_without_torch(shard_set: ShardSet):
    with Dispatcher(shard_set, **LAYOUT, workers=1) as dispatcher:
        next(dispatcher)
        (pid,) = dispatcher.worker_pids
        assert "libtorch" not in Path(f"/proc/{pid}/maps").read_text()


def test_a_fault_in_a_worker_is_the_same_error_at_the_same_timestep(tmp_path: Path, write_set):
    shard_set = write_set(tmp_path, [("a", [900] * 10), ("b", [1300] * 10)])
    shard_set.path(1).unlink()
    outcomes = []
    for workers in (0, 1, 3):
        with Dispatcher(ShardSet.open(tmp_path), **LAYOUT, workers=workers) as dispatcher:
            with pytest.raises(ShardError) as caught:
                drain(dispatcher)
            outcomes.append((dispatcher.state_dict()["timestep"], str(caught.value)))
    assert outcomes[0] == outcomes[1] == outcomes[2]


def test_a_bug_in_a_worker_arrives_with_its_traceback(shard_set: ShardSet):
    dispatcher = Dispatcher(shard_set, **LAYOUT)
    broken = dispatcher.state_dict() | {"lanes": {"0": {}, "1": {}}}
    workers = Workers(dispatcher.order, broken, 1, 1, lambda product: product)
    with pytest.raises(RuntimeError, match=r"(?s)data worker 0 of 1 of rank 0 failed.*Traceback.*KeyError"):
        workers.take()
    workers.close()
