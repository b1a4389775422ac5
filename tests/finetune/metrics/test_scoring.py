"""From predictions to reports."""

from __future__ import annotations

import sys
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

import pytest

from finetune.metrics import (
    METRICS,
    Prediction,
    Resources,
    by_history,
    by_session,
    check_names,
    evaluate,
    evaluate_by,
)
from finetune.metrics.resources import variable
from pretrain.errors import UserError

NOTHING = Resources(wordnet=Path("/nowhere"))


def said(*replies: str, **more: object) -> Prediction:
    return replace(Prediction("d", 1, (), replies, ("yes",)), **more)


@pytest.fixture(autouse=True)
def _bare(monkeypatch: pytest.MonkeyPatch):
    """No resource of the machine gets in."""
    for name in Resources.__dataclass_fields__:
        monkeypatch.delenv(variable(name), raising=False)


def test_every_metric_gives_a_figure_or_a_reason():
    report = evaluate([said("yes sir"), said("no")], list(METRICS), Resources(wordnet=Path("/nowhere")))
    assert report.values.keys() | report.unavailable.keys() == METRICS.keys()
    assert not report.values.keys() & report.unavailable.keys()
    lacking = {
        "meteor_nltk15": "set NLTK_DATA",
        "bertscore": "set MEMBART_BERTSCORE",
        "fed": "set MEMBART_FED_MODEL",
        "p_distance": "needs predictions with a partner's persona",
        "p_distance_own": "needs predictions with a persona",
        "wiki_f1": "knowledge behind the reference",
        "wiki_f1_selected": "knowledge that the model selected",
        "knowledge_accuracy": "knowledge that the model selected",
        "entities": "needs predictions with entities",
        "self_bleu": "two replies",
        "similarity": "two or more replies",
        "similarity_mean": "two or more replies",
        "reference_similarity": "two or more references",
    }
    assert report.unavailable.keys() == lacking.keys()
    for name, reason in lacking.items():
        assert reason in report.unavailable[name]
        assert "\n" not in report.unavailable[name]
    assert report.values["f1"] == pytest.approx(100 * (2 / 3 + 0) / 2)
    assert report.values["length"] == 1.5
    assert report.notes.keys() == report.values.keys()
    assert report.notes["f1"] == "ParlAI's F1 of normalized words, best reference; higher is better"
    assert "lower is better" in report.notes["safe"]
    assert f"(sacrebleu {version('sacrebleu')})" in report.notes["bleu_4"]


def test_a_resource_that_is_named_but_not_there_is_a_reason(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("MEMBART_BERTSCORE", "/nowhere/roberta")
    report = evaluate([said("yes")], ["bertscore", "f1"], Resources())
    assert "MEMBART_BERTSCORE names /nowhere/roberta, which does not exist" in report.unavailable["bertscore"]
    assert report.values == {"f1": 100}


def test_a_package_that_is_not_installed_is_a_reason(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setitem(sys.modules, "gensim", None)
    monkeypatch.setitem(sys.modules, "gensim.models", None)
    vectors = tmp_path / "vectors.txt"
    vectors.touch()
    one = said("a cat", partner_persona=("cats",))
    report = evaluate([one], ["p_distance", "length"], Resources(word_vectors=vectors))
    assert report.unavailable == {"p_distance": "needs gensim: pip install 'membart[metrics]'"}
    assert report.values == {"length": 2}


def test_draws_are_scored_one_by_one_and_averaged():
    # Draw 1: yes, yes: F1 100, one kind of 2 words. Draw 2: no, maybe: F1 0, two kinds of 2.
    report = evaluate([said("yes", "no"), said("yes", "maybe")], ["f1", "distinct_1"], NOTHING)
    assert report.values == pytest.approx({"f1": 50, "distinct_1": 75})


def test_metrics_of_all_replies_see_them_together():
    report = evaluate([said("yes", "no")], ["bleu_precision", "bleu_recall", "self_bleu"], NOTHING)
    assert report.values == pytest.approx({"bleu_precision": 50, "bleu_recall": 100, "self_bleu": 0})


def test_extra_replies_of_some_contexts_are_left_out():
    report = evaluate([said("yes", "no"), said("yes")], ["f1"], NOTHING)
    assert report.values == {"f1": 100}


def test_knowledge_metrics_use_the_right_sentence():
    facts = ("cats purr", "dogs bark")
    right = said("dogs bark", knowledge=facts, chosen=1, selected=1)
    wrong = said("dogs bark", knowledge=facts, chosen=0, selected=1)
    none = said("dogs bark", knowledge=facts, selected=-1)
    names = ["wiki_f1", "wiki_f1_selected", "knowledge_accuracy"]
    report = evaluate([right, wrong, none, said("x")], names, NOTHING)
    # behind the reference: 1, 0; selected: 1, 1, and nothing 0; right, wrong, right
    expected = {"wiki_f1": 50, "wiki_f1_selected": 200 / 3, "knowledge_accuracy": 200 / 3}
    assert report.values == pytest.approx(expected)


def test_entities_can_have_their_own_stop_words(tmp_path: Path):
    one = said("baseball is sport", entities=("baseball", "sport"))
    assert evaluate([one], ["entities"], NOTHING).values == {"entities": 2}
    (tmp_path / "stop.txt").write_text("sport\n")
    assert evaluate([one], ["entities"], Resources(stop_words=tmp_path / "stop.txt")).values == {
        "entities": 1
    }


def test_without_references_overlap_is_not_available_and_diversity_is():
    report = evaluate([said("a b", references=()), said("a")], ["f1", "distinct_1"], NOTHING)
    assert report.values == pytest.approx({"distinct_1": 200 / 3})
    assert report.unavailable == {"f1": "needs references: 1 of 2 predictions have none"}


def test_an_unknown_name_is_refused_before_anything_is_computed():
    with pytest.raises(UserError, match="no metric 'bleu4' -- did you mean bleu_4"):
        check_names(["f1", "bleu4"])
    with pytest.raises(UserError, match="rogue"):
        evaluate([said("x")], ["rogue_l"], NOTHING)


def test_nothing_to_score_is_refused():
    with pytest.raises(UserError, match="no predictions"):
        evaluate([], ["f1"], NOTHING)
    with pytest.raises(UserError, match="dialogue d, turn 1: no reply"):
        evaluate([said("x"), said()], ["f1"], NOTHING)


def test_groups_are_scored_apart():
    some = [said("yes"), said("no", session=2), said("yes no", session=2)]
    reports = evaluate_by(some, ["f1"], NOTHING, by_session)
    assert list(reports) == [0, 2]
    assert reports[0].values == {"f1": 100}
    # 0 and 2·1/3
    assert reports[2].values == pytest.approx({"f1": 100 / 3})


@pytest.mark.parametrize(
    ("turns", "group"), [(0, "1 short"), (3, "1 short"), (4, "2 medium"), (9, "2 medium"), (10, "3 long")]
)
def test_lengths_of_history_are_those_of_the_fusion_paper(turns: int, group: str):
    assert by_history(said("x", context=("hi",) * turns)) == group
