"""Small real things to test on: a model, batches of random segments, a shard set of made-up text."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pretrain.corpus.build import build
from pretrain.corpus.shardset import Window
from pretrain.corpus.sources import SourceSpec
from pretrain.corpus.tokenizer import train_tokenizer
from pretrain.dispatch.batch import Batch
from pretrain.model import MemBartConfig, MemBartForConditionalGeneration

VOCABULARY = 400
MODEL: dict[str, Any] = {
    "d_model": 16,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 32,
    "decoder_ffn_dim": 32,
    "max_position_embeddings": 64,
    "memory_len": 4,
    "init_std": 0.2,
    "dropout": 0.0,
}


def model(**changes: Any) -> MemBartForConditionalGeneration:
    """A MemBART of a few thousand float32 parameters with seeded weights."""
    torch.manual_seed(0)
    return MemBartForConditionalGeneration.from_scratch(
        MemBartConfig(**{"vocab_size": 60, **MODEL, **changes})
    )


def rollout(timesteps: int, agents: int, seed: int = 0, vocabulary: int = 60) -> list[Batch]:
    """Random segments of uneven lengths, with resets; the last agent is dry at the last timestep."""
    generator = torch.Generator().manual_seed(seed)
    batches = []
    for t in range(timesteps):
        lengths = torch.randint(3, 11, (agents,), generator=generator)
        resets = (torch.rand(agents, generator=generator) < 0.25).long()
        if t == timesteps - 1 and timesteps > 1:
            lengths[-1], resets[-1] = 0, 1
        batches.append(batch(lengths, resets, generator, vocabulary))
    return batches


def batch(lengths: Tensor, resets: Tensor, generator: torch.Generator, vocabulary: int) -> Batch:
    agents, width = len(lengths), 12
    ids = torch.randint(4, vocabulary, (agents, width), generator=generator)
    mask = (torch.arange(width) < lengths[:, None]).long()
    ids = torch.where(mask.bool(), ids, 1)
    labels = torch.where(mask.bool(), ids.roll(1, 1), -100)
    number = torch.arange(agents)
    return Batch(
        input_ids=ids,
        attention_mask=mask,
        decoder_input_ids=ids,
        labels=labels,
        memory_resets=resets,
        lane=number,
        agent=number,
        document=number,
        segment=number,
        epoch=number,
        timestep=0,
        target_tokens=int(mask.sum()),
    )


def write_text(path: Path, documents: int, seed: int = 0) -> Path:
    """Documents of 40 to 400 words from a small vocabulary; each keeps to a few words of its own."""
    rng = random.Random(seed)
    words = [
        a + b
        for a in ("ka", "lo", "mi", "nu", "pe", "ra", "so", "ti")
        for b in ("dan", "vel", "mor", "sin", "gar")
    ]
    with path.open("w", encoding="utf-8") as file:
        for _ in range(documents):
            own = rng.sample(words, 6)
            text = " ".join(rng.choice(own) for _ in range(rng.randint(40, 400)))
            file.write(json.dumps({"text": f"{text}."}) + "\n")
    return path


def shard_set(folder: Path, documents: int = 60) -> Path:
    """A shard set of made-up text with a tokenizer trained on it; windows of 32 tokens, 8 of them shared."""
    text = write_text(folder / "text.jsonl", documents)
    lines = [json.loads(line)["text"] for line in text.read_text(encoding="utf-8").splitlines()]
    tokenizer = train_tokenizer(lines, VOCABULARY)
    tokenizer.save(folder / "tokenizer")
    build(
        [SourceSpec("made", (str(text),))],
        folder / "tokenizer",
        folder / "shards",
        window=Window(32, 8),
        min_tokens=32,
        held_out=0.2,
        shard_tokens=4000,
        workers=1,
    )
    return folder / "shards"


def recipe(shards: Path, root: Path, **changes: Any) -> dict[str, Any]:
    """A recipe that trains in seconds; `changes` replace dotted keys, `train__steps=3` for `train.steps`."""
    content: dict[str, Any] = {
        "name": "run",
        "root": str(root),
        "model": {"config": dict(MODEL)},
        "data": {"shards": [str(shards)], "lanes": 4, "agents_per_lane": 2, "workers": 0},
        "replay": {"horizon": 3},
        "optimizer": {"lr": 1e-2, "warmup_steps": 2, "gradient_clipping": 1.0},
        "train": {"steps": 8, "deepspeed": "zero2", "collective_timeout": 600},
        "validation": {"every": 4, "max_timesteps": 4},
        "checkpoint": {"every": 4},
    }
    for key, value in changes.items():
        *parents, leaf = key.split("__")
        node = content
        for parent in parents:
            node = node.setdefault(parent, {})
        node[leaf] = value
    return content
