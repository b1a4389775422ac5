"""Which item of knowledge each word of an utterance has: the folder that training reads.

It is portable and complete: spans of characters, the unit key of every item in use, and for inspection the
items' sentences. Retriever, index and knowledge base are not needed beside it.

| file | holds |
|---|---|
| `manifest.json` | `Manifest`; size and sha256 of every file |
| `keys.npy` | `[M, joint_size]` float32, unit rows: the items in use, renumbered from 0 |
| `hashes.npy` | `[M]` int64: equal for equal sentences |
| `items.parquet` | title and sentence of each item, by row |
| `utterances.npy`, `offsets.npy` | `[U]` uint64 names of utterances, sorted; `[U + 1]` where each begins |
| `starts.npy`, `ends.npy`, `items.npy`, `exact.npy`, `scores.npy` | the spans, `[S]` |
| `nouns.npy` | `[S]` whether the word is a noun; only where words were tagged |

An utterance is found by its text and the `context_turns` texts before it, as the retriever saw them, so names
of dialogues do not matter. The last turn of a dialogue is only ever a reply, never read by an encoder, and is
not annotated (unless it is the only one).

`finetune.knowledge.controls.controlled(annotations, kind, seed)` gives the same object with other items: the
controls of Table 5 and Figure 3.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
from pyarrow import parquet

from finetune.dialogue.dialogue import Dialogue
from finetune.knowledge import artifact
from pretrain.errors import UserError

KIND = artifact.Kind("annotations", "membart ki annotate --index INDEX --data NAME:PATH --out FOLDER")
MAPPED_BYTES = 1 << 20
"""Arrays of fewer bytes are read whole."""
ITEMS = "items.parquet"


@dataclass(frozen=True)
class Spans:
    """The words of one utterance that have knowledge, in order; all `[n]`."""

    starts: np.ndarray
    """int32, character offsets into `Turn.text`."""
    ends: np.ndarray
    """int32"""
    items: np.ndarray
    """int64, row of `Annotations.keys`."""
    exact: np.ndarray
    """bool, found by title rather than by search."""
    scores: np.ndarray
    """float32, inner product of word and item; 1 where found by title."""
    nouns: np.ndarray | None = None
    """bool, noun or proper noun; None where words were not tagged."""

    def rows(self, which: slice | np.ndarray) -> Spans:
        """Some of them."""
        columns = {name: getattr(self, name) for name in DTYPES}
        found: dict[str, Any] = {name: all[which] for name, all in columns.items() if all is not None}
        return Spans(**found)

    @classmethod
    def of(cls, rows: Sequence[tuple[int, int, int, bool, float]]) -> Spans:
        """From rows of (start, end, item, exact, score)."""
        columns = list(zip(*rows, strict=True)) or [()] * 5
        return cls(*(np.array(column, DTYPES[name]) for name, column in zip(DTYPES, columns, strict=False)))


DTYPES: Mapping[str, type] = {
    "starts": np.int32,
    "ends": np.int32,
    "items": np.int64,
    "exact": np.bool_,
    "scores": np.float32,
    "nouns": np.bool_,
}


@dataclass(frozen=True)
class Table:
    """The spans of U utterances end to end, S in all."""

    utterances: np.ndarray
    """`[U]` uint64, strictly ascending: `utterance_name`."""
    offsets: np.ndarray
    """`[U + 1]` int64"""
    spans: Spans

    @classmethod
    def of(cls, annotated: Mapping[int, Spans]) -> Table:
        """From spans by the name of the utterance."""
        lengths = [len(spans.items) for spans in annotated.values()]
        return cls.sorted(
            np.array(list(annotated), np.uint64), np.array(lengths, np.int64), joined([*annotated.values()])
        )

    @classmethod
    def sorted(cls, names: np.ndarray, lengths: np.ndarray, spans: Spans) -> Table:
        """From utterances in any order: names `[U]` uint64, how many spans each has, the spans end to end."""
        order = np.argsort(names)
        starts = (np.cumsum(lengths) - lengths)[order]
        offsets = np.concatenate([[0], np.cumsum(lengths[order])]).astype(np.int64)
        rows = np.repeat(starts - offsets[:-1], lengths[order]) + np.arange(offsets[-1])
        return cls(names[order], offsets, spans.rows(rows))

    @property
    def owners(self) -> np.ndarray:
        """`[S]` int64, number of the utterance of each span."""
        return np.repeat(np.arange(len(self.utterances)), np.diff(self.offsets))


@dataclass(frozen=True)
class Manifest:
    """What an annotation is, and what it was made from."""

    joint_size: int
    keys: Literal["retriever", "random"]
    """`random`: the items are real, what they say is not known (`membart ki annotate --released`)."""
    items: int
    utterances: int
    words: int
    """Stop words among them; 0 where nobody counted."""
    spans: int
    """Words with knowledge."""
    exact: int
    """Of these, found by title."""
    context_turns: int = 0
    """So many turns before an utterance were read with it."""
    index: str = ""
    """Hash; empty where there was none, as in the next two."""
    retriever: str = ""
    knowledge_base: str = ""
    options: Mapping[str, Any] = field(default_factory=dict)
    hash: str = ""
    """Stands for all of the above and every file."""

    @property
    def coverage(self) -> float:
        """Share of the words that have knowledge."""
        return self.spans / self.words if self.words else 0.0


@dataclass(frozen=True)
class Annotations:
    """An open folder."""

    folder: Path
    manifest: Manifest
    keys: np.ndarray
    """`[M, joint_size]` float32, unit rows, memory-mapped where large."""
    hashes: np.ndarray
    """`[M]` int64: equal sentences are equal."""
    table: Table
    control: str = "none"
    """What `controlled` did."""

    @classmethod
    def open(cls, folder: Path) -> Annotations:
        """Read a folder that `fill` filled.

        Raises:
            UserError: absent, damaged, or of another format.
        """
        found = artifact.read(folder, KIND)
        known = {each.name for each in fields(Manifest)}
        manifest = Manifest(**{key: value for key, value in found.items() if key in known})
        arrays = {
            name.removesuffix(".npy"): folder / name for name in found["files"] if name.endswith(".npy")
        }
        loaded = {name: _load(file) for name, file in arrays.items()}
        spans = Spans(**{name: loaded[name] for name in DTYPES if name in loaded})
        table = Table(loaded["utterances"], loaded["offsets"], spans)
        return cls(folder, manifest, loaded["keys"], loaded["hashes"], table)

    def of(self, dialogue: Dialogue, turn: int) -> Spans:
        """The spans of a turn's text.

        Raises:
            UserError: it was not annotated.
        """
        name = np.uint64(utterance_name(dialogue, turn, self.manifest.context_turns))
        row = int(np.searchsorted(self.table.utterances, name))
        if row == len(self.table.utterances) or self.table.utterances[row] != name:
            raise UserError(
                f"turn {turn} was not annotated",
                where=f"{self.folder}: dialogue {dialogue.id}",
                mend=f"annotate these dialogues, all splits of them: {KIND.command}",
            )
        start, stop = int(self.table.offsets[row]), int(self.table.offsets[row + 1])
        return self.table.spans.rows(slice(start, stop))

    @cached_property
    def _texts(self) -> dict[str, list[str]]:
        return parquet.read_table(self.folder / ITEMS).to_pydict()

    @property
    def titles(self) -> list[str]:
        """Title of each item, by row; empty where not known."""
        return self._texts["title"]

    @property
    def sentences(self) -> list[str]:
        """Sentence of each item, by row; empty where not known."""
        return self._texts["sentence"]


def annotated_turns(dialogue: Dialogue) -> range:
    """The turns that an encoder may read: all but the last, which is only ever a reply."""
    return range(max(len(dialogue.turns) - 1, 1))


def context_of(dialogue: Dialogue, turn: int, context_turns: int) -> tuple[str, ...]:
    """The texts of up to `context_turns` turns before a turn."""
    return tuple(each.text for each in dialogue.turns[max(turn - context_turns, 0) : turn])


def utterance_name(dialogue: Dialogue, turn: int, context_turns: int) -> int:
    """64-bit hash of a turn's text with what was read before it."""
    texts = (*context_of(dialogue, turn, context_turns), dialogue.turns[turn].text)
    return int.from_bytes(_hash("\x1e".join(texts)), "little")


