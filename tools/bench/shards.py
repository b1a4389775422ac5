"""How fast shards are built, against the tokenizer library alone on the same text and as many processes."""

from __future__ import annotations

import json
import os
import tempfile
import time
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Annotated, Any

import tokenizers
import typer

from pretrain.corpus.build import build
from pretrain.corpus.sources import SourceSpec
from pretrain.corpus.texts import source_texts
from pretrain.corpus.tokenizer import Tokenizer, load_tokenizer, train_tokenizer
from pretrain.errors import UserError

TARGET = 0.8
BATCH = 64
"""Documents in one call of `encode_batch`."""


@dataclass(frozen=True)
class ShardSpeed:
    """Tokens per second, wall clock, best of the rounds; the build's include its start and its last fsync."""

    workers: int
    characters: int
    tokens: int
    build: float
    encode_batch: float

    @property
    def ratio(self) -> float:
        """Build over bare tokenization; the target is 0.8."""
        return self.build / self.encode_batch


def measure(
    texts: list[str], tokenizer: Tokenizer, folder: Path, *, workers: int, rounds: int = 2
) -> ShardSpeed:
    """Build and bare tokenization of `texts` by turns, inside `folder`; both read one JSON lines file."""
    file = folder / "text.jsonl"
    with file.open("w", encoding="utf-8") as lines:
        lines.writelines(json.dumps({"text": text}) + "\n" for text in texts)
    tokenizer.save(folder / "tokenizer")
    bare, built, tokens = 0.0, 0.0, 0
    for turn in range(rounds):
        seconds, tokens = _bare(file, folder / "tokenizer", workers)
        bare = max(bare, tokens / seconds)
        started = time.perf_counter()
        sources = [SourceSpec("bench", (str(file),))]
        build(sources, tokenizer, folder / f"set{turn}", min_tokens=1, workers=workers)
        built = max(built, tokens / (time.perf_counter() - started))
    return ShardSpeed(workers, sum(map(len, texts)), tokens, built, bare)


def shards(
    tokenizer: Annotated[
        Path | None, typer.Option(help="Tokenizer folder; default: trained on the text.")
    ] = None,
    input: Annotated[list[str] | None, typer.Option(help="Text to use; default: the docs source.")] = None,
    characters: Annotated[int, typer.Option(help="How much of it.")] = 40_000_000,
    workers: Annotated[int, typer.Option(min=1, help="Processes.")] = len(os.sched_getaffinity(0)),
    rounds: Annotated[int, typer.Option(min=1, help="The best of so many is taken.")] = 2,
    as_json: Annotated[bool, typer.Option("--json", help="Machine-readable.")] = False,
) -> None:
    """Build speed against bare `tokenizers` encode_batch, side by side in one run (target: 0.8)."""
    source = SourceSpec("text", tuple(input)) if input else SourceSpec("docs")
    texts = [text for text in source_texts([source], max_characters=characters) if text]
    if not texts:
        raise UserError("the input holds no text", mend="name other files with --input")
    with tempfile.TemporaryDirectory() as folder:
        if tokenizer is None:
            made = train_tokenizer(texts[: len(texts) // 4 + 1], 16384)
        else:
            made = load_tokenizer(tokenizer)
        found = measure(texts, made, Path(folder), workers=workers, rounds=rounds)
    if as_json:
        typer.echo(json.dumps({**asdict(found), "ratio": found.ratio}))
        return
    typer.echo(f"{len(texts):,} documents, {found.tokens:,} tokens, {workers} processes")
    typer.echo(f"tokenizers encode_batch  {found.encode_batch:>12,.0f} tokens/s")
    typer.echo(
        f"shard build              {found.build:>12,.0f} tokens/s  {found.ratio:.2f} x (target {TARGET})"
    )


def _bare(file: Path, tokenizer: Path, workers: int) -> tuple[float, int]:
    """Seconds and tokens of `encode_batch` alone: starting and reading are not counted."""
    context = get_context("spawn")
    start, following, counts = context.Barrier(workers + 1), context.Value("q", 0), context.SimpleQueue()
    arguments = (str(file), str(tokenizer / "tokenizer.json"), start, following, counts)
    processes = [context.Process(target=_encode_all, args=arguments, daemon=True) for _ in range(workers)]
    for process in processes:
        process.start()
    start.wait()
    started = time.perf_counter()
    tokens = sum(counts.get() for _ in processes)
    seconds = time.perf_counter() - started
    for process in processes:
        process.join()
    return seconds, tokens


def _encode_all(file: str, tokenizer: str, start: Any, following: Any, counts: Any) -> None:
    """One process: takes the next batch of texts until there is none."""
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    backend = tokenizers.Tokenizer.from_file(tokenizer)
    with open(file, encoding="utf-8") as lines:
        texts = [json.loads(line)["text"] for line in lines]
    start.wait()
    tokens = 0
    while True:
        with following.get_lock():
            first = following.value
            following.value += BATCH
        if first >= len(texts):
            break
        batch = texts[first : first + BATCH]
        tokens += sum(len(found.ids) for found in backend.encode_batch(batch, add_special_tokens=False))
    counts.put(tokens)
