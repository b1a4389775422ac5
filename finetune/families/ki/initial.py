"""Fresh weights of the paper's own bodies, as fairseq draws them (fact sheet, section 3.10 A)."""

from __future__ import annotations

import math

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.models.marian.modeling_marian import MarianAttention, MarianDecoder, MarianEncoder

from finetune.families.ki.configuration import HEAD

UNIFORM = 0.1
"""Bound of every weight of the LSTM bodies."""


@torch.no_grad()
def as_fairseq(model: PreTrainedModel, kind: str) -> None:
    """Draw all weights of a model anew from torch's generators; pretrained encoders keep what they have.

    Recurrent bodies: uniform, (-0.1, 0.1). Transformers: words N(0, 1/d), queries, keys and values Xavier
    with gain 1/√2, attention outputs Xavier, everything else torch's default for linear layers.
    """
    if kind in ("lstm", "diffks"):
        for name, parameter in model.named_parameters():
            if not name.startswith(HEAD):
                nn.init.uniform_(parameter, -UNIFORM, UNIFORM)
    own = [part for part in model.modules() if isinstance(part, MarianEncoder | MarianDecoder)]
    for part in own:
        for module in part.modules():
            if isinstance(module, nn.Linear):
                module.reset_parameters()
        for module in part.modules():
            if isinstance(module, MarianAttention):
                for layer in (module.q_proj, module.k_proj, module.v_proj):
                    nn.init.xavier_uniform_(layer.weight, gain=1 / math.sqrt(2))
                nn.init.xavier_uniform_(module.out_proj.weight)
                nn.init.zeros_(module.out_proj.bias)
    for module in model.modules():
        if (
            isinstance(module, nn.Embedding)
            and module.padding_idx is not None
            and module.weight.requires_grad
        ):
            if kind == "transformer":
                nn.init.normal_(module.weight, std=module.embedding_dim**-0.5)
            if kind != "bert":
                module.weight[module.padding_idx] = 0
    # Last, so that the body is the same with and without it.
    for module in getattr(model, HEAD, ()):
        if isinstance(module, nn.Linear):
            module.reset_parameters()
