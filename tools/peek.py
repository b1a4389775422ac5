"""Segments of a shard set as text, clean and with the noise that pretraining gives them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from pretrain.corpus.shardset import ShardSet
from pretrain.errors import UserError
from pretrain.noise import Noise, NoiseConfig, Vocabulary


@dataclass(frozen=True)
class SegmentView:
    """One segment for the eye."""

    title: str
    clean: str
    noised: str


def segment_views(
    shards: ShardSet, split: str, document: int, segments: range, *, seed: int, epoch: int
) -> Iterator[SegmentView]:
    """Views of `segments` of document number `document` of the split, with default noise.

    Raises UserError when there is no such document or segment.
    """
    shard, row = _find(shards, split, document)
    tokens, window = shards.tokens(shard, row), shards.window
    count = window.segments(len(tokens))
    if segments.start >= count:
        raise UserError(f"document {document} has {count} segments", mend=f"--segment 0 to {count - 1}")
    tokenizer = shards.tokenizer()
    noise = Noise(NoiseConfig(), Vocabulary.of(tokenizer), seed, window.body)
    identity = int(shards.index(shard).documents[row])
    for segment in segments[: count - segments.start]:
        start = segment * window.step
        body = tokens[start : start + window.body].astype(np.int32)
        noised, _ = noise(
            body, *(np.array([value], dtype=np.int64) for value in (len(body), epoch, identity, segment))
        )
        yield SegmentView(
            f"{shards.shards[shard].name} document {row} (id {identity:016x}) segment {segment + 1}/{count}: "
            f"tokens {start} to {start + len(body)} of {len(tokens)}, {len(noised)} after noise",
            tokenizer.decode(body),
            tokenizer.decode(noised),
        )


def _find(shards: ShardSet, split: str, document: int) -> tuple[int, int]:
    """Shard and row of the document with this number in the split."""
    rest = document
    for shard in shards.select(split):
        if rest < shards.shards[shard].documents:
            return shard, rest
        rest -= shards.shards[shard].documents
    raise UserError(f"{split} has {document - rest} documents", mend=f"--document 0 to {document - rest - 1}")
