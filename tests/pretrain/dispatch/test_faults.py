"""Broken shards while training: stop with the place and the cure, or skip without moving anybody else."""

from __future__ import annotations

import json
import logging
from collections import deque
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

import pytest

from pretrain.corpus.shardset import ShardSet, index_name
from pretrain.dispatch import Batch, Dispatcher
from pretrain.dispatch.faults import Tolerance
from pretrain.dispatch.plan import lost_documents, merge_states
from pretrain.errors import ShardError

SHARDS = [
    ("a", [700, 512, 1400, 800]),
    ("a", [513, 2000, 600]),
    ("a", [600, 893, 1000, 512]),
    ("a", [900, 510]),
]
LAYOUT: dict[str, Any] = {"lanes": 4, "agents_per_lane": 2, "seed": 11}
LENIENT = Tolerance(fraction=1.0, in_a_row=100)
SKIP: dict[str, Any] = {"on_bad_shard": "skip", "tolerance": LENIENT}

Row = tuple[int, ...]


@pytest.fixture
def shard_set(tmp_path: Path, write_set: Callable[..., ShardSet]) -> ShardSet:
    return write_set(tmp_path, SHARDS)


def reopened(shard_set: ShardSet) -> ShardSet:
    return ShardSet.open(*shard_set.folders)


def flip(file: Path, at: int) -> None:
    data = bytearray(file.read_bytes())
    data[at] ^= 0x10
    file.write_bytes(data)


def spoil(shard_set: ShardSet, shard: int, document: int) -> int:
    """Flip one bit of a document's tokens; returns its id."""
    index = shard_set.index(shard)
    flip(shard_set.path(shard), int(index.offsets[document]) + 20)
    return int(index.documents[document])


def audit(batch: Batch) -> list[Row]:
    columns = (batch.lane, batch.agent, batch.document, batch.segment, batch.epoch, batch.memory_resets)
    return list(zip(*(column.tolist() for column in columns), strict=True))


def run(shard_set: ShardSet, steps: int, world: int = 1, **options: Any) -> list[list[Row]]:
    """Audits of the global batches."""
    ranks = [Dispatcher(shard_set, **LAYOUT, rank=r, world_size=world, **options) for r in range(world)]
    found = []
    for _ in range(steps):
        batches = [next(rank, None) for rank in ranks]
        if None in batches:
            assert set(batches) == {None}
            break
        found.append([row for batch in batches if batch for row in audit(batch)])
    for rank in ranks:
        rank.close()
    return found


def test_stop_names_shard_document_byte_and_cure(shard_set: ShardSet):
    name = spoil(shard_set, 2, 1)
    with pytest.raises(ShardError) as caught:
        run(reopened(shard_set), 50)
    message = str(caught.value)
    assert "shard train/a-000002, document 1" in message
    assert f"{name:016x}" in message
    assert f"byte {shard_set.index(2).offsets[1]}" in message
    assert "membart shards verify" in message
    assert "\n" not in message


def test_after_a_stop_no_timestep_is_passed_over(shard_set: ShardSet):
    spoil(shard_set, 2, 1)
    for workers in (0, 1):
        with Dispatcher(reopened(shard_set), **LAYOUT, workers=workers) as dispatcher:
            errors = []
            for _ in range(6):
                with pytest.raises(ShardError) as caught:
                    deque(islice(dispatcher, 50), maxlen=0)
                errors.append((str(caught.value), dispatcher.state_dict()["timestep"]))
            assert len(set(errors)) == 1


def test_a_skipped_document_moves_only_the_agents_of_its_lane(shard_set: ShardSet):
    whole = run(shard_set, 50, epochs=1)
    name = spoil(shard_set, 2, 1)
    broken = run(reopened(shard_set), 50, epochs=1, **SKIP)
    first = next(t for t, rows in enumerate(whole) if any(row[2] == name for row in rows))
    (lane,) = {row[0] for rows in whole for row in rows if row[2] == name}
    assert broken[:first] == whole[:first]
    assert all(row[2] != name for rows in broken for row in rows)
    for after, before in zip(broken, whole, strict=True):
        assert [row for row in after if row[0] != lane] == [row for row in before if row[0] != lane]
    assert [row for row in broken[first] if row[0] == lane] != [row for row in whole[first] if row[0] == lane]


