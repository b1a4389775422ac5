"""Writes small checkpoints; run in processes that `test_checkpoint.py` kills or whose disk it fills."""

from __future__ import annotations

import itertools
import json
import os
import resource
import shutil
from pathlib import Path

import torch

from pretrain import attempt, checkpoint
from pretrain.attempt import Attempt
from pretrain.checkpoint import Checkpoint, Draft, Mark
from tests.support import faults

WEIGHT = torch.arange(12.0)


def write(mine: Attempt, update: int, cuts: tuple[int, ...] = (5,)) -> Checkpoint:
    """One 12-element parameter over len(cuts) + 1 ranks, and the memory of as many lanes."""
    draft = Draft(mine, update)
    draft.begin()
    files: dict[str, Mark] = {}
    edges = [0, *cuts, 12]
    for rank, (start, stop) in enumerate(itertools.pairwise(edges)):
        pieces = {
            f"{key}/layer.weight@{start}": WEIGHT[start:stop] + shift
            for key, shift in (("master", 0), ("exp_avg", 100))
        }
        files |= draft.tensors(f"optimizer-{rank:05d}.safetensors", pieces)
        files |= draft.tensors(
            f"memory-{rank:05d}.safetensors", {str(rank): torch.full((2, 3, 4), float(rank))}
        )
    files |= draft.tensors("frozen.safetensors", {"bias": torch.tensor([7.0])})
    files |= draft.text("state.json", json.dumps({"update": update}))
    return draft.commit(files)


def save(run_dir: Path, update: int, killed_at: int | None = None) -> int:
    """Start a run again and save once; killed just before the `killed_at`-th change of a file or folder."""
    if killed_at is not None:
        faults.when("change", "", faults.die, killed_at)
    mine = attempt.claim(run_dir)
    write(mine, update)
    checkpoint.prune(mine, keep_last=2, keep_every=0)
    return 0


def killed_everywhere(folder: Path) -> int:
    """Save in copies of a run, each killed one change later; prints what the kill left, and a new start made.

    Before: checkpoints 2, 4 and 6, and what an earlier start left half-written.
    """
    start = folder / "start"
    for update in (2, 4, 6):
        write(attempt.claim(start), update)
    left = start / "checkpoints" / "writing-000001"
    left.mkdir()
    (left / "file").touch()
    for moment in itertools.count(1):
        run_dir = shutil.copytree(start, folder / f"run{moment}")
        child = os.fork()
        if not child:
            os._exit(save(run_dir, 8, moment))
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        for path in (run_dir / "checkpoints").glob("step-*"):
            Checkpoint(path).verify()
        after_kill = updates(run_dir)
        found = checkpoint.newest_whole(run_dir).checkpoint
        save(run_dir, 10)
        report = {
            "status": status,
            "whole": after_kill,
            "newest": found.update if found else None,
            "then": updates(run_dir),
            "names": sorted(path.name for path in (run_dir / "checkpoints").iterdir()),
        }
        print(json.dumps(report))
        shutil.rmtree(run_dir)
        if status == 0:
            return 0
    return 1


def updates(run_dir: Path) -> list[int]:
    return [saved.update for saved in checkpoint.committed(run_dir)]


def fill(run_dir: Path) -> int:
    """Save on a disk that takes one byte more each time; prints what came of it."""
    save(run_dir, 2)
    save(run_dir, 4)
    largest = max(file.stat().st_size for file in (run_dir / "checkpoints").glob("step-*/*"))
    mine, refused = attempt.claim(run_dir), 0
    for size in range(0, largest, max(largest // 25, 1)):
        faults.FileLimit(size)()
        try:
            write(mine, 6)
        except OSError:
            refused += 1
        faults.FileLimit(resource.RLIM_INFINITY)()
    for saved in checkpoint.committed(run_dir):
        saved.verify()
    kept = updates(run_dir)
    write(mine, 8)
    checkpoint.prune(mine, keep_last=2, keep_every=0)
    print(json.dumps({"refused": refused, "kept": kept, "then": updates(run_dir)}))
    return 0
