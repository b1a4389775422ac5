"""`membart bench data`: dispatcher, webdataset and a bare copy over the same tokens, one core, one run."""

from __future__ import annotations

import json
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from itertools import islice
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import numpy as np
import typer

from pretrain.corpus.build import build
from pretrain.corpus.shardset import ShardSet
from pretrain.corpus.sources import SourceSpec
from pretrain.corpus.texts import source_texts
from pretrain.corpus.tokenizer import train_tokenizer
from pretrain.noise import NoiseConfig, Vocabulary

if TYPE_CHECKING:
    from pretrain.dispatch import Dispatcher

TARGET_SPEED, TARGET_RATIO = 2e6, 3.0
AGENTS_PER_LANE = 8
DOCS_TOKENS = 2_400_000
MEMORY_SHARDS, MEMORY_BATCHES = (1, 10, 100), 250


@dataclass(frozen=True)
class DataSpeed:
    """Target tokens per second of processor time, best of the rounds."""

    rows: int
    dispatcher: float
    webdataset: float
    copy: float

    @property
    def ratio(self) -> float:
        """Dispatcher over webdataset; the target is 3."""
        return self.dispatcher / self.webdataset


def data(
    shards: Annotated[
        Path | None, typer.Option(help="Shard set to use.  [default: made of the docs source]")
    ] = None,
    rows: Annotated[int, typer.Option(min=AGENTS_PER_LANE, help="Agents, a multiple of 8.")] = 32,
    seconds: Annotated[float, typer.Option(min=0.1, help="Length of each measurement.")] = 4.0,
    rounds: Annotated[int, typer.Option(min=1, help="The best of so many is taken.")] = 3,
    as_json: Annotated[bool, typer.Option("--json", help="Machine-readable.")] = False,
) -> None:
    """Speed of batches on one core, warm cache, against webdataset doing the same work and a bare copy."""
    with tempfile.TemporaryDirectory() as folder:
        if shards:
            shard_set = many = ShardSet.open(shards)
        else:
            shard_set, many = docs_sets(Path(folder))
        cores = os.sched_getaffinity(0)
        os.sched_setaffinity(0, {min(cores)})
        try:
            speed = measure(shard_set, rows, seconds, rounds)
        finally:
            os.sched_setaffinity(0, cores)
        available = len(many.select("train"))
        memory = {n: peak_memory(many, n, rows) for n in MEMORY_SHARDS if n <= available}
    if as_json:
        typer.echo(json.dumps({**asdict(speed), "ratio": speed.ratio, "peak_memory_mib": memory}))
        return
    typer.echo(f"one core, warm cache, {rows} rows of {shard_set.window.size} tokens, best of {rounds}")
    typer.echo(f"copy of the tokens into int64 rows   {speed.copy:>13,.0f} tokens/s")
    typer.echo(
        f"dispatcher + noise + collate         {speed.dispatcher:>13,.0f} tokens/s"
        f"  {speed.dispatcher / speed.copy:.1%} of the copy (target {TARGET_SPEED:,.0f} tokens/s)"
    )
    typer.echo(f"webdataset, map, batch               {speed.webdataset:>13,.0f} tokens/s")
    typer.echo(
        f"dispatcher / webdataset              {speed.ratio:>13.1f} x          (target {TARGET_RATIO})"
    )
    for count, mebibytes in memory.items():
        typer.echo(f"memory that dispatching adds, {count:3} shards {mebibytes:>10.1f} MiB")


def measure(shard_set: ShardSet, rows: int, seconds: float, rounds: int) -> DataSpeed:
    """The three contenders by turns, in this process, on whatever cores it may use."""
    import torch

    from tools.bench.webdataset_pipeline import pipeline

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    touch(shard_set)
    vocabulary, config = Vocabulary.of(shard_set.tokenizer()), NoiseConfig()
    contenders: list[Callable[[], Iterator[int]]] = [
        lambda: (batch.target_tokens for batch in dispatcher(shard_set, rows)),
        lambda: (batch["tokens"] for batch in pipeline(shard_set, vocabulary, config, rows)),
        lambda: copies(shard_set, rows),
    ]
    best = [0.0] * len(contenders)
    for _ in range(rounds):
        for number, contender in enumerate(contenders):
            best[number] = max(best[number], speed_of(contender(), seconds))
    torch.set_num_threads(threads)
    return DataSpeed(rows, *best)


