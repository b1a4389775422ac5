"""Randomness of generation, drawn for each row alone: the same reply whatever else is in the batch."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import (
    LogitsProcessor,
    LogitsProcessorList,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from finetune.batch import TurnBatch
from finetune.recipe import GenerationSection

RowKey = tuple[int | str, ...]


def row_keys(batch: TurnBatch, seed: int, replies: int) -> list[RowKey]:
    """A key for every reply of every row: by the turn that is answered, not by its place in the batch."""
    return [
        (seed, example.about.dialogue, example.about.turn, number) if example else (seed, "dry", number)
        for example in batch.examples
        for number in range(replies)
    ]


def generators(keys: Sequence[RowKey], purpose: str) -> list[torch.Generator]:
    """A CPU generator for each key: equal keys, equal draws, on any machine."""
    found = []
    for key in keys:
        digest = hashlib.blake2b(repr((purpose, *key)).encode(), digest_size=8).digest()
        found.append(torch.Generator().manual_seed(int.from_bytes(digest, "little") >> 1))
    return found


def normal(keys: Sequence[RowKey], shape: Sequence[int], device: torch.device) -> Tensor:
    """Standard normal noise `[len(keys), *shape]` float32, of each key's own."""
    drawn = [torch.randn(*shape, generator=generator) for generator in generators(keys, "latent")]
    return torch.stack(drawn).to(device)


class GumbelNoise(LogitsProcessor):
    """Makes the most likely token a draw from the distribution (Gumbel-max), by each row's own generator.

    transformers draws all rows from one generator, so that a row's tokens would depend on its neighbours.
    """

    def __init__(self, keys: Sequence[RowKey]) -> None:
        self._generators = generators(keys, "token")

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        width = scores.shape[-1]
        uniform = torch.stack([torch.rand(width, generator=g, dtype=torch.float64) for g in self._generators])
        noise = -(-uniform.clamp(min=1e-300).log()).log()
        return scores + noise.to(scores.device, scores.dtype)


def processors(how: GenerationSection, keys: Sequence[RowKey]) -> LogitsProcessorList:
    """What to do to the scores so that the greedy choice is the next token, in families that search by
    themselves: the penalty of repetitions and, where `how` samples, `drawing`."""
    found = LogitsProcessorList()
    if how.repetition_penalty != 1:
        found.append(RepetitionPenaltyLogitsProcessor(how.repetition_penalty))
    if how.sample:
        found.extend(drawing(how, keys))
    return found


def drawing(how: GenerationSection, keys: Sequence[RowKey]) -> LogitsProcessorList:
    """What to do to the scores so that the greedy choice is a sample as `how` wants it."""
    found = LogitsProcessorList()
    if how.temperature != 1.0:
        found.append(TemperatureLogitsWarper(how.temperature))
    if how.top_k:
        found.append(TopKLogitsWarper(how.top_k))
    if how.top_p < 1:
        found.append(TopPLogitsWarper(how.top_p))
    found.append(GumbelNoise(keys))
    return found
