"""Annotates dialogues with knowledge: in parts that survive an interruption, in any number of processes."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np
import torch

from finetune.dialogue.dialogue import Dialogue
from finetune.dialogue.load import load
from finetune.dialogue.wow_ki import CONTINUES, pieces_to_text
from finetune.knowledge import artifact, speech
from finetune.knowledge.annotations import (
    DTYPES,
    Annotations,
    Items,
    Spans,
    Table,
    annotated_turns,
    fill,
    joined,
    utterance_name,
)
from finetune.knowledge.index import KIND as INDEX
from finetune.knowledge.index import LEAST_RECALL, KnowledgeIndex
from finetune.knowledge.packages import needed
from finetune.knowledge.parallel import in_order
from finetune.knowledge.retrieval import Retrieval, RetrievalOptions, Utterance
from finetune.knowledge.words import StopWords
from pretrain import counter
from pretrain.errors import UserError

PARTS = "parts"
PART_UTTERANCES = 512
"""Utterances that are annotated and saved at a time."""
JOINT_SIZE = 64


@dataclass(frozen=True)
class Found:
    """What dialogues have to be annotated: every utterance once."""

    names: tuple[int, ...]
    utterances: tuple[Utterance, ...]

    @classmethod
    def of(cls, dialogues: Iterable[Dialogue], context_turns: int) -> Found:
        """The turns of dialogues that an encoder may read, in order."""
        found: dict[int, Utterance] = {}
        for dialogue in dialogues:
            for turn in annotated_turns(dialogue):
                name = utterance_name(dialogue, turn, context_turns)
                if name not in found:
                    found[name] = Utterance.of(dialogue, turn, context_turns)
        return cls(tuple(found), tuple(found.values()))

    @property
    def hash(self) -> str:
        """Stands for all of them in their order."""
        return blake2b(np.array(self.names, np.uint64).tobytes(), digest_size=16).hexdigest()


def annotate(
    index: KnowledgeIndex,
    dialogues: Iterable[Dialogue],
    out: Path,
    options: RetrievalOptions | None = None,
    *,
    stop: StopWords | None = None,
    sources: Sequence[str] = (),
    workers: int = 1,
    device: torch.device | None = None,
    restart: bool = False,
    told: Callable[[int, int], None] = lambda done, total: None,
) -> Annotations:
    """Find knowledge for every utterance; an interrupted call goes on where it stopped.

    The bytes of the folder do not depend on the number of workers: parts are fixed, and each is made on one
    thread.

    Args:
        sources: names of the data, for the record. told: called with the utterances done and all of them.

    Raises:
        UserError: the index loses too much, there is nothing to annotate, or `out` exists.
    """
    options, stop = options or RetrievalOptions(), stop or StopWords()
    device = device or torch.device("cpu")
    _require_recall(index)
    found = Found.of(dialogues, options.context_turns)
    if not found.names:
        raise UserError("no dialogue to annotate", where=", ".join(sources))
    stop_mark = blake2b("\n".join(sorted(stop.listed)).encode(), digest_size=8).hexdigest()
    described = {**options.model_dump(), "stop_list": stop_mark if options.stop_words else ""}
    plan = {"index": index.hash, "utterances": found.hash, "options": described}
    with artifact.resumable(out, plan, restart=restart) as folder:
        parts = folder / PARTS
        parts.mkdir(exist_ok=True)
        index.retriever.to(device)
        if options.pos:
            speech.tagger()  # the workers share it
        work = partial(_annotate_part, Retrieval(index, options, stop), found, parts)
        count = -(-len(found.names) // PART_UTTERANCES)
        missing = [part for part in range(count) if not (parts / f"{part}.npz").is_file()]
        done = len(found.names) - sum(len(_rows(found, part)) for part in missing)
        told(done, len(found.names))
        on_cpu = device.type == "cpu"
        for size in in_order(work, missing, workers if on_cpu else 0, _one_thread if on_cpu else None):
            done += size
            told(done, len(found.names))
        index.retriever.to("cpu")
        loaded = [_loaded(parts / f"{part}.npz") for part in range(count)]
        table, rows = renumbered(_joined_parts(loaded))
        base = index.base
        items = Items(base.names(rows), base.sentences(rows), base.hashes[rows])
        origin = {
            "index": index.hash,
            "retriever": index.manifest["retriever"],
            "knowledge_base": base.hash,
            "options": {**described, "recall": index.recall, "factory": index.manifest["factory"]},
        }
        fill(
            folder,
            table,
            np.asarray(index.keys[rows]),
            items,
            about={"sources": list(sources)},
            words=sum(int(part["words"]) for part in loaded),
            context_turns=options.context_turns,
            origin=origin,
        )
        shutil.rmtree(parts)
    return Annotations.open(out)


def annotate_released(
    dialogues: Iterable[Dialogue], out: Path, *, seed: int = 1, sources: Sequence[str] = ()
) -> Annotations:
    """The items that the authors of the paper published with their data, one for each word piece.

    Their knowledge base was never released: what an item says is not known, and its key is a random unit
    vector, a function of its number and `seed`. Training on it exercises everything and teaches nothing true.

    Raises:
        UserError: no turn has such items, or `out` exists.
    """
    spans: dict[int, Spans] = {}
    pieces = 0
    for dialogue in dialogues:
        for turn in annotated_turns(dialogue):
            said = dialogue.turns[turn]
            if said.vokens:
                spans[utterance_name(dialogue, turn, 0)] = released_spans(said.pieces, said.vokens)
                pieces += len(said.pieces)
    if not spans:
        raise UserError(
            "no published knowledge items in these data",
            where=", ".join(sources),
            mend="--released is for wow_ki; for others make an index and give --index",
        )
    table, numbers = renumbered(Table.of(spans))
    keys = random_keys(numbers, seed)
    unknown = [""] * len(numbers)
    with artifact.making(out) as folder:
        fill(
            folder,
            table,
            keys,
            Items([f"released item {number}" for number in numbers], unknown, numbers),
            about={"sources": list(sources)},
            words=pieces,
            origin={"keys": "random", "options": {"released": True, "seed": seed}},
        )
    return Annotations.open(out)


def released_spans(pieces: Sequence[str], vokens: Sequence[int]) -> Spans:
    """Spans of word pieces in the text that `wow_ki.pieces_to_text` makes of them; items as published."""
    rows, end = [], 0
    for number, (piece, voken) in enumerate(zip(pieces, vokens, strict=True)):
        start = end + (number > 0 and not piece.startswith(CONTINUES))
        end = start + len(piece.removeprefix(CONTINUES))
        if voken > 0 and end > start:
            rows.append((start, end, voken, False, 0.0))
    if end != len(pieces_to_text(pieces)):
        raise ValueError(f"pieces do not make up their text: {pieces}")
    return Spans.of(rows)


def random_keys(numbers: np.ndarray, seed: int, size: int = JOINT_SIZE) -> np.ndarray:
    """`[M, size]` float32: evenly spread unit vectors, each a function of its item's number and the seed."""
    uniform = counter.draw(counter.fold(seed, numbers.astype(np.int64)), 0, 2 * size) / 2.0**64
    radius = np.sqrt(-2 * np.log1p(-uniform[:, :size]))
    normal = radius * np.cos(2 * np.pi * uniform[:, size:])
    return (normal / np.linalg.norm(normal, axis=1, keepdims=True)).astype(np.float32)


