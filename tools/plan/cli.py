"""`membart plan`: what a recipe needs on a cluster, before an hour of it is spent."""

from __future__ import annotations

import json
from typing import Annotated

import typer


def plan(
    recipe: Annotated[str, typer.Argument(help="A shipped recipe, or a YAML file.")],
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Changes, e.g. data.lanes=64.")
    ] = None,
    gpu: Annotated[str, typer.Option(help="h100, h200 or a100-80.")] = "h100",
    nodes: Annotated[int, typer.Option(min=1, help="Machines.")] = 1,
    gpus_per_node: Annotated[int, typer.Option(min=1, help="Devices of one machine.")] = 8,
    zero: Annotated[
        int | None, typer.Option(min=0, max=3, help="ZeRO stage; the recipe's configuration unless given.")
    ] = None,
    bandwidth: Annotated[
        float | None,
        typer.Option(
            min=0.01, help="GB/s into a node, all adapters together; one adapter a GPU unless given."
        ),
    ] = None,
    nvlink: Annotated[
        float | None, typer.Option(min=0.01, help="GB/s between GPUs of a node, one way; the data sheet's.")
    ] = None,
    storage: Annotated[float, typer.Option(min=0.001, help="GB/s that the storage writes.")] = 1.25,
    memory: Annotated[float | None, typer.Option(min=0.1, help="GB of a GPU; the data sheet's.")] = None,
    headroom: Annotated[
        float, typer.Option(min=0, max=0.9, help="Share of it kept for context, libraries, fragmentation.")
    ] = 0.1,
    peak: Annotated[
        float | None, typer.Option(min=0.001, help="TFLOP/s in the recipe's precision; the data sheet's.")
    ] = None,
    utilization: Annotated[
        float, typer.Option(min=0.01, max=1, help="Share of the peak that training reaches.")
    ] = 0.35,
    link_utilization: Annotated[
        float, typer.Option(min=0.01, max=1, help="Share of the links that collectives reach.")
    ] = 0.8,
    launch: Annotated[float, typer.Option(min=0, help="Microseconds that starting a kernel takes.")] = 6.0,
    as_json: Annotated[bool, typer.Option("--json", help="One line of JSON.")] = False,
) -> None:
    """What a pretraining needs on a cluster: memory, traffic, speed, days, storage; and what to change.

    Memory is predicted from shapes and held to measurements; times rest on the assumptions printed with them
    (docs/planning.md).
    """
    from pretrain import recipe as recipes
    from tools.plan import report
    from tools.plan.case import subject
    from tools.plan.cluster import GIGA, cluster

    def giga(figure: float | None) -> float | None:
        return None if figure is None else figure * GIGA

    machines = cluster(
        gpu,
        nodes,
        gpus_per_node,
        peak=None if peak is None else peak * 1e12,
        memory=giga(memory),
        link=giga(nvlink),
        network=giga(bandwidth),
        storage=storage * GIGA,
        utilization=utilization,
        link_utilization=link_utilization,
        launch=launch * 1e-6,
        headroom=headroom,
    )
    stage = None if zero is None else f"zero{zero}"
    found = report.plan(subject(recipes.load(recipe, overrides or ()), machines, stage))
    print(json.dumps(found.as_dict()) if as_json else found.text)
