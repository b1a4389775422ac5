"""Resuming seeks: it reads where it stands and nothing of what lies before, however far that is."""

from __future__ import annotations

import itertools
import json
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from pretrain.corpus.shardset import Window
from pretrain.dispatch.plan import Plan
from tools.simulate import SyntheticSet, fast_forward

LAYOUT: dict[str, Any] = {"lanes": 4, "agents_per_lane": 3, "seed": 9, "window": Window(512, 128)}


def rows(plan: Plan, count: int) -> list[list[list[int]]]:
    found = []
    for _ in range(count):
        step = plan.step()
        assert step is not None
        found.append([column.tolist() for column in (step.shard, step.document, step.epoch, step.segment)])
    return found


@pytest.mark.parametrize("timesteps", [1, 7, 400])
def test_fast_forward_stands_where_stepping_leads(timesteps: int):
    corpus = SyntheticSet(30, 20, 2000, 512, seed=1)
    stepped = Plan(corpus, **LAYOUT)
    rows(stepped, timesteps)
    assert fast_forward(Plan(corpus, **LAYOUT), timesteps) == stepped.state()


def test_a_million_timesteps_on_resume_costs_a_few_index_reads(memory_set: Callable[..., Any]):
    """Long documents make a million timesteps cheap to reach here; the resume does not know that."""
    random = np.random.default_rng(0)
    shards = [("ab"[number % 2], random.integers(10_000, 2_000_000, 50).tolist()) for number in range(400)]
    corpus = memory_set(shards)
    far = fast_forward(Plan(corpus, **LAYOUT), 1_000_000)
    assert len(json.dumps(far)) < 2_000
    corpus.reads = 0
    began = time.perf_counter()
    resumed = Plan(corpus, **LAYOUT)
    resumed.load(json.loads(json.dumps(far)))
    after = rows(resumed, 50)
    assert time.perf_counter() - began < 2
    sources, agents = 2, 12
    assert corpus.reads <= agents + 2 * 4 * sources
    assert fast_forward(Plan(corpus, **LAYOUT), 1_000_050) == resumed.state()
    assert all(segment >= 0 for step in after for segment in itertools.chain(step[3]))


def test_a_rank_reads_only_the_indexes_it_stands_in(memory_set: Callable[..., Any]):
    corpus = memory_set([("a", [600] * 50) for _ in range(200)])
    plan = Plan(corpus, lanes=100, agents_per_lane=2, seed=1, window=Window(), rank=42, world_size=100)
    plan.step()
    assert corpus.reads == 1
