"""Figures of a shard set: what is in it, how long its documents are, what an epoch costs."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pretrain.corpus.shardset import ShardSet, Window

SPECIALS = 2
"""`<s>` and `</s>` of each segment."""


@dataclass(frozen=True)
class SourceStats:
    """One source in one split. `histogram` counts documents with 2^i to 2^(i+1) - 1 body tokens, by i."""

    source: str
    split: str
    shards: int
    documents: int
    tokens: int
    segments: int
    share_of_tokens: float
    share_of_documents: float
    shortest: int
    median: float
    longest: int
    histogram: dict[int, int]


@dataclass(frozen=True)
class EpochCost:
    """What one epoch over the train split takes.

    `padding_share` is the expected share of pad tokens on the decoder's side, where every token of a segment
    stands: rows are padded to the longest of the timestep, rounded up.
    """

    batch: int
    horizon: int
    segments: int
    timesteps: int
    optimizer_steps: int
    tokens_per_step: int
    padding_share: float


@dataclass(frozen=True)
class SetStats:
    """All sources and splits, and the cost of an epoch."""

    sources: tuple[SourceStats, ...]
    epoch: EpochCost | None

    def as_json(self) -> dict[str, Any]:
        """Plain data for `--json`."""
        return asdict(self)


def set_stats(shards: ShardSet, *, batch: int, horizon: int, pad_multiple: int = 8) -> SetStats:
    """Read all indexes and count. `batch` is the number of agents of the global batch."""
    lengths = _lengths(shards)
    totals = {
        split: (sum(len(n) for n in group), sum(int(n.sum()) for n in group))
        for split in dict.fromkeys(split for split, _ in lengths)
        for group in [[found for (name, _), found in lengths.items() if name == split]]
    }
    rows = tuple(
        _source(shards, split, source, found, *totals[split]) for (split, source), found in lengths.items()
    )
    train = [found for (split, _), found in lengths.items() if split == "train"]
    epoch = _epoch(np.concatenate(train), shards.window, batch, horizon, pad_multiple) if train else None
    return SetStats(rows, epoch)


def plot_lengths(shards: ShardSet, file: Path) -> None:
    """Write the histogram of document lengths (log scale, by source) as a PNG."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    lengths: dict[str, list[np.ndarray]] = {}
    for (_, source), found in _lengths(shards).items():
        lengths.setdefault(source, []).append(found)
    longest = max(int(found.max()) for group in lengths.values() for found in group)
    shortest = min(int(found.min()) for group in lengths.values() for found in group)
    edges = np.geomspace(max(1, shortest), longest + 1, 41)
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.add_subplot()
    for source, group in lengths.items():
        axes.hist(np.concatenate(group), bins=edges.tolist(), histtype="step", label=source)
    axes.set(xscale="log", xlabel="tokens of a document", ylabel="documents", title="Document lengths")
    axes.axvline(shards.window.body, linestyle=":", color="grey", label=f"one segment ({shards.window.body})")
    axes.legend()
    FigureCanvasAgg(figure).print_png(str(file))


def _lengths(shards: ShardSet) -> dict[tuple[str, str], np.ndarray]:
    """Body tokens of every document by split and source."""
    parts: dict[tuple[str, str], list[np.ndarray]] = {}
    for number, info in enumerate(shards.shards):
        parts.setdefault((info.split, info.source), []).append(shards.lengths(number))
    return {key: np.concatenate(group).astype(np.int64) for key, group in sorted(parts.items())}


def _source(
    shards: ShardSet, split: str, source: str, lengths: np.ndarray, all_documents: int, all_tokens: int
) -> SourceStats:
    bins, counts = np.unique(np.floor(np.log2(np.maximum(lengths, 1))).astype(int), return_counts=True)
    tokens = int(lengths.sum())
    return SourceStats(
        source,
        split,
        sum(info.split == split and info.source == source for info in shards.shards),
        len(lengths),
        tokens,
        int(shards.window.segments(lengths).sum()),
        tokens / all_tokens,
        len(lengths) / all_documents,
        int(lengths.min()),
        float(np.median(lengths)),
        int(lengths.max()),
        {int(low): int(count) for low, count in zip(bins, counts, strict=True)},
    )


def _epoch(lengths: np.ndarray, window: Window, batch: int, horizon: int, pad_multiple: int) -> EpochCost:
    counts = window.segments(lengths)
    segments = int(counts.sum())
    last = lengths - (counts - 1) * window.step + SPECIALS
    of_length = np.bincount(last, minlength=window.size + 1).astype(float)
    of_length[window.size] += segments - len(lengths)  # all but the last segment of a document are full
    chance = of_length / segments
    # The longest of `batch` independent rows is below x when every one of them is.
    longest = np.diff(np.cumsum(chance) ** batch, prepend=0.0)
    sizes = np.arange(len(chance))
    padded = np.minimum(
        -(-sizes // pad_multiple) * pad_multiple, -(-window.size // pad_multiple) * pad_multiple
    )
    real, filled = float(chance @ sizes), float(longest @ padded)
    timesteps = -(-segments // batch)
    return EpochCost(
        batch,
        horizon,
        segments,
        timesteps,
        -(-timesteps // horizon),
        round(batch * horizon * real),
        1 - real / filled,
    )
