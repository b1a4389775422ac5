"""Run by `test_checkpoint.py` in a process that cannot unpickle: reads all that a checkpoint holds."""

from __future__ import annotations

from pathlib import Path

from pretrain import checkpoint
from pretrain.engine import MOMENTS
from pretrain.export import load_model, named_tensors


def refuse() -> None:
    raise AssertionError("something is being unpickled")


def main(run_dir: Path) -> None:
    saved = checkpoint.resolve_whole(run_dir)
    weights = {name: tensor for name, tensor in named_tensors(load_model(saved)).items() if tensor.numel()}
    trained = [name for name in weights if saved.has("master", name)]
    moments = [saved.slice(key, name, 0, weights[name].numel()) for key in MOMENTS for name in trained]
    assert len(moments) == 2 * len(trained) > 0
    assert saved.memory(list(range(4))).any()
    assert saved.state["update"] == saved.update == 2
