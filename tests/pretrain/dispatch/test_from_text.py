"""From raw text to batches and back: what the decoder is asked to write is the text that was built."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from pretrain.corpus.build import build
from pretrain.corpus.shardset import ShardSet, Window
from pretrain.corpus.sources import SourceSpec
from pretrain.corpus.tokenizer import train_tokenizer
from pretrain.dispatch import Dispatcher


def test_the_text_of_every_document_comes_back_from_either_split(tmp_path: Path):
    random, words = np.random.default_rng(3), [f"w{number}é" for number in range(200)]
    texts = {" ".join(random.choice(words, random.integers(30, 400))) + "." for _ in range(80)}
    (tmp_path / "text.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    tokenizer = train_tokenizer(sorted(texts), 500)
    build(
        [SourceSpec("text", (str(tmp_path / "text.jsonl"),))],
        tokenizer,
        tmp_path / "set",
        window=Window(66, 16),
        min_tokens=20,
        held_out=0.2,
        shard_tokens=3000,
    )
    shard_set = ShardSet.open(tmp_path / "set")
    assert len(shard_set.select("train")) > 3
    assert len(shard_set.select("validation")) > 0
    read: dict[str, set[str]] = {"train": set(), "validation": set()}
    for split, found in read.items():
        open_documents: dict[int, list[int]] = {}
        for batch in Dispatcher(shard_set, lanes=3, agents_per_lane=2, seed=1, epochs=1, split=split):
            for agent, reset, labels in zip(
                batch.agent.tolist(), batch.memory_resets.tolist(), batch.labels, strict=True
            ):
                body = labels[labels != -100].tolist()[1:-1]
                if reset:
                    found.add(tokenizer.decode(open_documents.pop(agent, [])))
                    open_documents[agent] = body
                else:
                    open_documents[agent] += body[16:]
        found.update(tokenizer.decode(tokens) for tokens in open_documents.values())
        found.discard("")
    assert read["train"] | read["validation"] == texts
    assert not read["train"] & read["validation"]
