"""Where every tensor of a loaded model came from: the weight-mapping report."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from pretrain.model.convert import FREE_OF_CHOICE, MEMORY_BIAS, SHARED, TIED, Checkpoint, twin

FRESH = "fresh"


@dataclass(frozen=True)
class Origin:
    """One tensor of the model."""

    name: str
    shape: tuple[int, ...]
    source: str
    """Name in the source's files, or `fresh`."""
    note: str = ""
    """What was done on the way, or how a fresh tensor was drawn."""


@dataclass(frozen=True)
class WeightMap:
    """Every tensor of the model, and every one of the source that was not taken."""

    source: str
    tensors: tuple[Origin, ...]
    unused: Mapping[str, str]
    """Name in the source's files -> why it was not taken."""

    @property
    def text(self) -> str:
        """A line for each way in which tensors came, and each reason why some did not."""
        groups: dict[str, list[str]] = {}
        for origin in self.tensors:
            note = origin.note or "as in the source"
            groups.setdefault(f"fresh: {note}" if origin.source == FRESH else note, []).append(origin.name)
        for name, reason in self.unused.items():
            groups.setdefault(f"not taken: {reason}", []).append(name)
        width = max(len(str(len(names))) for names in groups.values())
        return "\n".join(
            f"{len(names):>{width}}  {what}  ({names[0]}{', ...' if len(names) > 1 else ''})"
            for what, names in groups.items()
        )


def trace(found: Checkpoint, fitted: Mapping[str, Tensor], shapes: Mapping[str, torch.Size]) -> WeightMap:
    """The map of a model with the tensors `shapes` (tied ones once) that was loaded from `fitted`.

    Args:
        fitted: what `convert.fit` made of `found`; tensors that it passed on are the same objects.
    """
    stored = {id(tensor): found.names[name] for name, tensor in found.weights.items()}
    origins, taken = [], set()
    for name, shape in shapes.items():
        source, note = _origin(name, found, fitted.get(name), stored)
        origins.append(Origin(name, tuple(shape), source, note))
        taken.add(source)
    unused = dict.fromkeys(found.leftovers, "holds no weight")
    for name in found.weights:
        if found.names[name] not in taken:
            # `fit` refuses everything else that has no place
            assert name in TIED, f"{name} would be dropped"
            unused[found.names[name]] = f"the same matrix as {SHARED}, which is stored once"
    return WeightMap(found.name, tuple(origins), unused)


def _origin(
    name: str, found: Checkpoint, tensor: Tensor | None, stored: Mapping[int, str]
) -> tuple[str, str]:
    if tensor is None:
        return FRESH, "zeros" if name in FREE_OF_CHOICE else "drawn; offsets 0, gains 1"
    if id(tensor) in stored:
        return stored[id(tensor)], ""
    origin = twin(name)
    if origin is not None and origin in found.weights and torch.equal(found.weights[origin], tensor):
        return found.names[origin], "a copy of its twin in the token stream"
    assert name == MEMORY_BIAS, f"nobody knows where {name} came from"
    return found.names[name], f"resized from {found.weights[name].shape[1]} slots"
