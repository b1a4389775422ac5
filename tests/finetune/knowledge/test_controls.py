"""Table 5 and Figure 3: other items on the same words, or fewer words."""

from __future__ import annotations

from dataclasses import replace
from itertools import chain
from pathlib import Path

import numpy as np
import pytest

from finetune.dialogue.dialogue import Dialogue, Turn
from finetune.knowledge.annotations import Annotations, Spans
from finetune.knowledge.controls import controlled
from pretrain.errors import UserError
from tests.support.annotated import write

TEXTS = ("a b c d e", "f g", "no knowledge", "h i j k")
DIALOGUES = [Dialogue(text, (Turn(0, text), Turn(1, "reply"))) for text in TEXTS]
ITEMS = ([3, 1, 4, 1, 3], [5, 2], [], [6, 7, 7, 6])


def annotations(folder: Path) -> Annotations:
    rows = [[(2 * n, 2 * n + 1, item, n == 0, 0.5) for n, item in enumerate(items)] for items in ITEMS]
    spans = [
        replace(Spans.of(row), nouns=np.array([item % 2 == 0 for item in items], bool))
        for row, items in zip(rows, ITEMS, strict=True)
    ]
    keys = np.eye(8, dtype=np.float32)
    turns = [(dialogue, 0, found) for dialogue, found in zip(DIALOGUES, spans, strict=True)]
    return write(folder, turns, keys, [str(n) for n in range(8)])


def items(found: Annotations) -> list[list[int]]:
    return [found.of(dialogue, 0).items.tolist() for dialogue in DIALOGUES]


def test_random_keeps_how_often_each_item_comes(tmp_path: Path) -> None:
    plain = annotations(tmp_path / "a")
    shuffled = items(controlled(plain, "random", seed=1))
    assert shuffled != items(plain)
    assert [len(row) for row in shuffled] == [len(row) for row in ITEMS]
    assert sorted(chain(*shuffled)) == sorted(chain(*ITEMS))
    assert any(set(row) - set(own) for row, own in zip(shuffled, ITEMS, strict=True)), "between utterances"
    assert (
        shuffled == items(controlled(plain, "random", seed=1)) != items(controlled(plain, "random", seed=2))
    )


def test_sentence_gives_each_utterance_its_most_frequent_item(tmp_path: Path) -> None:
    # 3 and 1 come twice each, 3 first; 5 and 2 once; 6 and 7 twice, 6 first.
    assert items(controlled(annotations(tmp_path / "a"), "sentence")) == [[3] * 5, [5, 5], [], [6] * 4]


def test_factual_and_linguistic_share_the_words(tmp_path: Path) -> None:
    plain = annotations(tmp_path / "a")
    factual, linguistic = controlled(plain, "factual"), controlled(plain, "linguistic")
    assert items(factual) == [[4], [2], [], [6, 6]]
    assert items(linguistic) == [[3, 1, 1, 3], [5], [], [7, 7]]
    assert factual.of(DIALOGUES[0], 0).starts.tolist() == [4]
    assert linguistic.of(DIALOGUES[3], 0).starts.tolist() == [2, 4]


def test_the_original_is_as_it_was(tmp_path: Path) -> None:
    plain = annotations(tmp_path / "a")
    for kind in ("random", "sentence", "factual", "linguistic"):
        assert controlled(plain, kind).control == kind
        assert items(plain) == list(ITEMS)
    assert controlled(plain, "none") is plain


def test_untagged_words_have_no_factual_knowledge(tmp_path: Path) -> None:
    plain = write(tmp_path / "a", [(DIALOGUES[1], 0, Spans.of([(0, 1, 0, True, 1.0)]))], np.eye(1), ["s"])
    with pytest.raises(UserError, match=r"no parts of speech, .* -- annotate again with --pos"):
        controlled(plain, "factual")
    with pytest.raises(UserError, match="no control 'x'"):
        controlled(plain, "x")  # type: ignore[arg-type]
