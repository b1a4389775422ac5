"""What to look at in evaluation: how much each source weighs in each layer, and what each is worth.

`source_weight_by_layer/SOURCE/LAYER` is the share of a source in a layer, as in the paper's Figure 2: of `sw`
and `dw` the weights over their sum (of `dw` the mean over dimensions), of `linear` the norm of the source's
block of the matrix over the sum of the norms. The other fusions have no weights. Shares hide how large the
weights are: `source_sum_by_layer/least/LAYER` is the least size of their sum over the dimensions, near which
the paper's form has its pole, and which in the released form is three times the scale of the layer's output.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from finetune.batch import TurnBatch
from finetune.families.fusion.fusing import Linear, Weighted, away_from_zero
from finetune.families.fusion.modeling import FusionModel
from pretrain.model.loss import IGNORED

_SHARE, _SUM = "source_weight_by_layer/", "source_sum_by_layer/"


def source_weights(model: FusionModel) -> dict[str, float]:
    """The figures above by name, layers from 1; {} where nothing is weighed."""
    found: dict[str, float] = {}
    for number, layer in enumerate(model.decoder.layers, 1):
        fusion = getattr(layer, "fusion", None)
        shares = _shares(fusion)
        for source, share in zip(model.config.fused, shares, strict=False):
            found[f"{_SHARE}{source}/{number}"] = share
        if isinstance(fusion, Weighted) and fusion.norm != "softmax":
            sums = fusion.weight.view(fusion.sources, -1).sum(dim=0)
            found[f"{_SUM}least/{number}"] = float(sums.abs().min())
    return found


def _shares(fusion: Any) -> list[float]:
    if isinstance(fusion, Weighted):
        factors = fusion.factors(torch.ones(1, fusion.sources, dtype=torch.bool, device=fusion.weight.device))
        factors = factors[0] / away_from_zero(factors[0].sum(dim=0, keepdim=True))
        return [float(share) for share in factors.detach().mean(dim=1)]
    if isinstance(fusion, Linear):
        blocks = fusion.mix.weight.chunk(fusion.sources, dim=1)
        norms = torch.stack([block.float().norm() for block in blocks])
        return (norms / norms.sum()).tolist()
    return []


def gather(model: FusionModel, batch: TurnBatch, memory: Tensor) -> dict[str, Tensor]:
    """Figures of each row, `[A]`: cross-entropy of the reply's words, whole and with a source hidden."""
    contexts = model.contexts(model.read(batch, memory), batch)
    labels = batch.labels.masked_fill(batch.labels == model.config.eos_token_id, IGNORED)
    found = {
        "words": (labels != IGNORED).sum(dim=1),
        "nll": model.nll(model.reply_states(contexts, batch), labels, per_row=True),
    }
    if model.config.inputs == "sources":
        for number, name in enumerate(model.config.contexts):
            without = list(contexts)
            hidden = torch.zeros_like(contexts[number].present)
            without[number] = dataclasses.replace(contexts[number], present=hidden)
            states = model.reply_states(without, batch)
            found[f"nll_without_{name}"] = model.nll(states, labels, per_row=True)
    shares = source_weights(model)
    rows = found["nll"]
    return found | {name: torch.full_like(rows, share) for name, share in shares.items()}


def summarize(gathered: Mapping[str, Tensor]) -> dict[str, float]:
    """Perplexities of the words (the end apart, which is nearly free), and the shares of the sources."""
    words = gathered["words"].sum().clamp(min=1)
    found = {
        name.replace("nll", "perplexity_content"): float((values.double().sum() / words).exp())
        for name, values in gathered.items()
        if name.startswith("nll")
    }
    shares = {name: values for name, values in gathered.items() if name.startswith((_SHARE, _SUM))}
    return found | {name: float(values.mean()) for name, values in shares.items()}
