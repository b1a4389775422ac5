"""The dispatcher's promises on the plan itself, over random sets, layouts, restarts and world sizes."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice, pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pretrain.corpus.shardset import Window
from pretrain.dispatch.lanes import LaneQueue
from pretrain.dispatch.plan import Plan, lanes_of, merge_states
from pretrain.errors import CheckpointError, UserError

Row = tuple[int, int, int, int, int]
"""Shard, document, epoch, segment, reset."""
DRY = (-1, -1, -1, -1, 1)


@dataclass(frozen=True)
class Case:
    """A shard set and a layout of agents."""

    shards: list[tuple[str, list[int]]]
    lanes: int
    agents: int
    window: Window
    seed: int

    def plan(self, memory_set: Callable[..., Any], rank: int = 0, world: int = 1, **options: Any) -> Plan:
        return Plan(
            memory_set(self.shards),
            lanes=self.lanes,
            agents_per_lane=self.agents,
            seed=self.seed,
            window=self.window,
            rank=rank,
            world_size=world,
            **options,
        )

    def segments(self, epochs: int) -> Counter[tuple[int, int, int, int]]:
        """Every (shard, document, epoch, segment) that a pass must give, once."""
        return Counter(
            (shard, document, epoch, segment)
            for epoch in range(epochs)
            for shard, (_, lengths) in enumerate(self.shards)
            for document, length in enumerate(lengths)
            for segment in range(self.window.segments(length))
        )


lengths = st.one_of(st.integers(0, 5000), st.sampled_from([0, 1, 510, 511, 512]))
shards = st.lists(
    st.tuples(st.sampled_from("abc"), st.lists(lengths, max_size=7)), min_size=1, max_size=7
).filter(lambda found: any(sum(sizes) for _, sizes in found))
cases = st.builds(
    Case,
    shards=shards,
    lanes=st.sampled_from([1, 2, 3, 4, 6, 8, 12, 16]),
    agents=st.integers(1, 4),
    window=st.sampled_from([Window(512, 128), Window(512, 0), Window(130, 100)]),
    seed=st.integers(0, 2**40),
)


def divisors(number: int) -> list[int]:
    return [size for size in range(1, number + 1) if number % size == 0]


def rows(plan: Plan) -> Iterator[list[Row]]:
    while (step := plan.step()) is not None:
        columns = (step.shard, step.document, step.epoch, step.segment, step.resets)
        yield list(zip(*(column.tolist() for column in columns), strict=True))


@settings(max_examples=150, deadline=None)
@given(case=cases, epochs=st.integers(1, 2))
def test_an_epoch_gives_every_segment_once_in_order_by_one_agent(memory_set, case: Case, epochs: int):
    plan = case.plan(memory_set, epochs=epochs)
    steps = list(rows(plan))
    live = [row for step in steps for row in step if row != DRY]
    assert Counter(row[:4] for row in live) == case.segments(epochs)
    assert all(row[4] == (row[3] == 0) for row in live)
    for agent in range(plan.rows):
        column = [step[agent] for step in steps]
        for before, after in pairwise(column):
            goes_on = after[:3] == before[:3] and after[3] == before[3] + 1
            whole = before == DRY or (
                before[3] + 1 == case.window.segments(case.shards[before[0]][1][before[1]])
            )
            assert after == DRY if before == DRY else goes_on or (whole and (after == DRY or after[3] == 0))


@settings(max_examples=100, deadline=None)
@given(case=cases, data=st.data(), epochs=st.sampled_from([None, 1, 2]))
def test_any_series_of_restarts_and_world_sizes_gives_the_same_global_batches(
    memory_set, case: Case, data: st.DataObject, epochs: int | None
):
    most = 60
    whole = [step for step, _ in zip(rows(case.plan(memory_set, epochs=epochs)), range(most), strict=False)]
    resumed: list[list[Row]] = []
    state: dict[str, Any] | None = None
    for _ in range(5):
        world = data.draw(st.sampled_from(divisors(case.lanes)), label="world")
        plans = [case.plan(memory_set, rank, world, epochs=epochs) for rank in range(world)]
        if state is not None:
            for plan in plans:
                plan.load(json.loads(json.dumps(state)))
        for _ in range(data.draw(st.integers(0, 30), label="steps")):
            parts = [next(rows(plan), None) for plan in plans]
            if None in parts:
                assert set(map(type, parts)) == {type(None)}, "ranks ended at different timesteps"
                break
            resumed.append([row for part in parts if part for row in part])
        state = merge_states([plan.state() for plan in plans])
    assert resumed[:most] == whole[: len(resumed)]
    assert len(resumed) <= len(whole) or len(whole) == most


@settings(max_examples=50, deadline=None)
@given(case=cases, data=st.data())
def test_the_ranks_of_a_finite_pass_end_together_and_with_the_last_document(memory_set, case: Case, data):
    world = data.draw(st.sampled_from(divisors(case.lanes)))
    epochs = data.draw(st.integers(1, 3))
    per_rank = [list(rows(case.plan(memory_set, rank, world, epochs=epochs))) for rank in range(world)]
    ends = {len(steps) for steps in per_rank}
    assert len(ends) == 1
    assert any(row != DRY for steps in per_rank for row in steps[-1])


@settings(max_examples=50, deadline=None)
@given(case=cases, count=st.integers(1, 8), start=st.integers(0, 6))
def test_workers_that_share_out_timesteps_make_the_same_sequence(
    memory_set, case: Case, count: int, start: int
):
    whole = [step for step, _ in zip(rows(case.plan(memory_set)), range(start + 12), strict=False)]
    first = case.plan(memory_set)
    for _ in range(start):
        first.step()
    made: dict[int, list[Row]] = {}
    for worker in range(count):
        plan = case.plan(memory_set)
        plan.load(first.state())
        for timestep, step in zip(range(start, start + 12), rows(plan), strict=False):
            if timestep % count == worker:
                made[timestep] = step
    assert [made[timestep] for timestep in range(start, start + 12)] == whole[start:]


@settings(max_examples=50, deadline=None)
@given(case=cases)
def test_agents_pop_their_lanes_queue_by_number_in_the_timestep_they_end(memory_set, case: Case):
    """Against the rule written down naively: a list of documents and a list of agents for each lane."""
    plan = case.plan(memory_set, epochs=1)
    expected: list[list[Row]] = []
    queues = []
    for lane in range(case.lanes):
        queue = LaneQueue(plan.library, lane, plan.weights, "tokens", 1)
        documents = []
        while (drawn := queue.pop()) is not None:
            queue.serve(drawn)
            documents.append((drawn.shard, drawn.document, drawn.epoch, case.window.segments(drawn.length)))
        queues.append(documents)
    agents: list[list[Row]] = [[] for _ in range(case.lanes * case.agents)]
    while any(queues) or any(agents):
        for number, agent in enumerate(agents):
            queue_of_lane = queues[number // case.agents]
            if not agent and queue_of_lane:
                shard, document, epoch, count = queue_of_lane.pop(0)
                agent.extend((shard, document, epoch, segment, int(segment == 0)) for segment in range(count))
        if any(agents):
            expected.append([agent.pop(0) if agent else DRY for agent in agents])
    assert list(rows(plan)) == expected


@settings(max_examples=40, deadline=None)
@given(case=cases)
def test_endless_training_passes_every_document_once_before_any_lane_is_two_epochs_on(memory_set, case: Case):
    plan = case.plan(memory_set)
    seen: Counter[tuple[int, ...]] = Counter()
    for step, _ in zip(rows(plan), range(3000), strict=False):
        assert DRY not in step
        seen.update(row[:4] for row in step)
        if min(row[2] for row in step) > 0 and all(q.epoch > 0 for lane in plan.queues for q in lane.queues):
            break
    else:
        pytest.fail("the first epoch never ended")
    assert max(seen.values()) == 1
    assert case.segments(1).keys() <= seen.keys()


@settings(max_examples=60, deadline=None)
@given(case=cases, epoch=st.integers(0, 3))
def test_lanes_are_balanced_to_about_one_document(memory_set, case: Case, epoch: int):
    library = case.plan(memory_set).library
    for source, total in enumerate(library.tokens):
        longest = max(max(sizes, default=0) for name, sizes in case.shards if name == library.sources[source])
        held = [0] * case.lanes
        for slot in range(len(library.members[source])):
            shuffled = library.shuffled(source, epoch, slot)
            for length, begin in zip(shuffled.lengths.tolist(), shuffled.begins.tolist(), strict=True):
                for lane in range(case.lanes):
                    start, stop = library.share(source, epoch, lane)
                    held[lane] += length * (start <= begin < stop)
        assert sum(held) == total
        assert all(abs(tokens - total / case.lanes) < longest + 1 for tokens in held)


def test_epochs_and_seeds_have_orders_of_their_own(memory_set):
    case = Case([("a", [600] * 20), ("a", [600] * 20)], 2, 2, Window(), seed=1)
    other = Case(case.shards, 2, 2, Window(), seed=2)

    def order(plan: Plan, epoch: int) -> list[tuple[int, ...]]:
        return [row[:2] for step in rows(plan) for row in step if row[2] == epoch and row[3] == 0]

    first = order(case.plan(memory_set, epochs=2), 0)
    assert first == order(case.plan(memory_set, epochs=2), 0)
    assert first != order(case.plan(memory_set, epochs=2), 1)
    assert first != order(other.plan(memory_set, epochs=2), 0)
    assert first != sorted(first)


def test_a_plan_that_has_gone_on_can_be_taken_back(memory_set):
    plan = Case([("ab"[number % 2], [600] * 5) for number in range(12)], 2, 2, Window(), seed=1).plan(
        memory_set
    )
    for _ in range(7):
        plan.step()
    state = plan.state()
    first = list(islice(rows(plan), 17))
    plan.load(state)
    assert list(islice(rows(plan), 17)) == first


def test_documents_of_a_shard_come_in_another_order_in_another_epoch(memory_set):
    plan = Case([("a", [600] * 20)], 1, 1, Window(), seed=1).plan(memory_set, epochs=2)
    live = [step[0] for step in rows(plan) if step[0][3] == 0]
    orders = [[row[1] for row in live if row[2] == epoch] for epoch in (0, 1)]
    assert sorted(orders[0]) == sorted(orders[1]) == list(range(20))
    assert orders[0] != orders[1]


def test_one_giant_document_goes_round_the_lanes(memory_set):
    case = Case([("a", [5_000])], 4, 1, Window(512, 128), seed=3)
    finite = list(rows(case.plan(memory_set, epochs=1)))
    assert [sum(row != DRY for row in step) for step in finite] == [1] * 13
    endless = case.plan(memory_set)
    first = next(rows(endless))
    assert {row[2] for row in first} == {0, 1, 2, 3}, "each lane holds it in an epoch of its own"


def test_more_lanes_than_shards_share_them(memory_set):
    case = Case([("a", [512] * 64)], 16, 1, Window(512, 128), seed=3)
    steps = list(rows(case.plan(memory_set, epochs=1)))
    assert len(steps) == 64 * 2 // 16
    assert all(DRY not in step for step in steps)


def test_an_empty_split_is_refused(memory_set):
    case = Case([("a", [512])], 1, 1, Window(), seed=1)
    with pytest.raises(UserError, match="'validation' has no documents"):
        case.plan(memory_set, split="validation")
    with pytest.raises(UserError, match="'train' has no documents"):
        Case([("a", [0, 0])], 1, 1, Window(), seed=1).plan(memory_set)


@pytest.mark.parametrize(
    ("lanes", "world", "fitting"),
    [
        (8, 3, "run 2 or 4 ranks"),
        (6, 4, "run 3 or 6 ranks"),
        (4, 5, "run 4 ranks"),
        (7, 2, "run 1 or 7 ranks"),
    ],
)
def test_a_world_that_does_not_divide_the_lanes_is_told_what_would(lanes: int, world: int, fitting: str):
    with pytest.raises(UserError, match=fitting):
        lanes_of(0, world, lanes)


def test_ranks_share_the_lanes_in_order():
    assert [list(lanes_of(rank, 3, 6)) for rank in range(3)] == [[0, 1], [2, 3], [4, 5]]
    with pytest.raises(UserError, match="rank 3 does not exist"):
        lanes_of(3, 3, 6)


@pytest.mark.parametrize("name", ["lanes", "agents_per_lane", "epochs"])
def test_a_layout_without_rows_is_refused(memory_set, name: str):
    layout = {"lanes": 1, "agents_per_lane": 1, "epochs": 1, name: 0}
    with pytest.raises(UserError, match=f"{name} must be at least 1"):
        Plan(memory_set([("a", [512])]), seed=1, window=Window(), **layout)


def test_states_of_different_moments_do_not_merge(memory_set):
    case = Case([("a", [5000] * 4)], 2, 1, Window(), seed=1)
    plans = [case.plan(memory_set, rank, 2) for rank in range(2)]
    plans[0].step()
    with pytest.raises(CheckpointError, match="differ in timestep: 1 and 0"):
        merge_states([plan.state() for plan in plans])


def test_a_state_without_ones_lanes_is_refused(memory_set):
    case = Case([("a", [5000] * 4)], 2, 1, Window(), seed=1)
    with pytest.raises(CheckpointError, match="1 of 2 lanes have no data position, first lane 1"):
        case.plan(memory_set).load(case.plan(memory_set, 0, 2).state())


@settings(max_examples=60, deadline=None)
@given(
    sizes=st.lists(st.lists(st.integers(1, 5000), min_size=1, max_size=5), min_size=2, max_size=4),
    weights=st.data(),
    unit=st.sampled_from(["tokens", "documents"]),
)
def test_the_mixture_holds_at_every_moment_to_within_a_document_of_each_source(
    memory_set, sizes, weights, unit
):
    names = "abcd"[: len(sizes)]
    wanted = {name: weights.draw(st.sampled_from([0.0, 0.2, 1.0, 3.0])) for name in names[1:]} | {"a": 1.0}
    plan = Plan(
        memory_set(list(zip(names, sizes, strict=True))),
        lanes=2,
        agents_per_lane=1,
        seed=1,
        window=Window(),
        mixture=wanted,
        mixture_unit=unit,
    )
    (queue, _), largest = plan.queues, max(map(max, sizes)) if unit == "tokens" else 1
    shares = np.array([wanted[name] for name in names]) / sum(wanted.values())
    for _ in range(40):
        drawn = queue.pop()
        assert drawn is not None
        queue.serve(drawn)
        served = np.array(queue.tokens if unit == "tokens" else queue.documents)
        behind = shares * served.sum() - served
        assert (behind >= -largest - 1e-6).all()
        assert (behind <= largest * (len(names) - 1) + 1e-6).all()