@pytest.mark.parametrize("damage", ["document", "missing", "index", "truncated"])
def test_a_fault_has_the_same_effect_on_any_ranks_workers_and_resumes(shard_set: ShardSet, damage: str):
    lost = {int(name) for name in shard_set.index(1).documents}
    if damage == "document":
        spoil(shard_set, 1, 1)
    elif damage == "missing":
        shard_set.path(1).unlink()
    elif damage == "index":
        flip(shard_set.folders[0] / index_name(shard_set.shards[1].name), 40)
    else:
        shard_set.path(1).write_bytes(shard_set.path(1).read_bytes()[:4000])
    whole = run(reopened(shard_set), 30, **SKIP)
    seen = {row[2] for rows in whole for row in rows}
    assert lost - seen
    if damage in ("missing", "index"):
        assert not lost & seen
    assert run(reopened(shard_set), 30, world=2, **SKIP) == whole
    assert run(reopened(shard_set), 30, world=4, **SKIP) == whole
    assert run(reopened(shard_set), 30, workers=2, **SKIP) == whole
    state: dict[str, Any] | None = None
    resumed: list[list[Row]] = []
    for world, steps in ((2, 7), (1, 1), (4, 9), (1, 13)):
        ranks = [
            Dispatcher(reopened(shard_set), **LAYOUT, **SKIP, rank=r, world_size=world) for r in range(world)
        ]
        for rank in ranks:
            if state:
                rank.load_state_dict(json.loads(json.dumps(state)))
        resumed += [[row for rank in ranks for row in audit(next(rank))] for _ in range(steps)]
        state = merge_states([rank.state_dict() for rank in ranks])
    assert resumed == whole
    assert state is not None
    straight = Dispatcher(reopened(shard_set), **LAYOUT, **SKIP)
    for _ in range(30):
        next(straight)
    assert state == straight.state_dict()
    assert lost_documents(straight.state_dict()) > 0


