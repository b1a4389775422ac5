"""Raw corpora -> shard set: parallel, resumable, the same bytes whatever the number of workers.

The main process reads large inputs, hands tasks to workers, takes their results in input order, drops
duplicates and writes shards. Everything grows in `OUT.building`, which becomes `OUT` when it is complete.
Shards and position are saved together every few seconds; a build that was cut off goes on from there when
the same call is made again.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any, TextIO

import numpy as np

from pretrain.corpus.documents import Reject, is_held_out
from pretrain.corpus.encode import Encoded, Task
from pretrain.corpus.manifest import BuildPlan, SourceCounts, make_manifest
from pretrain.corpus.pool import encode_here, encode_in_workers
from pretrain.corpus.shardset import MANIFEST, ShardInfo, Window, read_manifest
from pretrain.corpus.shardwriter import ShardWriter
from pretrain.corpus.sources import Inputs, SourceSpec, expand
from pretrain.corpus.state import BuildState
from pretrain.corpus.tasks import tasks
from pretrain.corpus.tokenizer import TOKENIZER_FOLDER, Tokenizer, load_tokenizer
from pretrain.corpus.workshop import REJECTS, STATE, already_built, clear, discard, publish, workshop
from pretrain.errors import UserError
from pretrain.files import write_atomically

SAVE_SECONDS = 5.0
RATE_FLOOR = 1000
"""Records to see before a reject rate can stop a build early."""


@dataclass(frozen=True)
class BuildProgress:
    """How far a build is. `total_bytes` is None while an input does not tell its size."""

    source: str
    documents: int
    tokens: int
    rejects: int
    done_bytes: int
    total_bytes: int | None


@dataclass(frozen=True)
class BuildReport:
    """What a finished build made; `built` is False when the same set stood there already."""

    out: Path
    manifest: dict[str, Any]
    built: bool
    resumed: bool
    seconds: float

    @property
    def documents(self) -> int:
        """Documents in all shards."""
        return sum(int(source["documents"]) for source in self.manifest["sources"].values())

    @property
    def tokens(self) -> int:
        """Body tokens in all shards."""
        return sum(int(source["tokens"]) for source in self.manifest["sources"].values())


def build(
    sources: Sequence[SourceSpec],
    tokenizer: Tokenizer | str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    window: Window | None = None,
    min_tokens: int = 512,
    held_out: float = 0.01,
    shard_tokens: int = 1 << 24,
    workers: int | None = None,
    max_reject_rate: float = 0.01,
    restart: bool = False,
    progress: Callable[[BuildProgress], None] | None = None,
) -> BuildReport:
    """Build the shard set `out` from `sources`.

    held_out: share of documents, taken by their hash, that forms the validation split.
    shard_tokens: a shard is closed by the document that reaches this number.
    workers: processes that parse and tokenize; None takes one per core, 1 works inside this process.
    max_reject_rate: share of records that may be refused before the build fails.
    restart: throw away an unfinished build of the same `out` instead of going on with it.

    Raises UserError for anything the user can mend; nothing but a resumable `OUT.building` is left then.
    """
    started = time.monotonic()
    plan = BuildPlan(tuple(sources), window or Window(), min_tokens, held_out, shard_tokens)
    _check(plan, workers, max_reject_rate)
    inputs = [expand(spec) for spec in plan.sources]
    loaded = tokenizer if isinstance(tokenizer, Tokenizer) else load_tokenizer(tokenizer)
    plan_hash = plan.fingerprint([group.files for group in inputs], loaded)
    target = Path(out)
    if already_built(target, plan_hash):
        return BuildReport(target, read_manifest(target), False, False, time.monotonic() - started)
    with workshop(target, restart=restart) as folder:
        if (folder / MANIFEST).exists() and read_manifest(folder)["plan"] == plan_hash:
            resumed = True
        else:
            job = _Build(folder, plan, plan_hash, inputs, loaded, max_reject_rate, progress)
            resumed = job.resumed
            try:
                filled = job.run(workers if workers is not None else len(os.sched_getaffinity(0)))
            finally:
                job.close()
            if not filled:
                discard(folder)
                reason = f"no document is left after filtering ({job.losses()})"
                raise UserError(reason, mend="give more text, or a smaller --min-tokens")
        publish(folder, target)
    return BuildReport(target, read_manifest(target), True, resumed, time.monotonic() - started)


class _Build:
    """One run over the inputs, from the saved position to the manifest."""

    def __init__(
        self,
        folder: Path,
        plan: BuildPlan,
        plan_hash: str,
        inputs: list[Inputs],
        tokenizer: Tokenizer,
        max_reject_rate: float,
        progress: Callable[[BuildProgress], None] | None,
    ):
        self._folder, self._plan, self._plan_hash, self._inputs = folder, plan, plan_hash, inputs
        self._tokenizer, self._max_reject_rate, self._progress = tokenizer, max_reject_rate, progress
        sizes = [file.size for group in inputs for file in group.files]
        self._total_bytes = None if None in sizes else sum(size or 0 for size in sizes)
        self._state = BuildState(folder / STATE)
        self._writers: dict[str, ShardWriter] = {}
        note = self._state.load()
        self.resumed = note is not None
        if not self.resumed:
            clear(folder, keep=(STATE,))
        note = note or {"plan": plan_hash, "source": 0, "task": 0, "bytes": 0, "rejects": 0}
        if note["plan"] != plan_hash:
            self._state.close()
            raise UserError(
                "an unfinished build of other inputs or options is here",
                where=str(folder),
                mend="repeat its command, or start afresh with --restart",
            )
        self._source, self._task, self._bytes = note["source"], note["task"], note["bytes"]
        found = note.get("counts", {})
        self._counts = {
            spec.name: SourceCounts(**{**found.get(spec.name, {}), "passed_over": len(group.passed_over)})
            for spec, group in zip(plan.sources, inputs, strict=True)
        }
        self._shards = [ShardInfo(**row) for row in note.get("shards", [])]
        for split, (name, kept) in note.get("open", {}).items():
            self._writers[split] = ShardWriter(folder, name, kept_bytes=kept)
        self._rejects = _open_rejects(folder / REJECTS, note["rejects"])
        self._saved = time.monotonic()
        self._save()

    def run(self, workers: int) -> bool:
        """Go through the rest of the inputs and write the manifest; False when no document is left."""
        self._tokenizer.save(self._folder / TOKENIZER_FOLDER)
        while self._source < len(self._plan.sources):
            spec = self._plan.sources[self._source]
            rest = islice(tasks(spec, self._inputs[self._source].files), self._task, None)
            with contextlib.closing(self._results(rest, workers)) as results:
                for task, encoded in results:
                    full = self._take(spec, encoded)
                    self._task, self._bytes = self._task + 1, self._bytes + task.bytes
                    self._report(spec)
                    if full:
                        break
                    if time.monotonic() - self._saved > SAVE_SECONDS:
                        self._save()
            self._end_source()
        self._check_rate(floor=1)
        if not self._shards:
            return False
        self._rejects.flush()
        os.fsync(self._rejects.fileno())
        manifest = make_manifest(self._plan, self._plan_hash, self._tokenizer, self._counts, self._shards)
        write_atomically(self._folder / MANIFEST, json.dumps(manifest, indent=1) + "\n")
        return True

    def losses(self) -> str:
        """What was dropped and refused so far, by reason."""
        found: dict[str, int] = {}
        for counts in self._counts.values():
            for reason, number in (*counts.dropped.items(), *counts.rejected.items()):
                found[reason] = found.get(reason, 0) + number
        return ", ".join(f"{number} {reason}" for reason, number in sorted(found.items())) or "empty inputs"

    def close(self) -> None:
        """Let go of all files."""
        for writer in self._writers.values():
            writer.close()
        self._rejects.close()
        self._state.close()

    def _results(self, rest: Iterator[Task], workers: int) -> Generator[tuple[Task, Encoded], None, None]:
        """Results in the order of the tasks."""
        if workers == 1:
            return encode_here(rest, self._tokenizer, self._plan.min_tokens)
        return encode_in_workers(rest, self._folder / TOKENIZER_FOLDER, self._plan.min_tokens, workers)

    def _take(self, spec: SourceSpec, encoded: Encoded) -> bool:
        """Write what a task gave; True when the source has reached its limit."""
        counts = self._counts[spec.name]
        for reason, number in encoded.dropped.items():
            counts.dropped[reason] = counts.dropped.get(reason, 0) + number
        for format, number in encoded.formats.items():
            counts.formats[format] = counts.formats.get(format, 0) + number
        for reject in encoded.rejects:
            self._refuse(spec, reject)
        for document, tokens in zip(encoded.ids, encoded.tokens, strict=True):
            if not self._state.first_seen(document):
                counts.dropped["duplicate"] = counts.dropped.get("duplicate", 0) + 1
                continue
            self._write(spec, document, tokens)
            if _reached(spec.max_documents, counts.documents) or _reached(spec.max_tokens, counts.tokens):
                return True
        self._check_rate(floor=RATE_FLOOR)
        return False

    def _write(self, spec: SourceSpec, document: int, tokens: np.ndarray) -> None:
        held_out = is_held_out(document, self._plan.held_out)
        split = "validation" if held_out else "train"
        writer = self._writers.get(split)
        if writer is None:
            number = sum(shard.split == split and shard.source == spec.name for shard in self._shards)
            writer = self._writers[split] = ShardWriter(self._folder, f"{split}/{spec.name}-{number:06d}")
        writer.add(document, tokens)
        counts = self._counts[spec.name]
        counts.documents += 1
        counts.tokens += len(tokens)
        counts.segments += self._plan.window.segments(len(tokens))
        if held_out:
            counts.held_out_documents += 1
            counts.held_out_tokens += len(tokens)
        if writer.tokens >= self._plan.shard_tokens:
            self._shards.append(self._writers.pop(split).finish())

    def _refuse(self, spec: SourceSpec, reject: Reject) -> None:
        counts = self._counts[spec.name]
        counts.rejected[reject.reason] = counts.rejected.get(reject.reason, 0) + 1
        line = {"source": spec.name, **asdict(reject)}
        self._rejects.write(json.dumps(line) + "\n")

    def _check_rate(self, floor: int) -> None:
        rejected = sum(sum(counts.rejected.values()) for counts in self._counts.values())
        records = sum(counts.records for counts in self._counts.values())
        if rejected > self._max_reject_rate * max(records, floor):
            self._save()
            raise UserError(
                f"{rejected} of {records} records are bad, more than {self._max_reject_rate:.2%} "
                f"({self.losses()})",
                where=str(self._folder / REJECTS),
                mend="mend the inputs and use --restart, or allow more with --max-reject-rate",
            )

    def _end_source(self) -> None:
        for split in sorted(self._writers):
            self._shards.append(self._writers.pop(split).finish())
        self._source, self._task = self._source + 1, 0
        self._save()

    def _save(self) -> None:
        """Make shards, rejects, seen documents and position durable together."""
        self._rejects.flush()
        os.fsync(self._rejects.fileno())
        self._state.save(
            {
                "plan": self._plan_hash,
                "source": self._source,
                "task": self._task,
                "bytes": self._bytes,
                "rejects": os.path.getsize(self._folder / REJECTS),
                "counts": {name: asdict(counts) for name, counts in self._counts.items()},
                "shards": [asdict(shard) for shard in self._shards],
                "open": {split: (writer.name, writer.flush()) for split, writer in self._writers.items()},
            }
        )
        self._saved = time.monotonic()

    def _report(self, spec: SourceSpec) -> None:
        if self._progress:
            all_counts = self._counts.values()
            self._progress(
                BuildProgress(
                    spec.name,
                    sum(counts.documents for counts in all_counts),
                    sum(counts.tokens for counts in all_counts),
                    sum(sum(counts.rejected.values()) for counts in all_counts),
                    self._bytes,
                    self._total_bytes,
                )
            )


def _reached(limit: int | None, value: int) -> bool:
    return limit is not None and value >= limit


def _check(plan: BuildPlan, workers: int | None, max_reject_rate: float) -> None:
    names = [spec.name for spec in plan.sources]
    if not names:
        raise UserError("nothing to build", mend="name at least one source")
    if len(set(names)) < len(names):
        raise UserError(
            f"two sources have one name ({', '.join(names)})", mend="give each source its own name"
        )
    bounds: list[tuple[str, float, bool]] = [
        ("min_tokens must be at least 1", plan.min_tokens, plan.min_tokens >= 1),
        ("held_out must be at least 0 and below 1", plan.held_out, 0 <= plan.held_out < 1),
        ("shard_tokens must be at least 1", plan.shard_tokens, plan.shard_tokens >= 1),
        ("workers must be at least 1", workers or 0, workers is None or workers >= 1),
        ("max_reject_rate must be from 0 to 1", max_reject_rate, 0 <= max_reject_rate <= 1),
    ]
    for rule, value, fine in bounds:
        if not fine:
            raise UserError(f"{rule}, got {value}")


def _open_rejects(file: Path, kept_bytes: int) -> TextIO:
    file.touch()
    os.truncate(file, kept_bytes)
    return file.open("a", encoding="utf-8")