def sentence_hash(sentence: str) -> int:
    """Signed 64-bit hash of a sentence."""
    return int.from_bytes(_hash(sentence), "little", signed=True)


@dataclass(frozen=True)
class Items:
    """What the rows of `keys` stand for, `[M]` each."""

    titles: Sequence[str]
    sentences: Sequence[str]
    hashes: Sequence[int] | np.ndarray
    """int64"""


def fill(
    folder: Path,
    table: Table,
    keys: np.ndarray,
    items: Items,
    *,
    about: Mapping[str, Any] | None = None,
    words: int = 0,
    context_turns: int = 0,
    origin: Mapping[str, Any] | None = None,
) -> None:
    """Write all files of an annotation into an unfinished folder.

    Args:
        origin: other fields of `Manifest`. about: what does not count for the hash, such as the data's names.
    """
    if not len(keys) == len(items.titles) == len(items.sentences) == len(items.hashes):
        raise ValueError("keys, titles, sentences and hashes have one row for each item")
    spans = table.spans
    if len(spans.items) and not 0 <= spans.items.min() <= spans.items.max() < len(keys):
        raise ValueError("a span names an item that has no key")
    arrays = {
        "keys": np.asarray(keys, np.float32),
        "hashes": np.asarray(items.hashes, np.int64),
        "utterances": table.utterances,
        "offsets": table.offsets,
        **{name: getattr(spans, name) for name in DTYPES if getattr(spans, name) is not None},
    }
    for name, array in arrays.items():
        np.save(folder / f"{name}.npy", array, allow_pickle=False)
    texts = {"title": pa.array(items.titles, pa.string()), "sentence": pa.array(items.sentences, pa.string())}
    parquet.write_table(pa.table(texts), folder / ITEMS, compression="zstd")
    manifest = Manifest(
        **{
            "joint_size": keys.shape[1],
            "keys": "retriever",
            "items": len(keys),
            "utterances": len(table.utterances),
            "words": words,
            "spans": len(spans.items),
            "exact": int(spans.exact.sum()),
            "context_turns": context_turns,
            **(origin or {}),
        }
    )
    facts = {name: value for name, value in asdict(manifest).items() if name != "hash"}
    artifact.seal(folder, KIND, facts, {"coverage": round(manifest.coverage, 4), **(about or {})})


def joined(parts: Sequence[Spans]) -> Spans:
    """Spans end to end; tagged only if all are."""
    tagged = bool(parts) and all(part.nouns is not None for part in parts)
    columns: dict[str, Any] = {
        name: np.concatenate([np.array([], kind), *(getattr(part, name) for part in parts)]).astype(kind)
        for name, kind in DTYPES.items()
        if name != "nouns" or tagged
    }
    return Spans(**columns)


def _hash(text: str) -> bytes:
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest()


def _load(file: Path) -> np.ndarray:
    large = file.stat().st_size >= MAPPED_BYTES
    return np.load(file, mmap_mode="r" if large else None, allow_pickle=False)
