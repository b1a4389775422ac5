"""`membart simulate`: the dispatcher's plan at the size of a cluster, on a manifest without payload."""

from __future__ import annotations

import heapq
import json
import time
from dataclasses import dataclass
from functools import lru_cache
from typing import Annotated, Any

import numpy as np
import psutil
import typer
from tqdm import tqdm

from pretrain.corpus.shardset import ShardInfo, Window
from pretrain.dispatch.plan import Plan
from pretrain.errors import UserError

FAR = 1_000_000
"""The timestep at which a resume is timed."""


class SyntheticSet:
    """A shard set that is a manifest only: log-normal document lengths, drawn again whenever a shard is
    asked.
    """

    def __init__(self, shards: int, documents: int, mean_tokens: float, min_tokens: int, seed: int) -> None:
        self._documents, self._min_tokens, self._seed = documents, min_tokens, seed
        self._location = np.log(mean_tokens) - 0.5
        self.lengths = lru_cache(maxsize=32)(self._lengths)
        self.shards = tuple(
            ShardInfo(
                f"train/synthetic-{number:06d}",
                "train",
                "synthetic",
                documents,
                int(self._lengths(number).sum()),
                0,
                "",
            )
            for number in range(shards)
        )

    def select(self, split: str) -> tuple[int, ...]:
        """All shards are training shards."""
        return tuple(range(len(self.shards))) if split == "train" else ()

    def _lengths(self, shard: int) -> np.ndarray:
        random = np.random.default_rng([self._seed, shard])
        drawn = random.lognormal(self._location, 1.0, self._documents)
        return np.maximum(drawn.astype(np.uint32), self._min_tokens)


@dataclass(frozen=True)
class Epoch:
    """What a whole pass over the set looks like from above."""

    timesteps: int
    padding: float
    """Share of padded positions while no agent is dry, each rank padding to its own longest row."""
    padding_to_window: float
    """The same if every row were padded to the window."""
    idle: float
    """Share of all rows that were dry."""
    ends: np.ndarray
    """`[lanes]` timestep at which each lane gave its last segment."""


