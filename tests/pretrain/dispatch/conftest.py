"""Small shard sets for the tests: in memory for the plan, through the real writer for the rest."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest

from pretrain.corpus.shardset import FORMAT, MANIFEST, VERSION, ShardInfo, ShardSet, Window, manifest_hash
from pretrain.corpus.shardwriter import ShardWriter
from pretrain.corpus.tokenizer import Tokenizer, train_tokenizer

Shards = Sequence[tuple[str, Sequence[int]]]
"""For each shard its source and the lengths of its documents."""


class MemorySet:
    """Documents' lengths by shard, of the shape that planning asks for; counts how often an index is read."""

    def __init__(self, shards: Shards, split: str = "train") -> None:
        self.split, self.reads = split, 0
        self._lengths = [np.array(lengths, np.uint32) for _, lengths in shards]
        self.shards = tuple(
            ShardInfo(f"{split}/{source}-{number:06d}", split, source, len(lengths), int(sum(lengths)), 0, "")
            for number, (source, lengths) in enumerate(shards)
        )

    def select(self, split: str) -> tuple[int, ...]:
        return tuple(range(len(self.shards))) if split == self.split else ()

    def lengths(self, shard: int) -> np.ndarray:
        self.reads += 1
        return self._lengths[shard]


@pytest.fixture(scope="session")
def memory_set() -> Callable[..., MemorySet]:
    """`memory_set(shards)`: a shard set of lengths alone."""
    return MemorySet


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    """A real tokenizer of 320 entries."""
    return train_tokenizer(
        [f"word{number % 37} goes. where{number % 11} it\nwill" for number in range(200)], 320
    )


@pytest.fixture(scope="session")
def write_set(tokenizer: Tokenizer) -> Callable[..., ShardSet]:
    """`write_set(folder, shards, split="train", window=None, seed=0)`: random tokens on disk."""

    def write(
        folder: Path, shards: Shards, *, split: str = "train", window: Window | None = None, seed: int = 0
    ) -> ShardSet:
        random, rows, identifier = np.random.default_rng(seed), [], 0
        starts = np.flatnonzero(tokenizer.word_starts())
        for number, (source, lengths) in enumerate(shards):
            writer = ShardWriter(folder, f"{split}/{source}-{number:06d}")
            for length in lengths:
                identifier += 1
                tokens = random.integers(4, tokenizer.mask, length).astype(np.uint16)
                begins = random.random(length) < 0.6
                tokens[begins] = random.choice(starts, begins.sum())
                writer.add((identifier * 0x9E3779B97F4A7C15) & (2**63 - 1), tokens)
            rows.append(vars(writer.finish()))
        tokenizer.save(folder / "tokenizer")
        manifest = {
            "format": FORMAT,
            "version": VERSION,
            "tokenizer": {"hash": tokenizer.fingerprint, "vocab_size": tokenizer.vocab_size},
            "window": vars(window or Window()),
            "min_tokens": 0,
            "sources": sorted({source for source, _ in shards}),
            "shards": rows,
        }
        manifest["hash"] = manifest_hash(manifest)
        (folder / MANIFEST).write_text(json.dumps(manifest))
        return ShardSet.open(folder)

    return write
