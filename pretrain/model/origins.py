"""Where every tensor of a loaded model came from: the weight-mapping report."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from pretrain.files import write_atomically
from pretrain.model.convert import FREE_OF_CHOICE, MEMORY_BIAS, SHARED, TIED, Checkpoint, twin

FRESH = "fresh"
WEIGHTS_FILE = "weights.json"


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
    """Every tensor of the model, and of the source every one that was not taken: none is lost in silence."""

    source: str
    """What the weights were taken from, as a person names it."""
    tensors: tuple[Origin, ...]
    unused: Mapping[str, str] = field(default_factory=dict)
    """Name in the source's files -> why it was not taken."""

    @property
    def text(self) -> str:
        """How many tensors and parameters came from where; what was changed on the way, fresh or unused."""
        taken = [origin for origin in self.tensors if origin.source != FRESH]
        fresh = [origin for origin in self.tensors if origin.source == FRESH]
        lines = [
            f"weights from {self.source}: {len(taken)} tensors ({_parameters(taken):,} parameters), "
            f"{len(fresh)} fresh ({_parameters(fresh):,})"
        ]
        for note, names in _by_reason((origin.name, origin.note) for origin in taken if origin.note):
            more = f" and {len(names) - 1} more" if len(names) > 1 else ""
            lines.append(f"  taken   {names[0]}{more}: {note}")
        for note, names in _by_reason((origin.name, origin.note) for origin in fresh):
            lines += (f"  fresh   {line}" for line in _by_pattern(names, note))
        for reason, names in _by_reason(self.unused.items()):
            lines += (f"  unused  {line}" for line in _by_pattern(names, reason))
        return "\n".join(lines)

    def save(self, folder: Path) -> None:
        """Write the whole map as `WEIGHTS_FILE`."""
        content = json.dumps(asdict(self), indent=1) + "\n"
        write_atomically(folder / WEIGHTS_FILE, content)


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


def _parameters(origins: Iterable[Origin]) -> int:
    return sum(torch.Size(origin.shape).numel() for origin in origins)


def _by_reason(pairs: Iterable[tuple[str, str]]) -> Iterable[tuple[str, list[str]]]:
    """(name, reason) -> (reason, its names), in the order in which they come."""
    found: dict[str, list[str]] = {}
    for name, reason in pairs:
        found.setdefault(reason, []).append(name)
    return found.items()


def _by_pattern(names: Iterable[str], reason: str) -> Iterable[str]:
    """A line for all names that differ by the number of a layer alone."""
    found: dict[str, int] = {}
    for name in names:
        pattern = ".".join("*" if part.isdigit() else part for part in name.split("."))
        found[pattern] = found.get(pattern, 0) + 1
    why = f": {reason}" if reason else ""
    return [f"{pattern} ({_tensors(number)}){why}" for pattern, number in found.items()]


def _tensors(number: int) -> str:
    return "1 tensor" if number == 1 else f"{number} tensors"