def follow_epoch(plan: Plan, ranks: int) -> Epoch:
    """Step all agents of all ranks through one pass."""
    rows, window, timestep = plan.rows, plan.window, 0
    agents = plan.agents_per_lane
    ends = np.zeros(len(plan.lanes), np.int64)
    real = padded = full = live_rows = 0
    with tqdm(total=plan.timesteps, desc="one epoch, all ranks", unit="step", disable=None) as bar:
        while (step := plan.step()) is not None:
            timestep += 1
            bar.update()
            live = step.shard >= 0
            live_rows += int(live.sum())
            ends[live.reshape(-1, agents).any(axis=1)] = timestep
            if live.all():
                start, stop = window.bounds(step.length, step.segment)
                sizes = (stop - start + 2).reshape(ranks, -1)
                widths = -(-sizes.max(axis=1) // 8) * 8
                real += int(sizes.sum())
                padded += int(widths.sum()) * sizes.shape[1]
                full += rows * window.size
    return Epoch(timestep, 1 - real / padded, 1 - real / full, 1 - live_rows / (timestep * rows), ends)


def fast_forward(plan: Plan, timesteps: int) -> dict[str, Any]:
    """The state of a fresh plan after `timesteps`, found document by document instead of step by step."""
    lanes = {}
    for lane, queue in zip(plan.lanes, plan.queues, strict=True):
        free = [(0, agent) for agent in range(plan.agents_per_lane)]
        holds = [[-1, -1, -1, 0]] * plan.agents_per_lane
        while free[0][0] < timesteps:
            begin, agent = free[0]
            drawn = queue.pop()
            if drawn is None:
                raise UserError("the lane ends before that timestep", where="simulate")
            queue.serve(drawn)
            holds[agent] = [drawn.shard, drawn.document, drawn.epoch, begin]
            heapq.heapreplace(free, (begin + plan.window.segments(drawn.length), agent))
        rows = [[shard, document, epoch, timesteps - 1 - begin] for shard, document, epoch, begin in holds]
        lanes[str(lane)] = {**queue.state(), "agents": rows}
    return {"timestep": timesteps, "lanes": lanes}


def simulate(
    ranks: Annotated[int, typer.Option(help="World size.")] = 512,
    agents: Annotated[int, typer.Option(help="Agents of a rank.")] = 8,
    lanes_per_rank: Annotated[int, typer.Option(help="Lanes of a rank; the agents divide among them.")] = 1,
    shards: Annotated[int, typer.Option(help="Shards of the synthetic set.")] = 10_000,
    documents: Annotated[int, typer.Option(help="Documents of a shard.")] = 1_000,
    mean_tokens: Annotated[float, typer.Option(help="Mean tokens of a document before the filter.")] = 2_000,
    timesteps: Annotated[int, typer.Option(help="Timesteps over which planning is timed.")] = 5_000,
    seed: Annotated[int, typer.Option()] = 1,
) -> None:
    """Plan a cluster's data without data: time, memory, padding, balance of the lanes, cost of a resume.

    Times are processor time of one core.
    """
    if agents % lanes_per_rank:
        raise UserError(f"{agents} agents do not divide among {lanes_per_rank} lanes", where="simulate")
    window = Window()
    layout: dict[str, Any] = {
        "lanes": ranks * lanes_per_rank,
        "agents_per_lane": agents // lanes_per_rank,
        "seed": seed,
        "window": window,
    }
    corpus = SyntheticSet(shards, documents, mean_tokens, window.size, seed)
    tokens = sum(shard.tokens for shard in corpus.shards)
    print(f"{shards:,} shards, {shards * documents:,} documents, {tokens / 1e9:.1f} G tokens")
    print(f"{ranks} ranks x {agents} agents in {layout['lanes']} lanes of {layout['agents_per_lane']}")

    process = psutil.Process()
    before, began = process.memory_info().rss, time.process_time()
    plan = Plan(corpus, **layout, rank=ranks // 2, world_size=ranks)
    plan.step()
    start = time.process_time() - began
    seconds = np.zeros(timesteps)
    for number in range(timesteps):
        began = time.process_time()
        plan.step()
        seconds[number] = time.process_time() - began
    grown = process.memory_info().rss - before
    print(f"first timestep of a rank              {start * 1e3:10.1f} ms")
    print(f"planning a timestep, mean             {seconds.mean() * 1e6:10.1f} us")
    print(f"planning a timestep, median           {np.median(seconds) * 1e6:10.1f} us")
    print(f"planning a timestep, 99.9th percentile{np.quantile(seconds, 0.999) * 1e6:10.1f} us")
    print(f"memory of a rank's plan               {grown / 2**20:10.1f} MiB")

    far = fast_forward(Plan(corpus, **layout, rank=0, world_size=ranks), FAR)
    began = time.process_time()
    resumed = Plan(corpus, **layout, rank=0, world_size=ranks)
    resumed.load(json.loads(json.dumps(far)))
    resumed.step()
    print(f"resume of a rank at timestep {FAR:,} {(time.process_time() - began) * 1e3:9.1f} ms")
    print(f"state of a rank                       {len(json.dumps(far)):10,} bytes")

    whole = Plan(corpus, **layout, epochs=1)
    began = time.process_time()
    planned = whole.timesteps
    print(f"finding the end of an epoch           {time.process_time() - began:10.1f} s (once, by each rank)")
    print(f"state of all ranks                    {len(json.dumps(whole.state())) / 1024:10.1f} KiB")
    epoch = follow_epoch(whole, ranks)
    ends = epoch.ends
    print(f"timesteps of an epoch                 {epoch.timesteps:10,} (planned {planned:,})")
    print(f"padding, to a rank's longest row      {epoch.padding:10.2%}")
    print(f"padding, to the window                {epoch.padding_to_window:10.2%}")
    print(f"first and last lane end at timestep   {ends.min():10,} {ends.max():,}, mean {ends.mean():,.0f}")
    print(f"rows that are dry towards the end     {epoch.idle:10.2%}")
