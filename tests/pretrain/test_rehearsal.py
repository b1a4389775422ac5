"""The dry batch of the worst shape leaves no trace, and want of memory is told before any data are read."""

from __future__ import annotations

import json
import resource
from pathlib import Path

import pytest
import torch
import yaml

from pretrain import checkpoint, files, out_of_memory, recipe
from pretrain.distributed import World
from pretrain.errors import EXIT_USER_ERROR
from pretrain.pulse import Standing
from tests.pretrain import rehearsal_ranks
from tests.support import forked, tiny

CONFIGURATIONS = ("zero0", "zero1", "zero2", "zero3")
ROOM = 1 << 30
"""Bytes for a run beyond its libraries; one timestep of its agents takes more."""


def confined(rank: int) -> None:
    """A fault: little memory."""
    size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (size + ROOM, resource.RLIM_INFINITY))


def computed(run_dir: Path) -> tuple[list[str], dict[str, str]]:
    """Losses and gradient norms in hex, and the digest of every file of the last checkpoint but its facts."""
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    names = ("loss", "gradient_norm", "memory_gradient_norm", "validation/loss")
    saved = checkpoint.resolve(run_dir)
    return (
        [float(line[name]).hex() for line in lines for name in names if name in line],
        {file.name: files.digest(file) for file in saved.path.glob("*.safetensors")},
    )


def test_training_is_the_same_to_the_last_bit_with_and_without(shards: Path, tmp_path: Path) -> None:
    """Dropout is on, so that a generator that moved would be seen; moments and weights are compared too."""
    forked.run(rehearsal_ranks.main, (tmp_path, shards, CONFIGURATIONS), 2)
    for configuration in CONFIGURATIONS:
        numbers, digests = computed(tmp_path / f"{configuration}-with")
        assert (numbers, digests) == computed(tmp_path / f"{configuration}-without")
        assert len(numbers) == 7
        assert len(digests) == 5


def test_want_of_memory_is_one_line_before_any_data_are_read(shards: Path, tmp_path: Path) -> None:
    file = tmp_path / "recipe.yaml"
    content = tiny.recipe(
        shards, tmp_path, data__agents_per_lane=6000, tracking__mlflow=False, name="too-large"
    )
    file.write_text(yaml.safe_dump(content))
    [(code, output)] = forked.start(forked.pretrain, (str(file),), 1, confined).wait()
    assert code == EXIT_USER_ERROR, output
    assert "Traceback" not in output
    [line] = [line for line in output.splitlines() if line.startswith("error: ")]
    assert line.startswith("error: rehearsal, 24000 agents a rank: out of memory on cpu at an allocation of ")
    assert "set replay.agent_chunks=2 (now 1), or lower data.agents_per_lane (now 6000), or" in line
    assert not (tmp_path / "too-large" / "metrics.jsonl").exists()


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.50 GiB. GPU 0 has"), "2.50 GiB"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 96 bytes."), "96 b"),
        (MemoryError(), "out of memory on cpu -- "),
    ],
)
def test_every_allocator_is_understood(error: Exception, told: str) -> None:
    found = out_of_memory.explain(error, a_recipe(), World(0, 2, 0, "localhost", 1), Standing())
    assert told in str(found)


def test_cures_are_those_that_are_left() -> None:
    two, four = World(0, 2, 0, "localhost", 1), World(0, 4, 0, "localhost", 1)
    assert out_of_memory.cures(a_recipe(train__deepspeed="zero0"), two) == [
        "set replay.agent_chunks=2 (now 1)",
        "lower data.agents_per_lane (now 2)",
        "set train.deepspeed=zero2 (now zero0)",
        "set model.gradient_checkpointing=true",
    ]
    small = a_recipe(
        replay__agent_chunks=1,
        data__agents_per_lane=1,
        train__deepspeed="zero3",
        model__gradient_checkpointing=True,
    )
    assert out_of_memory.cures(small, four) == ["run on more ranks"]
    assert out_of_memory.explain(ValueError("memory"), small, four, Standing()) is None


def a_recipe(**changes: object) -> recipe.Recipe:
    return recipe.parse(tiny.recipe(Path("none"), Path("none"), **changes), "test")
