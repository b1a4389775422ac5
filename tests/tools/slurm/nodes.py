"""Ranks that examine made-up nodes, a rank a node: targets for `tests.support.forked`."""

from __future__ import annotations

import json
import os
import time
from datetime import timedelta
from pathlib import Path

NODES = ("n0", "n1", "n2")


def node(folder: Path, recipe: Path, behaviour: dict[str, str], seconds: int) -> int:
    """Examine this rank's node, unless `behaviour` has another mind for it.

    `absent`: it never comes; `blind`: it does not see the shards; `mute`: it tells its facts and then hangs.

    Args:
        seconds: that the examination may take.
    """
    name = NODES[int(os.environ["RANK"])]
    os.environ.update(
        LOCAL_RANK="0",
        SLURMD_NODENAME=name,
        MEMBART_NODES=" ".join(NODES),
        SITE_PREFLIGHT_SECONDS=str(seconds),
        SITE_MIN_FREE_GB="0.001",
        SITE_MIN_TMP_GB="0.001",
        SITE_LEAD_SECONDS="77",
    )
    from tools.slurm.preflight.rank import examine

    words, mine = ["pretrain", str(recipe)], behaviour.get(name)
    if mine == "absent":
        return 0
    if mine == "blind":
        words.append(f"data.shards=[{json.dumps(str(folder / 'nowhere'))}]")
    if mine == "mute":
        return tell_and_hang(folder, name, words, seconds)
    return examine(folder, folder / "run", words)


def tell_and_hang(folder: Path, name: str, words: list[str], seconds: int) -> int:
    import torch.distributed as dist

    from pretrain.distributed import detect
    from tools.slurm.preflight.facts import Limits, look

    world = detect()
    store = dist.TCPStore(
        world.address, world.port, world.size, False, timedelta(seconds=60), wait_for_workers=False
    )
    store.set(f"facts/{name}", look(name, folder, folder / "run", words, Limits.read()).to_json())
    time.sleep(3 * seconds)
    return 0
