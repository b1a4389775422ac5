"""Weights of a GPT-2, BART or MemBART for the fusing model (section 11 of its mapping: nothing is lost)."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from finetune.families.fusion.modeling import FusionModel
from finetune.weights import WeightMap, load_mapped, traced
from pretrain.export import named_tensors
from pretrain.model.origins import FRESH, Origin

_PARTS = ("q", "k", "v")
_LAYER = re.compile(r"(encoder|decoder)\.layers\.(\d+)\.(.+)")
_ATTENTIONS = ("self_attn", "persona_attn", "history_attn")
_GPT2_BLOCK = {"ln1": "ln_1", "ln2": "ln_2", "fc1": "mlp.c_fc", "fc2": "mlp.c_proj"}
_BART_BLOCK = {
    "fc1": "fc1",
    "fc2": "fc2",
    "attn_norm": "encoder_attn_layer_norm",
    "ctx_query_norm": "self_attn_layer_norm",
    "final_norm": "final_layer_norm",
}
_STACK = {
    "gpt2": {"tok": "transformer.wte", "pos": "transformer.wpe", "ln_f": "transformer.ln_f"},
    "membart": {
        "pos": "model.decoder.embed_positions",
        "ln_emb": "model.decoder.layernorm_embedding",
    },
}
_SHARED = "model.shared.weight"


def load(model: FusionModel, source: Any, taken: WeightMap, new_rows: str) -> WeightMap:
    """Fill `model` from a body of its kind.

    Args:
        source: a `GPT2LMHeadModel` or `MemBartForConditionalGeneration` with at most as many words.
        taken: where the tensors of `source` itself came from.
        new_rows: what words that `source` does not have start from, `mean` or `zero`.
    """
    given = dict(named_tensors(source))
    words = "transformer.wte.weight" if model.is_gpt2 else _SHARED
    added = model.shape.vocabulary - len(given[words])
    given[words] = _widened(given[words], added, new_rows)
    if model.is_gpt2:
        given = _split(given)
    else:
        bias = given["final_logits_bias"]
        given["final_logits_bias"] = torch.cat([bias, bias.new_zeros(1, added)], dim=1)
    name_of = _gpt2_name if model.is_gpt2 else _bart_name

    def source_of(name: str) -> str | None:
        found = name_of(name)
        return found if found in given else None

    def unused(name: str) -> str | None:
        if ".encoder_attn." in name and model.config.shared_attention:
            return "model.shared_attention: contexts use the attention of the reply"
        if name.endswith(("self_attn_layer_norm.weight", "self_attn_layer_norm.bias")):
            return "layout parallel has one norm after its attentions"
        return None

    found = load_mapped(model, given, source_of, backbone=taken.source, unused=unused)
    rows = tuple(
        _noted(origin, f"{added} rows added ({new_rows})" if added else "", words) for origin in found.tensors
    )
    return traced(dataclasses.replace(found, tensors=rows), taken)


def _widened(table: Tensor, added: int, how: str) -> Tensor:
    row = table.mean(dim=0) if how == "mean" else torch.zeros_like(table[0])
    return torch.cat([table, row.expand(added, -1)])


def _split(given: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """GPT-2's matrices `[in, out]` as `[out, in]`, and its joint projection as three."""
    found: dict[str, Tensor] = {}
    for name, tensor in given.items():
        if ".c_attn." in name:
            for part, piece in zip(_PARTS, tensor.chunk(3, dim=-1), strict=True):
                found[f"{name} ({part})"] = piece.t().contiguous() if piece.dim() == 2 else piece
        elif ".c_proj.weight" in name or ".c_fc.weight" in name:
            found[name] = tensor.t().contiguous()
        else:
            found[name] = tensor
    return found


def _gpt2_name(name: str) -> str:
    """Of a tensor of ours that in a GPT-2; words that are in none lead nowhere."""
    layer = _LAYER.fullmatch(name)
    if not layer:
        part, kind = name.split(".")[-2:] if "." in name else (name, "")
        return f"{_STACK['gpt2'].get(part, part)}.{kind}"
    _, number, rest = layer.groups()
    block = f"transformer.h.{number}"
    first, *inner, kind = rest.split(".")
    if first in _ATTENTIONS:
        if inner == ["out"]:
            return f"{block}.attn.c_proj.{kind}"
        return f"{block}.attn.c_attn.{kind} ({inner[0]})"
    return f"{block}.{_GPT2_BLOCK.get(first, first)}.{kind}"


def _bart_name(name: str) -> str:
    """The same in a MemBART."""
    if name in ("encoder.embed_tokens.weight", "decoder.tok.weight", "lm_head.weight"):
        return _SHARED
    if name.startswith("encoder."):
        return f"model.{name}"
    layer = _LAYER.fullmatch(name)
    if not layer:
        part, _, kind = name.removeprefix("decoder.").partition(".")
        return f"{_STACK['membart'].get(part, part)}.{kind}" if kind else name
    _, number, rest = layer.groups()
    block = f"model.decoder.layers.{number}"
    first, *inner, kind = rest.split(".")
    if first in _ATTENTIONS:
        theirs = "self_attn" if first == "self_attn" else "encoder_attn"
        return f"{block}.{theirs}.{inner[0]}_proj.{kind}"
    return f"{block}.{_BART_BLOCK.get(first, first)}.{kind}"


def _noted(origin: Origin, widened: str, words: str) -> Origin:
    """A row of the report that says what happened to the tensor on the way; `words` were `widened`."""
    notes = [widened] if origin.source == words and widened else []
    if origin.source != FRESH and (".persona_attn." in origin.name or ".history_attn." in origin.name):
        notes.append("a copy")
    return dataclasses.replace(origin, note="; ".join(notes))