def renumbered(table: Table) -> tuple[Table, np.ndarray]:
    """The table with its items as 0..M-1, and what they were, `[M]` int64 ascending."""
    rows, items = np.unique(table.spans.items, return_inverse=True)
    return replace(table, spans=replace(table.spans, items=items.astype(np.int64))), rows


def load_all(specs: Sequence[str], max_rejected: float) -> list[Dialogue]:
    """The dialogues of several `NAME:PATH`, all splits of each."""
    return [dialogue for spec in specs for dialogue in load(spec, max_rejected=max_rejected)]


def _require_recall(index: KnowledgeIndex) -> None:
    if index.recall < LEAST_RECALL:
        about = index.manifest["about"]
        raise UserError(
            f"finds the nearest item for {index.recall:.1%} of the words only, {LEAST_RECALL:.0%} are wanted",
            where=str(index.folder),
            mend="build it again with --factory Flat, or more --probes than "
            f"{index.manifest['probes']}: {INDEX.command}".replace("BASE", about["base"], 1).replace(
                "RETRIEVER", about["retriever"], 1
            ),
        )


def _rows(found: Found, part: int) -> range:
    return range(part * PART_UTTERANCES, min((part + 1) * PART_UTTERANCES, len(found.names)))


def _annotate_part(retrieval: Retrieval, found: Found, parts: Path, part: int) -> int:
    """Annotate the utterances of a part and save what was found; how many they are."""
    rows = _rows(found, part)
    spans, count = retrieval([found.utterances[row] for row in rows])
    whole = joined(spans)
    columns = {name: getattr(whole, name) for name in DTYPES if getattr(whole, name) is not None}
    columns["names"] = np.array([found.names[row] for row in rows], np.uint64)
    columns["lengths"] = np.array([len(each.items) for each in spans], np.int64)
    columns["words"] = np.array(count)
    artifact.put(parts / f"{part}.npz", lambda file: np.savez(file, **columns))
    return len(rows)


def _loaded(file: Path) -> dict[str, Any]:
    with artifact.left_behind(file):
        return dict(np.load(file))


def _joined_parts(parts: Sequence[dict[str, Any]]) -> Table:
    spans = joined([Spans(**{name: part[name] for name in DTYPES if name in part}) for part in parts])
    names, lengths = (np.concatenate([part[name] for part in parts]) for name in ("names", "lengths"))
    return Table.sorted(names, lengths, spans)


def _one_thread() -> None:
    """The order of a sum, so the last bit of a score, must not depend on how many threads there are."""
    needed("faiss").omp_set_num_threads(1)