def dispatcher(shard_set: ShardSet, rows: int) -> Dispatcher:
    """The dispatcher as a training would have it, batches built in the process that takes them."""
    from pretrain.dispatch import Dispatcher

    return Dispatcher(shard_set, lanes=rows // AGENTS_PER_LANE, agents_per_lane=AGENTS_PER_LANE, seed=1)


def copies(shard_set: ShardSet, rows: int) -> Iterator[int]:
    """Bare NumPy: segments copied from the memory maps into the rows of a fresh int64 array, endless."""
    window = shard_set.window
    segments = []
    for shard in shard_set.select("train"):
        for document, length in enumerate(shard_set.lengths(shard).tolist()):
            tokens = shard_set.tokens(shard, document)
            for index in range(window.segments(length)):
                start, stop = window.bounds(length, index)
                segments.append(tokens[start:stop])
    while True:
        for begin in range(0, len(segments) - rows + 1, rows):
            out, count = np.empty((rows, window.size), np.int64), 0
            for row, body in enumerate(segments[begin : begin + rows]):
                out[row, : len(body)] = body
                count += len(body) + 2
            yield count


def speed_of(tokens: Iterator[int], seconds: float) -> float:
    """Tokens per second of an endless iterator over batches' token counts, after a short warm-up.

    Seconds of processor time: nothing here waits, and so other programs on the core do not count.
    """
    for _ in islice(tokens, 20):
        pass
    total, began = 0, time.process_time()
    while (passed := time.process_time() - began) < seconds:
        total += next(tokens)
    return total / passed


def touch(shard_set: ShardSet) -> None:
    """Bring every training document into the page cache."""
    for shard in shard_set.select("train"):
        for document in range(shard_set.shards[shard].documents):
            shard_set.tokens(shard, document)


def docs_sets(folder: Path) -> tuple[ShardSet, ShardSet]:
    """The same docstrings in some ten shards, for speed, and in over a hundred, for memory."""
    source = SourceSpec("docs", max_tokens=DOCS_TOKENS)
    tokenizer = train_tokenizer(source_texts([source], max_characters=2_000_000), 16_384)
    for name, shard_tokens in (("few", DOCS_TOKENS // 10), ("many", DOCS_TOKENS // 160)):
        build([source], tokenizer, folder / name, held_out=0.0, shard_tokens=shard_tokens)
    return ShardSet.open(folder / "few"), ShardSet.open(folder / "many")


def peak_memory(shard_set: ShardSet, count: int, rows: int) -> float:
    """MiB by which a fresh process grows, at its peak, over `MEMORY_BATCHES` batches from the first `count`
    shards.

    Counted is memory of its own (`RssAnon`): the pages of mapped shards belong to the page cache.
    """
    context = get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_grow, args=(shard_set, count, rows, sender))
    process.start()
    grown: float = receiver.recv()
    process.join()
    return grown


def _grow(shard_set: ShardSet, count: int, rows: int, sender: Connection) -> None:
    training = [vars(shard_set.shards[number]) for number in shard_set.select("train")[:count]]
    few = ShardSet(shard_set.folders[:1], ({**shard_set.manifests[0], "shards": training},))
    from pretrain.dispatch import Dispatcher  # noqa: F401 -- torch's own memory is not the dispatcher's

    before = peak = _own_memory()
    for _ in islice(dispatcher(few, rows), MEMORY_BATCHES):
        peak = max(peak, _own_memory())
    sender.send((peak - before) / 1024)


def _own_memory() -> int:
    """KiB of this process's anonymous memory."""
    with open("/proc/self/status", encoding="ascii") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("RssAnon"))
