"""Which nodes are bad: every node compares the same facts, and comes to the same answer."""

from __future__ import annotations

import statistics
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from tools.slurm.preflight.facts import Facts, Limits

Faults = dict[str, list[str]]
"""What is wrong with each bad node."""


@dataclass(frozen=True)
class Links:
    """The exchanges of one node with its neighbours."""

    node: str
    gb_per_second: dict[str, float] = field(default_factory=dict)
    """One way, by the neighbour's name, of the exchanges that worked."""
    failed: dict[str, str] = field(default_factory=dict)


def of_facts(facts: Sequence[Facts], limits: Limits) -> Faults:
    """A node's own problems; of nodes without any, where one differs from what most of them have.

    Where no more than half agree, nobody can tell who is wrong: all of them are named.
    """
    faults: Faults = defaultdict(list)
    for node in facts:
        faults[node.node] += node.problems
    sound = [node for node in facts if not node.problems]
    _differences(
        {node.node: node.versions for node in sound}, "{name} is {mine}, on most nodes {most}", faults
    )
    _differences({node.node: node.inputs for node in sound}, "{name} is not what most nodes read", faults)
    speeds = [speed for node in sound for speed in node.gpu_tflops]
    for node in sound:
        for number, speed in enumerate(node.gpu_tflops):
            if speed < limits.slow_share * statistics.median(speeds):
                usual = statistics.median(speeds)
                faults[node.node].append(f"GPU {number} does {speed} TFLOP/s, the others {usual}")
    return {node: said for node, said in faults.items() if said}


def of_links(links: Sequence[Links], limits: Limits) -> Faults:
    """Nodes without one exchange that worked, and nodes all of whose links are slow.

    Of two nodes that fail with each other, the one that works with somebody else is not to blame.
    """
    faults: Faults = {}
    speeds = [speed for node in links for speed in node.gb_per_second.values()]
    floor = max(limits.gb_per_second, limits.slow_share * statistics.median(speeds) if speeds else 0.0)
    for node in links:
        found = node.gb_per_second
        if not found and node.failed:
            faults[node.node] = [f"exchange with {other}: {why}" for other, why in node.failed.items()]
        elif found and max(found.values()) < floor:
            told = ", ".join(f"{speed:.3g} GB/s with {other}" for other, speed in found.items())
            faults[node.node] = [f"slow network: {told}; at least {floor:.3g} is expected"]
    return faults


def _differences(values: Mapping[str, Mapping[str, str]], form: str, faults: Faults) -> None:
    for name in dict.fromkeys(name for found in values.values() for name in found):
        counts = Counter(found.get(name, "absent") for found in values.values())
        if len(counts) == 1:
            continue
        most, number = counts.most_common(1)[0]
        for node, found in values.items():
            mine = found.get(name, "absent")
            if 2 * number <= len(values):
                faults[node].append(f"{name} differs among the nodes ({mine} here)")
            elif mine != most:
                faults[node].append(form.format(name=name, mine=mine, most=most))
