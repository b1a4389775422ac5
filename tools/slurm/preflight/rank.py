"""What one rank does in a preflight; the first rank of a node speaks for the node.

A node's answer is a file in the preflight's folder, which slurm/lib.sh reads: `NODE.ok`; `NODE.bad` with
what is wrong; `NODE.lost` when it cannot reach the first node. No file at all is an answer too. Nodes talk
through a store on the first node: a file may take half a minute to show elsewhere.
"""

from __future__ import annotations

import json
import os
import socket
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import timedelta
from pathlib import Path

import torch.distributed as dist

from pretrain import distributed
from pretrain.distributed import World
from pretrain.errors import EXIT_FAILURE, EXIT_OK, UserError
from pretrain.files import write_atomically
from tools.slurm import lead
from tools.slurm.preflight import facts, network, verdict
from tools.slurm.preflight.facts import Facts, Limits
from tools.slurm.preflight.verdict import Links

GATHERING, NETWORK, FAREWELL = 0.4, 0.4, 0.1
"""Shares of the preflight's time: for the facts of all nodes, for the network, and for what it found."""


def examine(folder: Path, run: Path, program: Sequence[str]) -> int:
    """Examine this rank's node and its ways to the others; returns the exit code.

    Args:
        folder: where the answers go.
        run: the run folder of the job.
        program: what will be started: `pretrain` or `finetune`, and its words.
    """
    world, node = distributed.detect(), _name()
    nodes = os.environ.get("MEMBART_NODES", "").split() or [node]
    seconds = float(os.environ.get("SITE_PREFLIGHT_SECONDS") or 300)
    limits, mine = Limits(), None
    try:
        limits = Limits.read()
        if world.local_rank == 0:
            mine = facts.look(node, folder, run, program, limits)
    except UserError as error:
        mine = Facts(node, (str(error),))
    if world.is_first:
        write_atomically(folder / "lead", f"{lead.seconds(run, int(limits.lead_seconds))}\n")
    try:
        store = dist.TCPStore(
            world.address,
            world.port,
            world.size,
            world.is_first,
            timedelta(seconds=GATHERING * seconds),
            wait_for_workers=False,
        )
    except (RuntimeError, ValueError) as error:
        said = [f"{world.address}:{world.port} cannot be reached: {str(error).splitlines()[0]}"]
        return _answer(folder, mine, "lost", [*(mine.problems if mine else ()), *said])
    examination = Examination(folder, world, nodes, mine, store, limits, seconds)
    try:
        return examination.together()
    finally:
        examination.leave()


@dataclass(frozen=True)
class Examination:
    """What the ranks find out together."""

    folder: Path
    world: World
    nodes: list[str]
    mine: Facts | None
    """Of this node, if this rank speaks for it."""
    store: dist.Store
    limits: Limits
    seconds: float
    """For all of it."""

    def together(self) -> int:
        """Compare the nodes and, if all are well, try the network between them; returns the exit code."""
        if self.mine is not None:
            self.store.set(f"facts/{self.mine.node}", self.mine.to_json())
        told = [Facts.from_json(text) for text in self._gather("facts", GATHERING * self.seconds)]
        faults = verdict.of_facts(told, self.limits)
        if faults or len(told) < len(self.nodes):
            return self._judged(faults)
        return self._network()

    def leave(self) -> None:
        """The first rank keeps the store until all have read it."""
        try:
            gone, end = self.store.add("gone", 1), time.monotonic() + FAREWELL * self.seconds
            while self.world.is_first and gone < self.world.size and time.monotonic() < end:
                time.sleep(0.05)
                gone = self.store.add("gone", 0)
        except RuntimeError:
            pass  # the first rank has ended

    def _network(self) -> int:
        """Try it, in this thread; a collective may never return, so another one ends the process in time."""
        links, speed = Links(_name()), list[float]()
        end = time.monotonic() + NETWORK * self.seconds

        def answer() -> int:
            patience = end - time.monotonic() + FAREWELL * self.seconds
            return self._network_judged(links, speed, patience)

        def late() -> None:
            code = answer()
            self.leave()
            os._exit(code)

        timer = threading.Timer(NETWORK * self.seconds, late)
        timer.daemon = True
        timer.start()
        try:
            network.join(self.world, dist.PrefixStore("group", self.store), self.seconds)
            if self.world.size % len(self.nodes) == 0:
                network.exchange(self.world, self.nodes, links)
            if not links.failed:
                speed.append(network.all_reduce(self.world))
        except RuntimeError as error:
            print(f"network: {error}", file=sys.stderr)
        timer.cancel()
        return answer()

    def _network_judged(self, links: Links, speed: list[float], patience: float) -> int:
        """Tell what the network did, hear the others, and answer. Others may be stuck until the very end."""
        if self.mine is not None:
            self.store.set(f"links/{self.mine.node}", json.dumps(asdict(links)))
        heard = [Links(**json.loads(text)) for text in self._gather("links", patience)]
        faults = verdict.of_links(heard, self.limits)
        # Whoever is silent is to blame for what did not end, and has no answer to show that it is well.
        if not speed and not faults and len(heard) == len(self.nodes):
            faults = {node: ["the all-reduce over all ranks did not end"] for node in self.nodes}
        if self.world.is_first and speed:
            write_atomically(self.folder / "network", network.summary(self.world, heard, speed[0]) + "\n")
        return self._judged(faults)

    def _gather(self, kind: str, patience: float) -> list[bytes]:
        """What the nodes told under `kind`; those that have not in time are left out."""
        end = time.monotonic() + patience
        told = []
        for node in self.nodes:
            key = f"{kind}/{node}"
            try:
                self.store.wait([key], timedelta(seconds=max(0.1, end - time.monotonic())))
                told.append(self.store.get(key))
            except RuntimeError:
                continue
        return told

    def _judged(self, faults: verdict.Faults) -> int:
        if self.mine is not None and self.mine.node in faults:
            return _answer(self.folder, self.mine, "bad", faults[self.mine.node])
        return _answer(self.folder, self.mine, "ok", ["well"])


def _answer(folder: Path, mine: Facts | None, kind: str, said: Sequence[str]) -> int:
    if mine is not None:
        text = "; ".join(said)
        write_atomically(folder / f"{mine.node}.{kind}", text + "\n")
        print(f"preflight: {mine.node}: {text}")
    return EXIT_OK if kind == "ok" else EXIT_FAILURE


def _name() -> str:
    return os.environ.get("SLURMD_NODENAME") or socket.gethostname().split(".")[0]
