"""The index: every sentence of the knowledge base as a unit vector, searched by inner product (Eq. 5).

| file | holds |
|---|---|
| `manifest.json` | hashes of base and retriever, FAISS factory string, recall@1, bytes, titles found |
| `keys.npy` | `[N, joint_size]` float32 unit rows, memory-mapped |
| `index.faiss` | FAISS, memory-mapped |
"""

from __future__ import annotations

import math
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from finetune.knowledge import artifact
from finetune.knowledge.base import TITLES, KnowledgeBase
from finetune.knowledge.packages import needed
from finetune.knowledge.parallel import in_order
from finetune.knowledge.queries import Query, vectors
from finetune.knowledge.retriever.model import KIND as RETRIEVER
from finetune.knowledge.retriever.model import Retriever
from finetune.knowledge.words import StopWords, Word, words
from pretrain import counter
from pretrain.errors import UserError

KIND = artifact.Kind("knowledge index", "membart ki index --base BASE --retriever RETRIEVER --out FOLDER")
KEYS, INDEX, PARTS = "keys.npy", "index.faiss", "parts"
AUTO = "auto"
FLAT_ITEMS = 200_000
"""Up to so many items `auto` searches all of them."""
LEAST_RECALL = 0.95
"""Annotations are refused below it."""
RECALL_QUERIES = 1000
PART_ITEMS = 4096
"""Sentences that are encoded and saved at a time."""
BATCH_SENTENCES = 64
SAMPLES_PER_CELL = 64
"""Keys that the cells of an IVF are found from; FAISS wants 39 at least."""
_BLOCK = 1 << 18
_TIE = 1e-6


@dataclass(frozen=True)
class IndexOptions:
    """How the index is built."""

    factory: str = AUTO
    """A factory string of FAISS; `auto`: exact up to 200,000 items, then IVF over uncompressed vectors."""
    probes: int = 32
    """Cells of an IVF that a search looks into."""

    def resolved(self, items: int) -> str:
        """The factory string for so many items."""
        if self.factory != AUTO:
            return self.factory
        return "Flat" if items <= FLAT_ITEMS else f"IVF{2 ** math.ceil(math.log2(4 * math.sqrt(items)))},Flat"


