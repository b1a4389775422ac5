"""A small case with nothing at 0 or 1 by accident: configuration, weights, four timesteps of three agents.

Drawn with numpy's generator, whose stream does not change between versions.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

CONFIG = {
    "vocab_size": 60,
    "d_model": 24,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 3,
    "decoder_attention_heads": 3,
    "encoder_ffn_dim": 40,
    "decoder_ffn_dim": 32,
    "max_position_embeddings": 32,
    "memory_len": 5,
    "dropout": 0.0,
    "init_std": 0.5,
    "pad_token_id": 1,
    "eos_token_id": 2,
}
AGENTS = 3
RESETS = [[1, 1, 0], [0, 0, 0], [0, 1, 0], [0, 0, 1]]
LENGTHS = [(9, 6, 9), (8, 8, 3), (5, 7, 7), (6, 8, 0)]
TARGETS = [(7, 5, 3), (6, 6, 6), (4, 8, 5), (5, 6, 0)]


def weights() -> dict[str, Tensor]:
    """Every tensor of the model with a head by name, float32; tied ones once, as model.shared.weight."""
    rng = np.random.default_rng(20230609)
    d, inner, vocab = CONFIG["d_model"], CONFIG["encoder_ffn_dim"], CONFIG["vocab_size"]
    drawn: dict[str, Tensor] = {}

    def put(name: str, *shape: int, spread: float = 0.3, centre: float = 0.0) -> None:
        drawn[name] = torch.from_numpy(centre + spread * rng.standard_normal(shape)).float()

    def affine(name: str, out: int, into: int, spread: float = 0.3) -> None:
        put(f"{name}.weight", out, into, spread=spread)
        put(f"{name}.bias", out)

    def norm(name: str) -> None:
        put(f"{name}.weight", d, centre=1.0, spread=0.2)
        put(f"{name}.bias", d)

    def stream(at: str, inner: int, prefix: str, attentions: tuple[str, ...], inside: str) -> None:
        for attention in attentions:
            for part in ("k_proj", "v_proj", "q_proj", "out_proj"):
                affine(f"{at}.{attention}.{inside}{part}", d, d)
            norm(f"{at}.{prefix}{attention}_layer_norm")
        affine(f"{at}.{prefix}fc1", inner, d)
        affine(f"{at}.{prefix}fc2", d, inner)
        norm(f"{at}.{prefix}final_layer_norm")

    put("model.shared.weight", vocab, d, spread=0.5)
    put("final_logits_bias", 1, vocab, spread=0.5)
    for side in ("encoder", "decoder"):
        put(f"model.{side}.embed_positions.weight", CONFIG["max_position_embeddings"] + 2, d, spread=0.5)
        norm(f"model.{side}.layernorm_embedding")
    for layer in range(CONFIG["encoder_layers"]):
        stream(f"model.encoder.layers.{layer}", inner, "", ("self_attn",), "")
        stream(f"model.encoder.layers.{layer}", inner, "mem_", ("self_attn",), "mem_")
    for layer in range(CONFIG["decoder_layers"]):
        stream(
            f"model.decoder.layers.{layer}", CONFIG["decoder_ffn_dim"], "", ("self_attn", "encoder_attn"), ""
        )
    put("model.encoder.memory_bias", 1, CONFIG["memory_len"], d, spread=0.5)
    norm("model.encoder.memory_layer_norm")
    affine("model.encoder.memory_gate_net.dense", d, d)
    affine("model.encoder.memory_gate_net.dense2", 1, d)
    return drawn


def memory() -> Tensor:
    """A first memory that is not zero: agents reset at the first step must ignore it. [3, L, d]"""
    rng = np.random.default_rng(7)
    return torch.from_numpy(rng.standard_normal((AGENTS, CONFIG["memory_len"], CONFIG["d_model"])))


def steps() -> list[dict[str, Tensor]]:
    """Four timesteps; agent 2 has run out of data in the last one."""
    rng = np.random.default_rng(11)
    made = []
    for resets, lengths, targets in zip(RESETS, LENGTHS, TARGETS, strict=True):
        ids, mask = _rows(rng, lengths)
        target, target_mask = _rows(rng, targets)
        decoder_ids = torch.cat([torch.full((AGENTS, 1), 2), target[:, :-1]], dim=1)
        labels = target.masked_fill(target_mask == 0, -100)
        labels[0, 1] = -100  # a real position without a target
        made.append(
            {
                "input_ids": ids,
                "attention_mask": mask,
                "resets": torch.tensor(resets),
                "decoder_input_ids": decoder_ids.masked_fill(target_mask == 0, 1),
                "decoder_attention_mask": target_mask,
                "labels": labels,
            }
        )
    return made


def _rows(rng: np.random.Generator, lengths: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    ids = torch.ones(len(lengths), max(lengths), dtype=torch.long)
    for row, length in enumerate(lengths):
        ids[row, :length] = torch.from_numpy(rng.integers(3, CONFIG["vocab_size"], length))
        if length:
            ids[row, 0], ids[row, length - 1] = 0, 2
    return ids, (ids != 1).long()
