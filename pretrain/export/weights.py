"""A checkpoint's weights into a model, or into safetensors files, a tensor at a time."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import GenerationConfig
from transformers.initialization import no_init_weights

from pretrain.checkpoint import Checkpoint
from pretrain.export.kind import DEFAULT, Kind

SHARD_BYTES = 5 * 10**9
WEIGHTS = "model.safetensors"
GENERATION_FILE = "generation_config.json"


def load_model(saved: Checkpoint, kind: Kind = DEFAULT) -> Any:
    """The model of a checkpoint, float32, in eval mode, on the CPU."""
    config = kind.config(saved)
    with no_init_weights():
        model = kind.build(config)
    model.tie_weights()  # which is part of what was left out
    restore_weights(model, saved)
    return model.eval()


def restore_weights(model: Any, saved: Checkpoint) -> None:
    """Put a checkpoint's weights, trained and frozen, into a model that no engine has wrapped yet.

    Its generation settings come along where the checkpoint has them.
    """
    places = named_tensors(model)
    with torch.no_grad():
        for name, value in saved.weights({name: place.shape for name, place in places.items()}):
            places[name].copy_(value)
    if (saved.path / GENERATION_FILE).is_file():
        model.generation_config = GenerationConfig.from_pretrained(saved.path)


def named_tensors(model: torch.nn.Module) -> dict[str, Tensor]:
    """Parameters, tied ones once, and persistent buffers, by name."""
    stored = set(model.state_dict(keep_vars=True))
    buffers = {name: buffer for name, buffer in model.named_buffers() if name in stored}
    return {**dict(model.named_parameters()), **buffers}


def write(
    saved: Checkpoint,
    shapes: Mapping[str, torch.Size],
    folder: Path,
    *,
    dtype: torch.dtype,
    shard_bytes: int = SHARD_BYTES,
) -> None:
    """Write the named tensors as `model.safetensors`, or past `shard_bytes` as several files and an index.

    The bytes depend on the values alone: not on how many ranks, at which stage, saved them. The tensors of
    one file are in memory at a time.
    """
    groups = list(_groups(shapes, dtype.itemsize, shard_bytes))
    count = len(groups)
    names = [WEIGHTS if count == 1 else f"model-{i + 1:05d}-of-{count:05d}.safetensors" for i in range(count)]
    for file, group in zip(names, groups, strict=True):
        tensors = {name: value.to(dtype).contiguous() for name, value in saved.weights(group)}
        save_file(tensors, folder / file, metadata={"format": "pt"})
    if count > 1:
        index: dict[str, Any] = {
            "metadata": {"total_size": sum(shape.numel() for shape in shapes.values()) * dtype.itemsize},
            "weight_map": {name: file for file, group in zip(names, groups, strict=True) for name in group},
        }
        (folder / f"{WEIGHTS}.index.json").write_text(json.dumps(index, indent=1), encoding="utf-8")


def _groups(shapes: Mapping[str, torch.Size], itemsize: int, limit: int) -> Iterator[dict[str, torch.Size]]:
    group: dict[str, torch.Size] = {}
    size = 0
    for name, shape in shapes.items():
        needed = shape.numel() * itemsize
        if group and size + needed > limit:
            yield group
            group, size = {}, 0
        group[name] = shape
        size += needed
    yield group
