"""What people see of an evaluation: groups by history, figures by layer as table and picture."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import matplotlib.image
import pytest

from finetune import evaluate, results
from finetune.metrics import Report
from finetune.metrics.prediction import Prediction
from tests.support import dialogues as made
from tests.support import fusion

LAYERS = {
    "source_weight_by_layer/persona/1": 0.25,
    "source_weight_by_layer/reply/1": 0.75,
    "source_weight_by_layer/persona/2": 0.5,
}


def evaluation() -> evaluate.Evaluation:
    facts = {
        **{"sources": ["convai2:folder"], "split": "test", "replies": 1, "dialogues": 1},
        **{"memory": "off", "context_tokens": 9, "model": "model"},
    }
    said = Prediction("d", 1, ("hi",), ("hello",), ("hey",))
    groups = {"1 short": {"perplexity": 2.0}, "3 long": {"perplexity": 4.0}}
    return evaluate.Evaluation({"perplexity": 3.0, **LAYERS}, {}, groups, Report({"f1": 7.0}), (said,), facts)


def test_numbered_figures_stand_in_a_table_of_their_own():
    text = results.table("fusion", evaluation())
    main, _, rest = text.partition("By turns before the reply")
    assert "source_weight" not in main
    assert "| metric | short | long |" in rest
    assert "| perplexity | 2.000 | 4.000 |" in rest
    assert "| metric | 1 | 2 |" in rest
    assert "| persona | 0.250 | 0.500 |" in rest
    assert "GPT2-linear" in main
    assert "far larger" in main


def test_samples_are_the_last_replies_of_dialogues():
    said = tuple(
        Prediction(name, turn, ("heard",), (f"{name}{turn}",), ("hey",))
        for name in "ab"
        for turn in (1, 5, 3)
    )
    text = results.table("fusion", replace(evaluation(), predictions=said))
    samples = text.partition("Samples")[2].splitlines()[2:]
    assert samples == [f"- turn 6: `heard` -> `{name}5` (reference: `hey`)" for name in "ab"]


def test_numbered_figures_are_drawn(tmp_path: Path):
    (path,) = results.draw(evaluation(), tmp_path / "new")
    assert path.name == "source_weight_by_layer.png"
    assert min(matplotlib.image.imread(path).shape[:2]) > 400


def test_replies_are_scored_by_the_length_of_their_history(tmp_path: Path):
    which, model = fusion.built("membart", fusion="sw", weight_norm="code")
    source = made.write(tmp_path / "data", train=1, valid=4)
    fitted = fusion.fitted(which, model, source)
    found = evaluate.evaluate(fitted, "test", agents=4)
    groups = found.by_history
    assert list(groups) == sorted(groups)
    assert sum(group["replies"] for group in groups.values()) == found.facts["replies"]
    assert all({"perplexity", "bleu_4"} <= group.keys() for group in groups.values())
    assert all("meteor_nltk15" not in group for group in groups.values())
    shares = results.numbered(found.figures)["source_weight_by_layer"]
    assert list(shares) == ["reply", "persona", "history"]
    for layer in (1, 2):
        assert sum(shares[source][layer] for source in shares) == pytest.approx(1, abs=1e-5)
