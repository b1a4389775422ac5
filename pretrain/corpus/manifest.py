"""What a finished shard set says about itself."""

from __future__ import annotations

import hashlib
import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import tokenizers

import pretrain
from pretrain.corpus.documents import InputFile
from pretrain.corpus.shardset import FORMAT, SPLITS, VERSION, ShardInfo, Window, manifest_hash
from pretrain.corpus.sources import SourceSpec
from pretrain.corpus.tokenizer import Tokenizer


@dataclass(frozen=True)
class BuildPlan:
    """Everything that decides the bytes of a shard set, except the content of the inputs."""

    sources: tuple[SourceSpec, ...]
    window: Window
    min_tokens: int
    held_out: float
    shard_tokens: int

    def fingerprint(self, files: Sequence[Sequence[InputFile]], tokenizer: Tokenizer) -> str:
        """sha256 that a build in progress is bound to: the plan, the tokenizer, names and sizes of the
        inputs.
        """
        inputs = [[(file.name, file.size) for file in group] for group in files]
        specs = [(spec.name, spec.describe()) for spec in self.sources]
        numbers = [asdict(self.window), self.min_tokens, self.held_out, self.shard_tokens]
        content = json.dumps([pretrain.__version__, specs, numbers, tokenizer.fingerprint, inputs])
        return hashlib.sha256(content.encode()).hexdigest()

    def command(self) -> str:
        """The command that builds the same set again, without what does not change it (workers, output
        folder).
        """
        words = ["membart", "shards", "build"]
        for spec in self.sources:
            words += ["--source", spec.name, "--input", *spec.inputs]
            for option, value in spec.describe().items():
                if option != "inputs" and value is not None and value != _DEFAULTS[option]:
                    words += [f"--{option.replace('_', '-')}", str(value)]
        words += ["--window", str(self.window.size), "--overlap", str(self.window.overlap)]
        words += ["--min-tokens", str(self.min_tokens), "--held-out", str(self.held_out)]
        words += ["--shard-tokens", str(self.shard_tokens)]
        return shlex.join(words)


_DEFAULTS = SourceSpec("docs").describe()


@dataclass
class SourceCounts:
    """What a build met in one source.

    `dropped` and `rejected` count records by reason, `formats` counts files; `passed_over` files were
    found in input folders and are no text by their names.
    """

    documents: int = 0
    tokens: int = 0
    segments: int = 0
    held_out_documents: int = 0
    held_out_tokens: int = 0
    dropped: dict[str, int] = field(default_factory=dict)
    rejected: dict[str, int] = field(default_factory=dict)
    formats: dict[str, int] = field(default_factory=dict)
    passed_over: int = 0

    @property
    def records(self) -> int:
        """Kept, dropped and rejected together."""
        return self.documents + sum(self.dropped.values()) + sum(self.rejected.values())


def make_manifest(
    plan: BuildPlan,
    plan_hash: str,
    tokenizer: Tokenizer,
    counts: Mapping[str, SourceCounts],
    shards: Sequence[ShardInfo],
) -> dict[str, Any]:
    """The manifest: equal bytes for equal inputs, so without times, machine, or number of workers."""
    tokens = max(1, sum(count.tokens for count in counts.values()))
    documents = max(1, sum(count.documents for count in counts.values()))
    sources = {
        spec.name: {
            **asdict(counts[spec.name]),
            "share_of_tokens": round(counts[spec.name].tokens / tokens, 6),
            "share_of_documents": round(counts[spec.name].documents / documents, 6),
            "read": spec.describe(),
        }
        for spec in plan.sources
    }
    manifest: dict[str, Any] = {
        "format": FORMAT,
        "version": VERSION,
        "tokenizer": {"hash": tokenizer.fingerprint, "vocab_size": tokenizer.vocab_size},
        "window": asdict(plan.window),
        "min_tokens": plan.min_tokens,
        "held_out": plan.held_out,
        "shard_tokens": plan.shard_tokens,
        "splits": {split: _totals([shard for shard in shards if shard.split == split]) for split in SPLITS},
        "sources": sources,
        "shards": [asdict(shard) for shard in shards],
        "command": plan.command(),
        "versions": {
            "membart": pretrain.__version__,
            "tokenizers": tokenizers.__version__,
            "numpy": np.__version__,
        },
        "plan": plan_hash,
    }
    return {**manifest, "hash": manifest_hash(manifest)}


def _totals(shards: Sequence[ShardInfo]) -> dict[str, int]:
    return {
        "shards": len(shards),
        "documents": sum(shard.documents for shard in shards),
        "tokens": sum(shard.tokens for shard in shards),
        "bytes": sum(shard.bytes for shard in shards),
    }