@pytest.mark.parametrize("size", [0, 1, 0.5, -1], ids=["empty", "one-byte", "half", "all-but-one"])
def test_shards_cut_short_are_noticed(shard_set: ShardSet, size: float):
    file = shard_set.path(0)
    data = file.read_bytes()
    last = int(shard_set.index(0).offsets[-1]) + 2 * int(shard_set.lengths(0)[-1])
    file.write_bytes(data[: {0: 0, 1: 1, 0.5: len(data) // 2, -1: last - 1}[size]])
    with pytest.raises(ShardError, match="a-000000"):
        run(reopened(shard_set), 50, epochs=1)
    survivors = {row[2] for rows in run(reopened(shard_set), 50, epochs=1, **SKIP) for row in rows} - {-1}
    everything = {int(name) for shard in range(4) for name in shard_set.index(shard).documents}
    lost = {int(name) for name in shard_set.index(0).documents} & (everything - survivors)
    assert everything - survivors == lost != set()
    assert len(lost) == {0: 4, 1: 4, 0.5: 3, -1: 1}[size] or size == 0.5


def test_a_shard_that_grew_or_lost_a_tar_header_still_holds_its_documents(shard_set: ShardSet):
    whole = run(shard_set, 50, epochs=1)
    with shard_set.path(0).open("ab") as file:
        file.write(b"more" * 1000)
    flip(shard_set.path(1), 3)
    assert run(reopened(shard_set), 50, epochs=1) == whole


def test_faults_do_not_change_when_a_finite_pass_ends_and_ranks_end_together(shard_set: ShardSet):
    whole = run(shard_set, 100, epochs=1)
    spoil(shard_set, 1, 1)
    shard_set.path(3).unlink()
    for world in (1, 2, 4):
        broken = run(reopened(shard_set), 100, world=world, epochs=1, **SKIP)
        assert len(broken) == len(whole)


def test_each_fault_is_reported_once_and_counted(shard_set: ShardSet, caplog: pytest.LogCaptureFixture):
    spoil(shard_set, 0, 0)
    shard_set.path(3).unlink()
    dispatcher = Dispatcher(reopened(shard_set), **LAYOUT, **SKIP)
    with caplog.at_level(logging.WARNING, "pretrain.dispatch"):
        while min(int(next(dispatcher).epoch.min()) for _ in range(5)) < 3:
            pass
    documents = [record for record in caplog.records if "document 0" in record.getMessage()]
    shards = [record for record in caplog.records if "is missing" in record.getMessage()]
    assert len(documents) == 1
    assert len(shards) == 1
    assert len(caplog.records) == 2
    assert lost_documents(dispatcher.state_dict()) >= 3 * 3


def test_a_half_read_document_that_is_unreadable_after_a_resume_is_left(shard_set: ShardSet):
    dispatcher = Dispatcher(shard_set, **LAYOUT, **SKIP)
    rows = audit(next(dispatcher))
    long = {int(name): (s, d) for s in range(4) for d, name in enumerate(shard_set.index(s).documents)}
    name = next(row[2] for row in rows if shard_set.lengths(long[row[2]][0])[long[row[2]][1]] > 510)
    state = dispatcher.state_dict()
    spoil(shard_set, *long[name])
    resumed = Dispatcher(reopened(shard_set), **LAYOUT, **SKIP)
    resumed.load_state_dict(state)
    batch = next(resumed)
    agent = next(row[1] for row in rows if row[2] == name)
    assert batch.document[agent] != name
    assert batch.memory_resets[agent] == 1
    healthy = audit(next(dispatcher))
    lane = agent // 2
    assert [row for row in audit(batch) if row[0] != lane] == [row for row in healthy if row[0] != lane]
    stopping = Dispatcher(reopened(shard_set), **LAYOUT)
    stopping.load_state_dict(state)
    with pytest.raises(ShardError, match="checksum"):
        next(stopping)


def test_a_lane_stops_past_its_share_of_losses_at_the_same_timestep_everywhere(tmp_path: Path, write_set):
    shard_set = write_set(tmp_path, [("a", [520] * 40) for _ in range(4)])
    for document in range(0, 40, 3):
        spoil(shard_set, 1, document)
    options = {"on_bad_shard": "skip", "tolerance": Tolerance(fraction=0.1, in_a_row=100)}
    ends = []
    for world, workers in ((1, 0), (1, 2), (2, 0)):
        ranks = [
            Dispatcher(reopened(shard_set), **LAYOUT, **options, rank=r, world_size=world, workers=workers)
            for r in range(world)
        ]
        with pytest.raises(ShardError, match=r"lane \d has met 5 of 40 documents unreadable") as caught:
            deque(islice(zip(*ranks, strict=True), 500), maxlen=0)
        ends.append((min(rank.state_dict()["timestep"] for rank in ranks), str(caught.value)))
        for rank in ranks:
            rank.close()
    assert ends[0] == ends[1] == ends[2]


def test_too_many_faults_in_a_row_stop_whatever_the_share(tmp_path: Path, write_set):
    shard_set = write_set(tmp_path, [("a", [520] * 40)])
    for document in range(40):
        spoil(shard_set, 0, document)
    options = {"on_bad_shard": "skip", "tolerance": Tolerance(fraction=1.0, in_a_row=7)}
    with pytest.raises(ShardError, match="7 unreadable documents or shards in a row"):
        next(Dispatcher(reopened(shard_set), **LAYOUT, **options))


def test_faults_between_good_documents_are_not_in_a_row(tmp_path: Path, write_set):
    shard_set = write_set(tmp_path, [("a", [520] * 60)])
    for document in range(0, 60, 5):
        spoil(shard_set, 0, document)
    options = {"on_bad_shard": "skip", "tolerance": Tolerance(fraction=1.0, in_a_row=10)}
    finite = Dispatcher(reopened(shard_set), **LAYOUT | {"lanes": 1}, epochs=1, **options)
    assert len(list(finite)) > 10
    assert lost_documents(finite.state_dict()) == 12


def test_a_missing_shard_is_one_fault_in_the_row_but_all_its_documents_in_the_share(
    tmp_path: Path, write_set
):
    shard_set = write_set(tmp_path, [("a", [520] * 30) for _ in range(4)])
    shard_set.path(2).unlink()
    layout = {"lanes": 1, "agents_per_lane": 1, "seed": 1, "epochs": 1, "on_bad_shard": "skip"}
    survived = Dispatcher(reopened(shard_set), **layout, tolerance=Tolerance(fraction=0.25, in_a_row=2))
    assert len(list(survived)) == 120 * 2
    assert lost_documents(survived.state_dict()) == 30
    stopped = Dispatcher(reopened(shard_set), **layout, tolerance=Tolerance(fraction=0.24, in_a_row=2))
    with pytest.raises(ShardError, match="30 of 120 documents unreadable"):
        list(stopped)
