"""The map of where every tensor of a fine-tuned model came from, and what of the backbone was not taken."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

import torch
from torch import Tensor, nn

from finetune.backbone import Backbone
from pretrain.errors import CheckpointError
from pretrain.export import named_tensors
from pretrain.model.convert import is_memory, twin
from pretrain.model.origins import FRESH, Origin, WeightMap

__all__ = ["WeightMap", "all_fresh", "from_backbone", "load_mapped", "traced"]


def load_mapped(
    model: nn.Module,
    weights: Mapping[str, Tensor],
    source_of: Callable[[str], str | None],
    *,
    backbone: str,
    unused: Callable[[str], str | None],
    shared: Mapping[str, str] | None = None,
) -> WeightMap:
    """Copy a backbone's tensors into a model by name and report on each.

    Args:
        source_of: name of a model tensor -> name of the backbone tensor it starts from; None: stays fresh.
        backbone: what to call the source in the report.
        unused: name of a backbone tensor that nobody took -> why that is right; None raises.
        shared: names of backbone tensors that are another name of one that was taken (ties).

    Raises:
        CheckpointError: a tensor is missing, has another shape, or is left over without a reason.
    """
    places = named_tensors(model)
    origins, taken = [], set()
    with torch.no_grad():
        for name, place in places.items():
            source = source_of(name)
            if source is None:
                origins.append(Origin(name, tuple(place.shape), FRESH))
                continue
            if source not in weights:
                raise CheckpointError(f"no tensor {source} for {name}", where=backbone)
            if weights[source].shape != place.shape:
                found, wanted = tuple(weights[source].shape), tuple(place.shape)
                raise CheckpointError(f"{source} is {found}, {name} needs {wanted}", where=backbone)
            place.copy_(weights[source])
            taken.add(source)
            origins.append(Origin(name, tuple(place.shape), source))
    left: dict[str, str] = {}
    for name in weights:
        if name in taken:
            continue
        twin = (shared or {}).get(name)
        reason = f"the same as {twin}" if twin in taken else unused(name)
        if reason is None:
            raise CheckpointError(f"tensor {name} would be dropped", where=backbone, mend="report this")
        left[name] = reason
    return WeightMap(backbone, tuple(origins), left)


def from_backbone(model: nn.Module, backbone: Backbone) -> WeightMap:
    """The map of a model that has its backbone's own names, as `finetune.bodies` makes them.

    From plain BART the memory stream starts from BART's twins; see `pretrain.model.convert`.
    """
    if backbone.is_scratch:
        return all_fresh(model, backbone)
    from_bart = backbone.config.model_type == "bart"
    rows = []
    for name, tensor in named_tensors(model).items():
        origin = (twin(name) or (FRESH if is_memory(name) else name)) if from_bart else name
        note = "the token stream's twin" if from_bart and twin(name) else ""
        rows.append(Origin(name, tuple(tensor.shape), origin, note))
    return WeightMap(backbone.place, tuple(rows), backbone.unused)


def all_fresh(model: nn.Module, backbone: Backbone) -> WeightMap:
    """The map of a model that took nothing of its backbone."""
    rows = (Origin(name, tuple(tensor.shape), FRESH) for name, tensor in named_tensors(model).items())
    return WeightMap(backbone.place, tuple(rows))


def traced(found: WeightMap, first: WeightMap) -> WeightMap:
    """`found` by where its sources, the tensors of `first`, came from themselves, with the notes of both."""
    named = {origin.name: origin for origin in first.tensors}
    rows = (_through(origin, named.get(origin.source)) for origin in found.tensors)
    return WeightMap(found.source, tuple(rows), {**first.unused, **found.unused})


def _through(origin: Origin, first: Origin | None) -> Origin:
    if first is None:
        return origin
    return replace(origin, source=first.source, note="; ".join(filter(None, (first.note, origin.note))))
