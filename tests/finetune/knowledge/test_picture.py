"""Figure 2: which words are drawn, and where."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from finetune.dialogue.dialogue import Dialogue, Turn
from finetune.knowledge.annotations import Annotations, Spans
from finetune.knowledge.picture import Map, distances, draw, neighbourhood, plane, word_vectors
from pretrain.errors import UserError
from tests.support import knowledge
from tests.support.annotated import write

TALK = Dialogue(
    "talk", (Turn(0, "Rowling wrote a book"), Turn(1, "the book of Rowling is famous"), Turn(0, "yes"))
)
SENTENCES = ("Rowling is a British author of a famous book.", "A book has pages.")


@pytest.fixture
def annotations(tmp_path: Path) -> Annotations:
    spans = [
        (TALK, 0, Spans.of([(0, 7, 0, True, 1.0), (16, 20, 1, False, 0.5)])),
        (TALK, 1, Spans.of([(4, 8, 1, False, 0.5), (12, 19, 0, True, 1.0)])),
    ]
    return write(tmp_path / "annotations", spans, np.eye(2), SENTENCES)


def test_words_of_the_knowledge_and_of_the_company(annotations: Annotations) -> None:
    around = neighbourhood("Rowling", annotations, [TALK])
    assert around.sentence == SENTENCES[0]
    assert around.knowledge == ("british", "author", "famous", "book")
    assert around.companions == ("book", "famous", "wrote")
    assert around.unheard == ("british", "author")
    few = neighbourhood("Rowling", annotations, [TALK], most=1)
    assert (few.companions, few.unheard) == (("book",), ("british", "author"))
    assert around.all == ["rowling", "british", "author", "famous", "book", "wrote"]
    with pytest.raises(UserError, match="'wrote' has no knowledge"):
        neighbourhood("wrote", annotations, [TALK])


def test_the_plane_keeps_the_two_widest_directions() -> None:
    points = np.zeros((4, 5))
    points[:, 3] = (-4, 4, 0, 0)
    points[:, 1] = (0, 0, 1, -1)
    found = np.abs(plane(points + 7))
    assert np.allclose(found, [[4, 0], [4, 0], [0, 1], [0, 1]])


def test_the_picture_shows_each_model(annotations: Annotations, tmp_path: Path) -> None:
    around = neighbourhood("rowling", annotations, [TALK])
    vectors = word_vectors(str(knowledge.model_folder()), around.all)
    assert vectors.shape == (6, 32)
    maps = [Map("without", vectors), Map("with", vectors * 0.5)]
    far, near = (distances(around, each) for each in maps)
    assert set(far) == {"british", "author"}
    assert far["author"] == pytest.approx(np.linalg.norm(vectors[0] - vectors[2]), rel=1e-5)
    assert near["author"] == pytest.approx(far["author"] / 2, rel=1e-5)
    one, two = draw(around, maps[:1], tmp_path / "one.png"), draw(around, maps, tmp_path / "two")
    assert one.read_bytes()[:4] == two.read_bytes()[:4] == b"\x89PNG"
    assert width(two) == 2 * width(one)


def width(picture: Path) -> int:
    return int.from_bytes(picture.read_bytes()[16:20], "big")
