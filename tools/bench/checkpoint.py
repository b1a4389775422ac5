"""`membart bench checkpoint`: how long training stands still for a save, against one training step.

Plain steps, a save that is waited for and a save beside training take turns round by round, so that whatever
else the machine does hits all of them alike. The stall of a save beside training is all that the training
thread spends on it, from the copy to the last agreement; what the writing takes from the steps that go on
meanwhile (cores, memory and disk are shared) is told apart. Saves are those of a run, commit and pruning
included.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tools.bench.model import Device, Json, synchronize
from tools.bench.replay import Setting, prepare

if TYPE_CHECKING:
    from pretrain.attempt import Attempt
    from pretrain.saver import Save, Saver

TARGET = 1.0


@dataclass(frozen=True)
class Round:
    """One turn; seconds."""

    step: float
    """A plain training step, median of the turn."""
    waited: float
    """Stall of a save that training waits for."""
    stall: float
    """Stall of a save beside training."""
    drag: float
    """By how much the steps beside it were longer than plain ones, together."""
    beside: int
    """How many they were."""
    writing: float
    """What that save took in all: copying, writing, committing."""
    gigabytes: float


def checkpoint(
    shape: Annotated[str, typer.Option(help="base, large or small.")] = "small",
    batch: Annotated[int, typer.Option(min=1, help="Agents.")] = 4,
    window: Annotated[int, typer.Option(min=3, help="Tokens of a segment, both sides.")] = 256,
    horizon: Annotated[int, typer.Option(min=1, help="Timesteps of a step's rollout.")] = 6,
    dtype: Annotated[str, typer.Option(help="float32, or bfloat16: autocast over float32.")] = "float32",
    device: Device = "cpu",
    deepspeed: Annotated[str, typer.Option(help="A name in ds_configs/, or a JSON file.")] = "zero1",
    steps: Annotated[int, typer.Option(min=1, help="Plain steps of a round.")] = 3,
    rounds: Annotated[int, typer.Option(min=1, help="Every form takes so many turns.")] = 3,
    folder: Annotated[
        Path | None, typer.Option(help="Where checkpoints go for a while.  [default: a temporary folder]")
    ] = None,
    as_json: Json = False,
) -> None:
    """The stall of a save, beside training and waited for, against one training step."""
    setting = Setting(shape, batch, window, dtype, device)
    setting.check()
    with tempfile.TemporaryDirectory(dir=folder) as place:
        found = measure(setting, horizon, deepspeed, steps, rounds, Path(place))
    title = f"{shape}, {batch} agents x {horizon} x {window} tokens, {dtype} on {device}, {deepspeed}"
    if as_json:
        print(json.dumps({"title": title, "rounds": [asdict(turn) for turn in found]}))
        return
    print(f"{title}; {found[0].gigabytes:.3f} GB of state")
    print(f"{'medians over rounds':<42}{'seconds':>10}{'steps':>10}")
    rows: list[tuple[str, Callable[[Round], float]]] = [
        ("training step", lambda turn: turn.step),
        ("save waited for: stall", lambda turn: turn.waited),
        ("save beside training: stall", lambda turn: turn.stall),
        ("save beside training: drag on the steps", lambda turn: turn.drag),
        ("save beside training: in all", lambda turn: turn.writing),
    ]
    for label, figure in rows:
        seconds = median(map(figure, found))
        ratio = median(figure(turn) / turn.step for turn in found)
        print(f"{label:<42}{seconds:>10.3f}{ratio:>10.3f}")
    print(f"target of the stall beside training: at most {TARGET:g} step")


def measure(
    setting: Setting, horizon: int, deepspeed: str, steps: int, rounds: int, run_dir: Path
) -> list[Round]:
    """Train and save on one rank; the first save of each kind, which warms up, is not among the rounds."""
    from pretrain import attempt, snapshot

    with training(setting, horizon, deepspeed) as (engine, memory, world, step):
        mine = attempt.claim(run_dir)
        savers = {kind: _saver(mine, world, kind) for kind in (False, True)}
        savers[True].reserve(snapshot.size(engine, memory))
        update = 0

        def save(saver: Saver) -> None:
            from pretrain.saver import Contents

            nonlocal update
            update += 1
            saver.save(update, lambda: Contents(snapshot.shard(engine, memory, [0], 0), {"state.json": "{}"}))

        step()
        found = []
        for turn in range(rounds + 1):
            plain = [_timed(step) for _ in range(steps if turn else 1)]
            save(savers[False])
            [waited] = _checked(savers[False].poll())
            save(savers[True])
            beside: list[float] = []
            ended: list[Save] = []
            while not ended:
                beside.append(_timed(step))
                ended = _checked(savers[True].poll())
            if turn:
                usual = median(plain)
                found.append(
                    Round(
                        step=usual,
                        waited=waited.stall,
                        stall=ended[0].stall,
                        drag=sum(beside) - len(beside) * usual,
                        beside=len(beside),
                        writing=ended[0].seconds,
                        gigabytes=ended[0].bytes / 1e9,
                    )
                )
        for saver in savers.values():
            saver.close()
    return found


@contextmanager
def training(
    setting: Setting, horizon: int, deepspeed: str
) -> Iterator[tuple[Any, Any, Any, Callable[[], None]]]:
    """An engine, the agents' memory, this one-rank world, and a whole training step."""
    import torch

    from pretrain import distributed, recipe
    from pretrain.engine import Engine
    from pretrain.replay import Cell, back_propagate, loss_coefficients

    wanted = recipe.parse(
        {
            "name": "bench",
            "model": {},
            "data": {"shards": [], "lanes": 1, "agents_per_lane": setting.batch},
            "replay": {"horizon": horizon},
            "optimizer": {"lr": 1e-4},
            "train": {
                "steps": 1,
                "deepspeed": deepspeed,
                "precision": "bf16" if setting.dtype == "bfloat16" else "fp32",
            },
        },
        "bench",
    )
    world = distributed.detect()
    distributed.start(world, 600)
    try:
        model, rollout, memory = prepare(setting, horizon)
        engine = Engine(Cell(model), wanted, world)
        engine.train()
        counts = torch.tensor([batch.target_tokens for batch in rollout], device=memory.device)
        coefficients = loss_coefficients(counts, "uniform")
        keys = [("bench", t) for t in range(horizon)]

        def step() -> None:
            with engine.accumulation():
                back_propagate(engine, rollout, memory, coefficients, keys, engine.backward)
            engine.step(1e-4)
            synchronize(memory.device)

        yield engine, memory, world, step
    finally:
        distributed.stop()


def _saver(mine: Attempt, world: Any, asynchronous: bool) -> Saver:
    from pretrain.recipe import CheckpointSection
    from pretrain.saver import Saver

    return Saver(mine, world, CheckpointSection(asynchronous=asynchronous))


def _timed(step: Callable[[], None]) -> float:
    began = time.perf_counter()
    step()
    return time.perf_counter() - began


def _checked(saves: list[Save]) -> list[Save]:
    from pretrain.errors import UserError

    for save in saves:
        if save.path is None:
            raise UserError(save.summary, mend="--folder FOLDER on a disk with room")
    return saves