class KnowledgeIndex:
    """An open index with the base and the retriever it was made of."""

    def __init__(
        self, folder: Path, manifest: dict[str, Any], base: KnowledgeBase, retriever: Retriever
    ) -> None:
        self.folder, self.manifest, self.base, self.retriever = folder, manifest, base, retriever

    @classmethod
    def open(cls, folder: Path, base: Path | None = None, retriever: Path | None = None) -> KnowledgeIndex:
        """Read a folder that `build` made.

        Args:
            base, retriever: where they are now, if they were moved.

        Raises:
            UserError: absent, damaged, of another format, or base or retriever are no longer those it was
                built from.
        """
        manifest = artifact.read(folder, KIND)
        places = manifest["about"]
        base, retriever = base or Path(places["base"]), retriever or Path(places["retriever"])
        rebuild = f"membart ki index --base {base} --retriever {retriever} --out NEW"
        found = KnowledgeBase.open(base)
        _same("knowledge base", found.hash, manifest["knowledge_base"], folder, rebuild)
        mark = artifact.look(retriever, RETRIEVER)["hash"]
        _same("retriever", mark, manifest["retriever"], folder, rebuild)
        return cls(folder, manifest, found, Retriever.open(retriever))

    @property
    def hash(self) -> str:
        """Stands for keys and index."""
        return str(self.manifest["hash"])

    @property
    def recall(self) -> float:
        """Recall@1 against exact search."""
        return float(self.manifest["recall"])

    @cached_property
    def keys(self) -> np.ndarray:
        """`[N, joint_size]` float32"""
        return np.load(self.folder / KEYS, mmap_mode="r")

    @cached_property
    def _faiss(self) -> Any:
        return _read(self.folder / INDEX, int(self.manifest["probes"]))

    def search(self, queries: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """For unit rows `[n, joint_size]` the nearest item of each, `[n]` int64, and its score, `[n]`."""
        if not len(queries):
            return np.empty(0, np.int64), np.empty(0, np.float32)
        scores, items = self._faiss.search(np.ascontiguousarray(queries, np.float32), 1)
        return items[:, 0].astype(np.int64), scores[:, 0].astype(np.float32)


def build(
    base_folder: Path,
    retriever_folder: Path,
    out: Path,
    options: IndexOptions | None = None,
    *,
    workers: int = 1,
    device: torch.device | None = None,
    restart: bool = False,
    told: Callable[[int, int], None] = lambda done, total: None,
) -> KnowledgeIndex:
    """Encode every sentence and index the keys; an interrupted call goes on where it stopped.

    Args:
        workers: processes that encode, on the CPU. told: called with the sentences done and all of them.

    Raises:
        UserError: an input is missing or damaged, the factory string is none, or `out` exists.
    """
    faiss = needed("faiss")
    options = options or IndexOptions()
    base, retriever = KnowledgeBase.open(base_folder), Retriever.open(retriever_folder)
    mark = artifact.look(retriever_folder, RETRIEVER)["hash"]
    factory = options.resolved(len(base))
    plan = {"base": base.hash, "retriever": mark, "factory": factory, "probes": options.probes}
    artifact.require_free(out)
    _check_factory(faiss, factory, retriever.settings.joint_size, len(base))
    with artifact.resumable(out, plan, restart=restart) as folder:
        _encode(base, retriever, folder / PARTS, workers, device or torch.device("cpu"), told)
        keys = _join(base, retriever, folder)
        began = time.perf_counter()
        index = indexed(keys, folder / INDEX, factory, options.probes)
        seconds = time.perf_counter() - began
        recall, rate = measured(index, keys, _asked(base, retriever))
        facts = {
            "knowledge_base": base.hash,
            "retriever": mark,
            "titles_found": round(titles_found(index, base, retriever), 4),
            "items": len(base),
            "joint_size": int(keys.shape[1]),
            "factory": factory,
            "probes": options.probes,
            "recall": round(recall, 4),
        }
        about = {
            "base": str(base_folder.absolute()),
            "retriever": str(retriever_folder.absolute()),
            "bytes": {
                "index": (folder / INDEX).stat().st_size,
                "keys": (folder / KEYS).stat().st_size,
                "titles": (base_folder / TITLES).stat().st_size,
            },
            "build_seconds": round(seconds, 1),
            "queries_per_second": round(rate, 1),
        }
        shutil.rmtree(folder / PARTS)
        artifact.seal(folder, KIND, facts, about)
    return KnowledgeIndex(out, artifact.look(out, KIND), base, retriever)


def indexed(keys: np.ndarray, file: Path, factory: str, probes: int) -> Any:
    """Write the FAISS index of unit rows `[N, j]` to a file; the index, memory-mapped.

    Raises:
        UserError: no such factory string, or one that needs more keys.
    """
    faiss = needed("faiss")
    index = _made(faiss, factory, keys.shape[1])
    _train(faiss, index, keys, factory)
    for at in range(0, len(keys), _BLOCK):
        index.add(np.ascontiguousarray(keys[at : at + _BLOCK]))
    faiss.write_index(index, str(file))
    return _read(file, probes)


def nearest(keys: np.ndarray, queries: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Exact search, in blocks: the best row of `keys [N, j]` for each of `queries [n, j]`, and its score."""
    items, scores = np.zeros(len(queries), np.int64), np.full(len(queries), -np.inf, np.float32)
    for at in range(0, len(keys), _BLOCK):
        found = queries @ np.asarray(keys[at : at + _BLOCK]).T
        rows = found.argmax(axis=1)
        best = found[np.arange(len(queries)), rows]
        better = best > scores
        items[better], scores[better] = at + rows[better], best[better]
    return items, scores


def measured(index: Any, keys: np.ndarray, queries: np.ndarray) -> tuple[float, float]:
    """Recall@1 of an index against exact search, and its queries a second.

    An item as near as the nearest counts as found: equal sentences have equal keys.
    """
    _, wanted = nearest(keys, queries)
    began = time.perf_counter()
    _, items = index.search(queries, 1)
    rate = len(queries) / max(time.perf_counter() - began, 1e-9)
    found = np.einsum("ij,ij->i", queries, np.asarray(keys[np.maximum(items[:, 0], 0)]))
    hit = (items[:, 0] >= 0) & (found >= wanted - _TIE)
    return float(hit.mean()), rate


def titles_found(index: Any, base: KnowledgeBase, retriever: Retriever) -> float:
    """Share of up to 1,000 titles that, read alone, find their own sentence or one of equal text.

    The one measure of the retriever itself that needs no labels: recall within batches is high even if it
    reads whole sentences only and forgets the word that is asked for.
    """
    rows = counter.permutation(len(base), 4)[:RECALL_QUERIES]
    names = base.names(rows)
    asked = [Query(name, [Word(name, 0, len(name))]) for name in names]
    _, found = index.search(np.concatenate(vectors(retriever, asked)), 1)
    return float((base.hashes[found[:, 0]] == base.hashes[rows]).mean())


def _same(what: str, found: str, wanted: str, folder: Path, rebuild: str) -> None:
    if found != wanted:
        raise UserError(f"built from another {what}", where=str(folder), mend=f"build it again: {rebuild}")


def _encode(
    base: KnowledgeBase,
    retriever: Retriever,
    parts: Path,
    workers: int,
    device: torch.device,
    told: Callable[[int, int], None],
) -> None:
    """Keys of every `PART_ITEMS` rows as a file; those that are there already are left."""
    parts.mkdir(exist_ok=True)
    count = -(-len(base) // PART_ITEMS)
    missing = [part for part in range(count) if not (parts / f"{part}.npy").is_file()]
    done = len(base) - sum(min(PART_ITEMS, len(base) - part * PART_ITEMS) for part in missing)
    told(done, len(base))
    retriever.to(device)

    def work(part: int) -> int:
        rows = np.arange(part * PART_ITEMS, min((part + 1) * PART_ITEMS, len(base)))
        keys = encoded(retriever, base.sentences(rows))
        artifact.put(parts / f"{part}.npy", lambda file: np.save(file, keys, allow_pickle=False))
        return len(rows)

    for size in in_order(work, missing, workers if device.type == "cpu" else 0):
        done += size
        told(done, len(base))
    retriever.to("cpu")


@torch.no_grad()
def encoded(retriever: Retriever, sentences: list[str]) -> np.ndarray:
    """Keys `[n, joint_size]` float32 of sentences, in batches of like length."""
    device = next(retriever.parameters()).device
    keys = np.empty((len(sentences), retriever.settings.joint_size), np.float32)
    order = sorted(range(len(sentences)), key=lambda row: len(sentences[row]))
    for at in range(0, len(order), BATCH_SENTENCES):
        rows = order[at : at + BATCH_SENTENCES]
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            found = retriever.keys(retriever.encode([sentences[row] for row in rows]).to(device))
        keys[rows] = found.float().cpu().numpy()
    return keys


def _join(base: KnowledgeBase, retriever: Retriever, folder: Path) -> np.ndarray:
    """All parts as one file, memory-mapped."""
    shape = (len(base), retriever.settings.joint_size)
    keys = np.lib.format.open_memmap(folder / KEYS, mode="w+", dtype=np.float32, shape=shape)
    for part in range(-(-len(base) // PART_ITEMS)):
        file = folder / PARTS / f"{part}.npy"
        with artifact.left_behind(file):
            keys[part * PART_ITEMS : (part + 1) * PART_ITEMS] = np.load(file)
    keys.flush()
    return np.load(folder / KEYS, mmap_mode="r")


def _made(faiss: Any, factory: str, size: int) -> Any:
    try:
        return faiss.index_factory(size, factory, faiss.METRIC_INNER_PRODUCT)
    except RuntimeError:
        raise UserError(
            f"'{factory}' is no factory string of FAISS for {size} dimensions",
            where="--factory",
            mend="for example Flat, IVF16384,Flat or IVF16384,SQfp16",
        ) from None


def _check_factory(faiss: Any, factory: str, size: int, items: int) -> None:
    """Refuse, before anything is encoded, what cannot be trained on so few items."""
    index = _made(faiss, factory, size)
    inverted = faiss.try_extract_index_ivf(index)
    if inverted is not None and items < inverted.nlist:
        raise UserError(f"{inverted.nlist} cells for {items} items", where="--factory", mend="fewer, or Flat")
    if items <= PART_ITEMS:
        _train(faiss, index, np.random.default_rng(1).standard_normal((items, size), np.float32), factory)


def _train(faiss: Any, index: Any, keys: np.ndarray, factory: str) -> None:
    """Find the cells of an IVF, and whatever else the factory string asks for."""
    try:
        _trained(faiss, index, keys)
    except RuntimeError as error:
        raise UserError(
            f"'{factory}' cannot be trained on {len(keys)} items ({str(error).rpartition('failed: ')[2]})",
            where="--factory",
            mend="Flat, which needs none",
        ) from None


def _trained(faiss: Any, index: Any, keys: np.ndarray) -> None:
    """FAISS takes a sample of the keys."""
    if index.is_trained:
        return
    inverted = faiss.try_extract_index_ivf(index)
    if inverted is not None:
        inverted.cp.spherical = True
        rows = np.sort(counter.permutation(len(keys), 3)[: SAMPLES_PER_CELL * inverted.nlist])
        index.train(np.ascontiguousarray(keys[rows]))
        return
    index.train(np.ascontiguousarray(keys))


def _read(file: Path, probes: int) -> Any:
    """The index, memory-mapped; on the GPUs where FAISS has some."""
    faiss = needed("faiss")
    index = faiss.read_index(str(file), faiss.IO_FLAG_MMAP_IFC)
    if faiss.get_num_gpus():
        index = faiss.index_cpu_to_all_gpus(faiss.read_index(str(file)))
    inverted = faiss.try_extract_index_ivf(index)
    if inverted is not None:
        inverted.nprobe = min(probes, inverted.nlist)
    return index


def _asked(base: KnowledgeBase, retriever: Retriever) -> np.ndarray:
    """Queries to measure recall with: one content word each of up to 1,000 sentences of the base."""
    rows = counter.permutation(len(base), 1)[:RECALL_QUERIES]
    stop, asked = StopWords(), []
    for number, sentence in enumerate(base.sentences(rows)):
        content = [word for word in words(sentence) if word.text not in stop] or words(sentence)
        dice = int(counter.fold(2, number)[0])
        asked.append(Query(sentence, [content[dice % len(content)]] if content else []))
    found = np.concatenate(vectors(retriever, asked))
    return found[np.linalg.norm(found, axis=1) > 0]
