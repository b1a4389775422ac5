"""Floating-point operations of training, counted from shapes, and what known GPUs can do in a second.

Counted are the matrix products, two operations for a multiplication and its addition; element-wise work,
norms and softmax are a few per mille. Attention counts the rectangle that the configured form computes,
hidden positions included (so the decoder's causal half is not taken off).
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch

from pretrain.model.configuration import MemBartConfig
from pretrain.model.modeling import MemBartForConditionalGeneration
from pretrain.replay import Mode

_PEAKS: tuple[tuple[str, float], ...] = (
    (r"\bH[12]00 NVL\b", 835e12),
    (r"\bH100 PCIe\b", 756e12),
    (r"\bH[12]00\b", 989.4e12),
    (r"\bA100\b", 312e12),
    (r"\bRTX A6000\b", 154.8e12),
)
"""Device names and dense bfloat16 tensor-core FLOP/s of the makers' data sheets; the first match counts."""


@dataclass(frozen=True)
class Forward:
    """FLOPs of one forward pass of one row through a timestep."""

    encoder: float
    """Both streams of every layer, and the gate (Memformers: reader and writer)."""
    decoder: float
    """Without the vocabulary."""
    head: float
    """The projection to the vocabulary."""

    @property
    def total(self) -> float:
        """Of the three parts."""
        return self.encoder + self.decoder + self.head


def forward(config: MemBartConfig, source: float, target: float) -> Forward:
    """Count one timestep of a row with `source` tokens in the encoder and `target` in the decoder."""
    width, slots, visible = config.d_model, config.memory_len, source + config.decoder_slots
    encoder = config.encoder_layers * _encoder_layer(config, source)
    if config.is_memformer:
        encoder += 2 * width**2 * (source + 2 * slots) + 2 * width * slots * source
    else:
        encoder += slots * (width**2 + width)
    decoder_layer = (
        target * (6 * width**2 + 2 * width * config.decoder_ffn_dim)
        + visible * 2 * width**2
        + 2 * width * target * (target + visible)
    )
    return Forward(
        encoder=2 * encoder,
        decoder=2 * config.decoder_layers * decoder_layer,
        head=2 * width * target * config.vocab_size,
    )


def training(config: MemBartConfig, source: float, target: float, *, embedding_trains: bool = True) -> float:
    """Useful FLOPs of training on one segment: forward, and backward at twice that; nothing recomputed.

    Args:
        embedding_trains: whether the tied word embedding takes a gradient; if not, the head's backward is
            one product instead of two.
    """
    passed = forward(config, source, target)
    return 3 * (passed.encoder + passed.decoder) + _head(passed, embedding_trains)


def useful(model: MemBartForConditionalGeneration) -> Callable[[float, float], float]:
    """`training` of this model, as a function of source and target tokens."""
    return partial(training, model.config, embedding_trains=model.model.shared.weight.requires_grad)


def executed(
    config: MemBartConfig,
    source: float,
    target: float,
    *,
    mode: Mode,
    horizon: int,
    embedding_trains: bool = True,
) -> float:
    """FLOPs that the hardware runs for one segment, the mean over a rollout of `horizon` timesteps.

    `replay` adds an encoder forward at every timestep but the last; `checkpoint` adds a whole forward, except
    that the chunked loss, which made its gradient in the forward pass, is not run again.
    """
    passed = forward(config, source, target)
    useful = training(config, source, target, embedding_trains=embedding_trains)
    if mode == "replay":
        return useful + (horizon - 1) / horizon * passed.encoder
    if mode == "checkpoint":
        again = 0.0 if config.loss_impl == "chunked" else passed.head
        return useful + passed.encoder + passed.decoder + again
    return useful


def peak(device: torch.device) -> float:
    """Dense bfloat16 FLOP/s of a known GPU by its data sheet; 0 for others, parts of one (MIG) and CPUs."""
    return peak_of(torch.cuda.get_device_name(device)) if device.type == "cuda" else 0.0


def peak_of(name: str) -> float:
    """As `peak`, by the name that `torch.cuda.get_device_name` gives."""
    if " MIG " in name:
        return 0.0
    return next((flops for pattern, flops in _PEAKS if re.search(pattern, name)), 0.0)


def _encoder_layer(config: MemBartConfig, source: float) -> float:
    """Multiply-adds of one layer."""
    width, slots = config.d_model, config.memory_len
    position = 4 * width**2 + 2 * width * config.encoder_ffn_dim
    if config.is_memformer:
        reader = 2 * width**2 * (source + slots) + 2 * width * source * slots
        return source * position + 2 * width * source**2 + reader
    # The split form leaves out the products of slots with each other.
    pairs = (source + slots) ** 2 if config.needs_joint_mask else source**2 + 2 * source * slots
    return (source + slots) * position + 2 * width * pairs


def _head(passed: Forward, embedding_trains: bool) -> float:
    """The head's forward and backward."""
    return (3 if embedding_trains else 2) * passed.head
