"""P.Distance on made-up word vectors."""

from __future__ import annotations

from pathlib import Path

import pytest

from finetune.metrics import persona
from finetune.metrics.prediction import Prediction
from finetune.metrics.resources import Resources
from finetune.metrics.scoring import evaluate
from pretrain.errors import UserError

pytest.importorskip("gensim", reason="word vectors are read by the optional extra `metrics`")

VECTORS = "cat 1 0\ndog 4 3\ncar 0 2\nthe 1 1\nvery 0 1\n"
"""cos(cat, dog) = .8, cos(car, dog) = .6, cos(cat, car) = 0"""
DULL = frozenset({"the", "very"})


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("vectors") / "toy.txt"
    path.write_text(f"5 2\n{VECTORS}")
    return path


@pytest.mark.parametrize(
    ("reply", "value"),
    [
        ("the Dog!", (0.8 + 0.6) / 2),
        # the nearest of several: cat is in the persona
        ("dog cat", (1 + 0.6) / 2),
        ("a unicorn", 0),
        ("", 0),
    ],
)
def test_each_persona_keyword_takes_its_nearest_reply_keyword(place: Path, reply: str, value: float):
    vectors = persona.read_vectors(place)
    found = persona.persona_distance([reply], [["my cat", "the cat has a car"]], vectors, DULL)
    assert found == pytest.approx(value)


def test_a_persona_without_keywords_leaves_its_pair_out(place: Path):
    vectors = persona.read_vectors(place)
    # left out; cat against dog .8; no keyword in the reply 0
    replies, personas = ["dog", "dog", "hm"], [["the very"], ["cat"], ["cat"]]
    assert persona.persona_distance(replies, personas, vectors, DULL) == pytest.approx(0.4)
    assert persona.persona_distance(["dog"], [["unicorn"]], vectors, DULL) is None


def test_vectors_are_read_from_text_with_and_without_a_head(place: Path, tmp_path: Path):
    bare = tmp_path / "glove.txt"
    bare.write_text(VECTORS)
    for path in (place, bare):
        assert persona.read_vectors(path)["dog"].tolist() == [4, 3]


def test_binary_vectors_and_gensims_own_are_read(place: Path, tmp_path: Path):
    vectors = persona.read_vectors(place)
    vectors.save_word2vec_format(str(tmp_path / "toy.bin"), binary=True)
    vectors.save(str(tmp_path / "toy.kv"))
    for name in ("toy.bin", "toy.kv"):
        assert persona.read_vectors(tmp_path / name)["car"].tolist() == [0, 2]


def test_a_file_of_something_else_is_named(tmp_path: Path):
    path = tmp_path / "poem.txt"
    path.write_text("roses are red\nviolets are blue\n")
    with pytest.raises(UserError, match=r"poem\.txt: cannot be read as word vectors"):
        persona.read_vectors(path)


def test_frequent_words_come_by_number_then_by_spelling():
    assert persona.frequent_words(["b a", "B c a", "d"], 3) == ["a", "b", "c"]


def test_the_report_measures_both_personas_and_averages_draws(place: Path, tmp_path: Path):
    frequent = tmp_path / "frequent.txt"
    frequent.write_text("very\n")
    one = Prediction("d", 1, (), ("dog", "cat"), (), persona=("car",), partner_persona=("the very cat",))
    resources = Resources(word_vectors=place, frequent_words=frequent)
    report = evaluate([one], ["p_distance", "p_distance_own"], resources)
    # partner: cat-dog .8, cat-cat 1; own: car-dog .6, car-cat 0
    assert report.values == pytest.approx({"p_distance": 0.9, "p_distance_own": 0.3})
    assert "word_vectors toy.txt" in report.notes["p_distance"]
    assert "frequent_words frequent.txt" in report.notes["p_distance"]


def test_without_a_list_the_scored_dialogues_say_what_is_frequent(place: Path):
    # 100 words in the reference are more frequent than cat, which stands in the persona alone.
    common = " ".join(f"{chr(97 + n // 26)}{chr(97 + n % 26)}" for n in range(100))
    one = Prediction("d", 1, (f"{common} {common}",), ("dog",), (common,), partner_persona=("cat",))
    report = evaluate([one], ["p_distance"], Resources(word_vectors=place))
    assert report.values == pytest.approx({"p_distance": 0.8})
    short = Prediction("d", 1, ("a cat",), ("dog",), ("cat",), partner_persona=("cat",))
    report = evaluate([short], ["p_distance"], Resources(word_vectors=place))
    assert "frequent" in report.unavailable["p_distance"]
