"""What one would write without a dispatcher: webdataset, map, batch; the same tokens, noise and tensors.

Each stage is the plain form of what the dispatcher does: documents decoded from `.npy` members, cut into
segments, each segment noised by itself with NumPy's generator, rows padded in the collate function. There are
no agents here and nothing to resume: batches are whatever segments come next.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
import webdataset
from numpy.typing import NDArray

from pretrain.corpus.shardset import ShardSet, Window
from pretrain.noise import NoiseConfig, Vocabulary

Pair = tuple[NDArray[np.int64], NDArray[np.int64]]


def pipeline(shard_set: ShardSet, vocabulary: Vocabulary, config: NoiseConfig, rows: int) -> Any:
    """An iterable over batches of `rows` segments of the training split, endless."""
    urls = [str(shard_set.path(shard)) for shard in shard_set.select("train")]
    random = np.random.default_rng(0)
    return (
        webdataset.WebDataset(urls, shardshuffle=len(urls), seed=0)
        .repeat()
        .decode()
        .map(lambda sample: sample["npy"])
        .compose(segments(shard_set.window))
        .map(lambda body: (infill(body, vocabulary, config, random), body))
        .batched(rows, collation_fn=collate)
    )


def segments(window: Window) -> Callable[[Iterator[NDArray]], Iterator[NDArray[np.int64]]]:
    """A stage that cuts documents into overlapping bodies."""

    def cut(documents: Iterator[NDArray]) -> Iterator[NDArray[np.int64]]:
        for document in documents:
            start = 0
            while True:
                yield document[start : start + window.body].astype(np.int64)
                if start + window.body >= len(document):
                    break
                start += window.step

    return cut


def infill(
    body: NDArray[np.int64], vocabulary: Vocabulary, config: NoiseConfig, random: np.random.Generator
) -> NDArray[np.int64]:
    """Text infilling of one segment: span-Poisson lengths over whole words, one mask a span."""
    starts = np.flatnonzero(vocabulary.word_starts[body])
    budget = math.ceil(config.mask_ratio * len(starts))
    if not budget:
        return body
    spans = random.poisson(config.poisson_lambda, budget)
    while spans.sum() < budget:
        spans = np.concatenate([spans, random.poisson(config.poisson_lambda, budget)])
    used = int(np.searchsorted(np.cumsum(spans), budget)) + 1
    spans = spans[:used]
    spans[-1] -= spans.sum() - budget
    inserts, spans = int((spans == 0).sum()), spans[spans > 0]
    chosen = random.permutation(len(starts))[: len(spans)]
    edges = np.append(starts, len(body))
    out, keep = body.copy(), np.ones(len(body), bool)
    out[starts[chosen]] = vocabulary.mask
    for word, span in zip(chosen, spans, strict=True):
        keep[starts[word] + 1 : edges[min(word + span, len(starts))]] = False
    out = out[keep]
    return np.insert(out, random.integers(0, len(out) + 1, inserts), vocabulary.mask) if inserts else out


def collate(pairs: list[Pair]) -> dict[str, Any]:
    """`<s> x </s>` against `</s> <s> y` and `<s> y </s>`, padded; and the number of target tokens."""
    shape = len(pairs), max(len(source) for source, _ in pairs) + 2
    wide = len(pairs), max(len(target) for _, target in pairs) + 2
    batch = {
        "input_ids": np.full(shape, 1),
        "attention_mask": np.zeros(shape, np.int64),
        "decoder_input_ids": np.full(wide, 1),
        "labels": np.full(wide, -100),
    }
    for row, (source, target) in enumerate(pairs):
        batch["input_ids"][row, : len(source) + 2] = np.concatenate([[0], source, [2]])
        batch["attention_mask"][row, : len(source) + 2] = 1
        batch["decoder_input_ids"][row, : len(target) + 2] = np.concatenate([[2, 0], target])
        batch["labels"][row, : len(target) + 2] = np.concatenate([[0], target, [2]])
    tensors = {name: torch.from_numpy(array) for name, array in batch.items()}
    return {**tensors, "tokens": sum(len(target) + 2 for _, target in pairs)}
