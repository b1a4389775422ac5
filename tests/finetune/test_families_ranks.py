"""Every family under DeepSpeed on two ranks: one loss curve, exact resume, a faithful export."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from finetune import backbone, fitted
from finetune.batch import collate
from finetune.exporting import kind_of
from finetune.job import make_family
from finetune.recipe import FineTuneRecipe
from pretrain.export import export, named_tensors
from tests.finetune import family_ranks
from tests.support import dialogues as made
from tests.support import families, forked

Trained = Callable[[str], Path]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """The folder that holds a family's runs at every stage, see `family_ranks.py`; each is trained once."""
    root = tmp_path_factory.mktemp("families")
    source = made.write(root / "data")

    @cache
    def runs(family: str) -> Path:
        file = root / f"{family}.yaml"
        content = made.recipe(family, source, root, **families.TINY[family])
        file.write_text(yaml.safe_dump(content), encoding="utf-8")
        forked.run(family_ranks.main, (root, file), 2)
        return root

    return runs


def curve(run_dir: Path) -> dict[int, dict[str, float]]:
    lines = (run_dir / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    found = [json.loads(line) for line in lines]
    return {record["step"]: record for record in found if record["kind"] == "train"}


def losses(records: dict[int, dict[str, float]]) -> dict[int, dict[str, float]]:
    return {
        step: {name: value for name, value in record.items() if name == "loss" or name.startswith("loss/")}
        for step, record in records.items()
    }


@pytest.mark.parametrize("family", families.TINY)
def test_all_stages_give_one_loss_curve(trained: Trained, family: str) -> None:
    root = trained(family)
    first = losses(curve(root / f"{family}-zero1"))
    assert len(first) == 6
    for stage in (2, 3):
        found = losses(curve(root / f"{family}-zero{stage}"))
        for step, parts in first.items():
            assert found[step] == pytest.approx(parts, rel=2e-4, abs=1e-6), (stage, step)


@pytest.mark.parametrize("family", families.TINY)
def test_a_resumed_run_repeats_the_same_numbers_to_the_last_bit(trained: Trained, family: str) -> None:
    root = trained(family)
    whole, again = curve(root / f"{family}-zero2"), curve(root / f"{family}-again")
    for step in (4, 5, 6):
        for name in ("loss", "gradient_norm", "target_tokens"):
            assert float(again[step][name]).hex() == float(whole[step][name]).hex(), (step, name)


@pytest.mark.parametrize("family", families.TINY)
def test_an_exported_model_answers_like_its_checkpoint(trained: Trained, family: str, tmp_path: Path) -> None:
    run_dir = trained(family) / f"{family}-zero3"
    mine = fitted.load(run_dir)
    theirs = fitted.load(export(run_dir, tmp_path / "model", kind=kind_of(family)))
    ours, exported = dict(mine.model.state_dict()), dict(theirs.model.state_dict())
    assert ours.keys() == exported.keys()
    assert all(torch.equal(ours[name], exported[name]) for name in ours)
    talk = made.dialogues(2, seed=9)

    def answers(model: fitted.Fitted) -> list[Any]:
        which = model.family
        batch = collate(
            [which.example(d, which.targets(d, 1)[0]) for d in talk], [1, 1], which.pads, which.numbers
        )
        return which.generate(model.model, batch, model.memory(2), model.recipe.generation, ("test",)).texts

    assert answers(mine) == answers(theirs)


@pytest.mark.parametrize("family", families.TINY)
def test_every_tensor_of_the_model_is_in_the_weight_report(trained: Trained, family: str) -> None:
    root = trained(family)
    report = json.loads((root / f"{family}-zero1" / "weights.json").read_text(encoding="utf-8"))
    names = {origin["name"] for origin in report["tensors"]}
    model = fitted.load(root / f"{family}-zero1").model
    assert {name for name, _ in model.named_parameters()} <= names


@pytest.mark.parametrize("family", ["membart", "fusion", "persona_cvae", "ki", "dior_cvae"])
def test_a_run_of_ki_is_a_membart_to_start_from_and_its_head_is_reported(
    trained: Trained, family: str, tmp_path: Path
) -> None:
    root = trained("ki")
    run_dir = root / "ki-zero3"
    given = named_tensors(fitted.load(run_dir).model)
    head = {name for name in given if name.startswith("ki_head.")}
    assert head
    content = made.recipe(family, "jsonl:none", root, **families.TINY[family])
    for place in (run_dir, export(run_dir, tmp_path / "model", kind=kind_of("ki"))):
        start = backbone.find(str(place))
        which = make_family(FineTuneRecipe.model_validate(content), start.tokenizer)
        model, report = which.build(start)
        assert head <= report.unused.keys()
        taken = {origin.name: origin.source for origin in report.tensors if origin.source != "fresh"}
        assert {name for name in given if name.startswith("model.encoder.layers.")} <= set(taken.values())
        tensors = named_tensors(model)
        assert all(torch.equal(tensors[name], given[source]) for name, source in taken.items())
