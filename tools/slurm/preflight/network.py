"""The ways between nodes: exchanges with two neighbours, then an all-reduce over every rank."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from datetime import timedelta

import torch
import torch.distributed as dist

from pretrain.distributed import World
from tools.slurm.preflight.verdict import Links

BYTES = {"cpu": 8 << 20, "cuda": 256 << 20}
REPEATS = 3


def neighbours(nodes: int, index: int) -> list[int]:
    """The nodes that one node exchanges with, by rounds in which no node has two partners.

    First 0-1, 2-3, ..., then 1-2, 3-4, ... round the ring; every node meets somebody.
    """
    rounds = []
    for shift in (0, 1):
        partner = shift + ((index - shift) ^ 1)
        if shift and nodes % 2 == 0:
            partner %= nodes
        if 0 <= partner < nodes and partner != index and partner not in rounds:
            rounds.append(partner)
    return rounds


def join(world: World, store: dist.Store, seconds: float) -> None:
    """The process group of the examination."""
    if world.device.type == "cuda":
        torch.cuda.set_device(world.device)
    dist.init_process_group(
        world.backend,
        store=store,
        rank=world.rank,
        world_size=world.size,
        timeout=timedelta(seconds=seconds),
    )


def exchange(world: World, nodes: list[str], links: Links) -> None:
    """Measure the links of this rank's node, with the ranks of the same number on its neighbours.

    Fills `links`; an exchange in progress is among the failed ones until it has ended.
    """
    local = world.size // len(nodes)
    index, place = divmod(world.rank, local)
    sent = torch.ones(BYTES[world.device.type] // 4, device=world.device)
    received = torch.empty_like(sent)
    for partner in neighbours(len(nodes), index):
        peer, name = partner * local + place, nodes[partner]
        links.failed[name] = "it did not end"

        def swap(peer: int = peer) -> None:
            ways = [dist.P2POp(dist.isend, sent, peer), dist.P2POp(dist.irecv, received, peer)]
            for way in dist.batch_isend_irecv(ways):
                way.wait()

        try:
            seconds = _measure(swap, world)
        except RuntimeError as error:
            links.failed[name] = str(error).splitlines()[0]
            continue
        del links.failed[name]
        links.gb_per_second[name] = sent.numel() * 4 / seconds / 1e9


def all_reduce(world: World) -> float:
    """Bus bandwidth in GB/s: what each rank sends and receives in a ring, over the time it takes."""
    if world.size == 1:
        return 0.0
    values = torch.ones(BYTES[world.device.type] // 4, device=world.device)
    seconds = _measure(lambda: dist.all_reduce(values), world)
    return 2 * (world.size - 1) / world.size * values.numel() * 4 / seconds / 1e9


def summary(world: World, links: Sequence[Links], speed: float) -> str:
    """What the network does, for people."""
    if world.size == 1:
        return "one rank, no network"
    text = f"all-reduce over {world.size} ranks {speed:.3g} GB/s"
    pairs = [(value, node.node, other) for node in links for other, value in node.gb_per_second.items()]
    if pairs:
        value, one, other = min(pairs)
        text += f", slowest link {one}-{other} {value:.3g} GB/s"
    return text


def _measure(call: Callable[[], object], world: World) -> float:
    """Seconds of one call; the first one, in which connections are made, does not count."""
    call()
    _synchronize(world)
    began = time.perf_counter()
    for _ in range(REPEATS):
        call()
    _synchronize(world)
    return (time.perf_counter() - began) / REPEATS


def _synchronize(world: World) -> None:
    if world.device.type == "cuda":
        torch.cuda.synchronize(world.device)
