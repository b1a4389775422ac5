"""The folder that training reads: what is written is found again, and what is damaged is refused."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from finetune.dialogue.dialogue import Dialogue, Turn
from finetune.knowledge.annotations import Annotations, Spans, annotated_turns, sentence_hash
from pretrain.errors import UserError
from tests.support.annotated import write

OWLS = Dialogue("owls", (Turn(0, "owls fly"), Turn(1, "at night ?"), Turn(0, "owls fly")))
CATS = Dialogue("cats", (Turn(0, "cats sleep"), Turn(1, "owls fly")))
SENTENCES = ("An owl is a bird.", "Flight is motion.", "An owl is a bird.")


def keys(rows: int, size: int = 4) -> np.ndarray:
    found = np.random.default_rng(0).standard_normal((rows, size))
    return (found / np.linalg.norm(found, axis=1, keepdims=True)).astype(np.float32)


def annotated(folder: Path, context_turns: int = 0) -> Annotations:
    return write(
        folder,
        [
            (OWLS, 0, Spans.of([(0, 4, 0, True, 1.0), (5, 8, 1, False, 0.5)])),
            (OWLS, 1, Spans.of([(3, 8, 2, False, 0.25)])),
            (CATS, 0, Spans.of([])),
        ],
        keys(3),
        SENTENCES,
        ("Owl", "Flight", "Owl bird"),
        context_turns=context_turns,
    )


def test_spans_come_back_with_their_utterance(tmp_path: Path) -> None:
    found = annotated(tmp_path / "a")
    spans = found.of(OWLS, 0)
    assert [(OWLS.turns[0].text[a:b]) for a, b in zip(spans.starts, spans.ends, strict=True)] == [
        "owls",
        "fly",
    ]
    assert spans.items.tolist() == [0, 1]
    assert spans.exact.tolist() == [True, False]
    assert spans.scores.tolist() == [1.0, 0.5]
    assert [array.dtype.str for array in (spans.starts, spans.items, spans.scores)] == ["<i4", "<i8", "<f4"]
    assert found.of(OWLS, 1).items.tolist() == [2]
    assert len(found.of(CATS, 0).items) == 0
    assert np.array_equal(found.keys, keys(3))
    assert found.sentences == list(SENTENCES)
    assert found.titles == ["Owl", "Flight", "Owl bird"]


def test_equal_sentences_have_equal_hashes(tmp_path: Path) -> None:
    hashes = annotated(tmp_path / "a").hashes
    assert hashes[0] == hashes[2] == sentence_hash(SENTENCES[0])
    assert hashes[0] != hashes[1]


def test_the_text_finds_an_utterance_not_its_dialogue(tmp_path: Path) -> None:
    found = annotated(tmp_path / "a")
    assert found.of(replace(CATS, id="other"), 1).items.tolist() == [0, 1]


def test_context_is_part_of_the_name(tmp_path: Path) -> None:
    found = annotated(tmp_path / "a", context_turns=1)
    assert found.of(OWLS, 0).items.tolist() == [0, 1]
    with pytest.raises(UserError, match=r"dialogue cats: turn 1 was not annotated -- .*membart ki annotate"):
        found.of(CATS, 1)


def test_the_last_turn_is_only_a_reply() -> None:
    assert list(annotated_turns(OWLS)) == [0, 1]
    assert list(annotated_turns(Dialogue("text", OWLS.turns[:1]))) == [0]


def test_the_manifest_counts(tmp_path: Path) -> None:
    manifest = annotated(tmp_path / "a").manifest
    assert (manifest.items, manifest.utterances, manifest.spans, manifest.exact) == (3, 3, 3, 1)
    assert manifest.joint_size == 4
    assert (
        manifest.hash == annotated(tmp_path / "b").manifest.hash != annotated(tmp_path / "c", 1).manifest.hash
    )


def test_absent_damaged_and_foreign_folders_are_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no annotations here -- make it with `membart ki annotate"):
        Annotations.open(tmp_path / "absent")
    folder = annotated(tmp_path / "a").folder
    content = (folder / "items.npy").read_bytes()
    (folder / "items.npy").write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(UserError, match=r"items.npy is damaged"):
        Annotations.open(folder)
    (folder / "items.npy").write_bytes(content[:-1])
    with pytest.raises(UserError, match=r"items.npy has"):
        Annotations.open(folder)
    (folder / "items.npy").unlink()
    with pytest.raises(UserError, match=r"items.npy cannot be read"):
        Annotations.open(folder)
    manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    for change, message in (({"version": 99}, "format 99"), ({"format": "a cake"}, "this is a cake")):
        (folder / "manifest.json").write_text(json.dumps(manifest | change), encoding="utf-8")
        with pytest.raises(UserError, match=message):
            Annotations.open(folder)
    (folder / "manifest.json").write_text("{", encoding="utf-8")
    with pytest.raises(UserError, match=r"manifest.json cannot be read"):
        Annotations.open(folder)


def test_nothing_is_overwritten_and_nothing_half_done_stays(tmp_path: Path) -> None:
    annotated(tmp_path / "a")
    with pytest.raises(UserError, match="already there"):
        annotated(tmp_path / "a")
    with pytest.raises(ValueError, match="no key"):
        write(tmp_path / "b", [(OWLS, 0, Spans.of([(0, 4, 7, True, 1.0)]))], keys(1), SENTENCES[:1])
    assert [entry.name for entry in tmp_path.iterdir()] == ["a"]
