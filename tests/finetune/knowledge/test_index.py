"""Search is exact where it says so, its loss is measured, and an index of other things is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from finetune.knowledge.base import build as build_base
from finetune.knowledge.index import (
    IndexOptions,
    KnowledgeIndex,
    build,
    encoded,
    indexed,
    measured,
    nearest,
)
from finetune.knowledge.queries import Query, vectors
from finetune.knowledge.words import Word, words
from pretrain.errors import UserError
from tests.support import knowledge


def unit(count: int, size: int, seed: int) -> np.ndarray:
    found = np.random.default_rng(seed).standard_normal((count, size)).astype(np.float32)
    return found / np.linalg.norm(found, axis=1, keepdims=True)


def test_flat_is_the_argmax(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("finetune.knowledge.index._BLOCK", 3000)
    keys, queries = unit(10_000, 16, 0), unit(200, 16, 1)
    index = indexed(keys, tmp_path / "index", "Flat", 1)
    scores, items = index.search(queries, 1)
    assert np.array_equal(items[:, 0], (queries @ keys.T).argmax(axis=1))
    assert np.array_equal(nearest(keys, queries)[0], items[:, 0])
    assert np.allclose(nearest(keys, queries)[1], scores[:, 0], atol=1e-6)
    assert measured(index, keys, queries)[0] == 1


def test_recall_of_cells_is_measured_and_grows_with_probes(tmp_path: Path) -> None:
    keys, queries = unit(5_000, 16, 0), unit(300, 16, 1)
    few, many = (
        measured(indexed(keys, tmp_path / f"{probes}", "IVF50,Flat", probes), keys, queries)[0]
        for probes in (1, 50)
    )
    _, items = indexed(keys, tmp_path / "1", "IVF50,Flat", 1).search(queries, 1)
    assert few == pytest.approx((items[:, 0] == nearest(keys, queries)[0]).mean())
    assert few < many == 1


def test_equal_keys_both_count_as_found(tmp_path: Path) -> None:
    keys = np.concatenate([unit(50, 8, 0)] * 2)
    assert measured(indexed(keys, tmp_path / "index", "Flat", 1), keys, keys[50:])[0] == 1


def test_every_sentence_has_its_key(tmp_path: Path) -> None:
    index, base = knowledge.index(), knowledge.base()
    alone = encoded(knowledge.retriever(), base.sentences([5]))
    assert np.allclose(index.keys[5], alone[0], atol=1e-5)
    assert np.allclose(np.linalg.norm(index.keys, axis=1), 1, atol=1e-5)
    assert (index.manifest["factory"], index.manifest["items"], index.recall) == ("Flat", 64, 1.0)
    assert index.manifest["about"]["bytes"]["keys"] >= 64 * 64 * 4
    assert index.search(index.keys[:3])[0].tolist() == [0, 1, 2]


def test_titles_alone_are_asked_for(tmp_path: Path) -> None:
    index, base = knowledge.index(), knowledge.base()
    names = base.names(range(64))
    queries = [Query(name, [Word(name, 0, len(name))]) for name in names]
    found = nearest(index.keys, np.concatenate(vectors(index.retriever, queries)))[0]
    assert index.manifest["titles_found"] == pytest.approx((found == np.arange(64)).mean(), abs=0.02)
    assert index.manifest["titles_found"] > 3 / 64  # chance is 1 / 64


def test_recall_of_cells_is_stored_and_an_index_of_other_keys_is_refused(tmp_path: Path) -> None:
    base, retriever = knowledge.base().folder, knowledge.retriever_folder()
    made = build(base, retriever, tmp_path / "index", IndexOptions("IVF16,Flat", probes=1))
    asked = [Query(text, words(text)[-1:]) for text in knowledge.base().sentences(range(64))]
    wanted = np.concatenate(vectors(made.retriever, asked))
    lost = (made.search(wanted)[0] != nearest(made.keys, wanted)[0]).mean()
    assert KnowledgeIndex.open(tmp_path / "index").recall == made.recall
    assert 0 < made.recall < 1
    assert lost > 0
    indexed(unit(64, 64, 0), tmp_path / "index" / "index.faiss", "IVF16,Flat", 1)
    with pytest.raises(UserError, match=r"index\.faiss (is damaged|has)"):
        KnowledgeIndex.open(tmp_path / "index")


def test_a_small_base_is_searched_whole_and_a_large_one_in_cells() -> None:
    auto = IndexOptions()
    assert auto.resolved(200_000) == "Flat"
    assert auto.resolved(1_000_000) == "IVF4096,Flat"
    assert auto.resolved(6_400_000) == "IVF16384,Flat"
    assert IndexOptions("IVF8,SQfp16").resolved(100) == "IVF8,SQfp16"


def test_an_interrupted_build_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("finetune.knowledge.index.PART_ITEMS", 20)
    base, retriever = knowledge.base().folder, knowledge.retriever_folder()

    def stop(done: int, total: int) -> None:
        if done >= 40:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build(base, retriever, tmp_path / "index", told=stop)
    kept = {file.name: file.stat().st_mtime_ns for file in (tmp_path / "index.building/parts").iterdir()}
    assert len(kept) >= 2
    first: list[int] = []
    made = build(base, retriever, tmp_path / "index", told=lambda done, total: first.append(done))
    assert first[0] >= 40
    assert first[-1] == 64
    assert np.allclose(made.keys, knowledge.index().keys, atol=1e-5)
    assert sorted(file.name for file in (tmp_path / "index").iterdir()) == [
        *("index.faiss", "keys.npy", "manifest.json"),
    ]


def test_a_part_that_was_damaged_meanwhile_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("finetune.knowledge.index.PART_ITEMS", 20)
    base, retriever = knowledge.base().folder, knowledge.retriever_folder()

    def stop(done: int, total: int) -> None:
        if done:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build(base, retriever, tmp_path / "index", told=stop)
    part = next((tmp_path / "index.building/parts").iterdir())
    part.write_bytes(part.read_bytes()[:-8])
    with pytest.raises(UserError, match=r"parts/0\.npy: left by an interrupted call, .* -- --restart"):
        build(base, retriever, tmp_path / "index")


def test_another_base_or_retriever_is_refused_with_the_command(tmp_path: Path) -> None:
    index = knowledge.index()
    (tmp_path / "wiki.tsv").write_text("Owl\tOwls are birds of the night.\n", encoding="utf-8")
    other = build_base([str(tmp_path / "wiki.tsv")], tmp_path / "base").folder
    with pytest.raises(UserError, match=r"built from another knowledge base -- .*membart ki index --base"):
        KnowledgeIndex.open(index.folder, base=other)
    changed = tmp_path / "retriever"
    shutil.copytree(knowledge.retriever_folder(), changed)
    manifest = json.loads((changed / "manifest.json").read_text(encoding="utf-8"))
    (changed / "manifest.json").write_text(json.dumps(manifest | {"hash": "0"}), encoding="utf-8")
    with pytest.raises(UserError, match="built from another retriever"):
        KnowledgeIndex.open(index.folder, retriever=changed)
    moved = tmp_path / "moved"
    shutil.copytree(knowledge.base().folder, moved)
    assert KnowledgeIndex.open(index.folder, base=moved).hash == index.hash


@pytest.mark.parametrize(
    ("factory", "message"),
    [
        ("Cake", "no factory string"),
        ("IVF1000,Flat", "1000 cells"),
        ("PQ8", r"'PQ8' cannot be trained on 64 items \(Number of training points"),
        ("PCA128,Flat", "cannot be trained on 64 items"),
    ],
)
def test_factories_that_cannot_be_are_one_line(tmp_path: Path, factory: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        build(knowledge.base().folder, knowledge.retriever_folder(), tmp_path / "i", IndexOptions(factory))
    assert not list(tmp_path.iterdir())  # nothing that a right command would stumble over
