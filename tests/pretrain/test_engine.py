"""Under DeepSpeed, at every stage and world size, updates are those of back-propagation through time."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from pretrain import engine, recipe
from pretrain.errors import UserError
from tests.pretrain import engine_ranks
from tests.support import forked

ONE_RANK: list[dict[str, Any]] = [
    {"stage": "zero0", "dropout": 0.1},
    {"stage": "zero1", "chunks": 4},
    {"stage": "zero2", "precision": "bf16"},
    {"stage": "zero3", "dropout": 0.1},
    {"stage": "zero3", "mode": "checkpoint"},
    {"stage": "zero3_offload"},
]
TWO_RANKS: list[dict[str, Any]] = [
    {"stage": "zero0", "chunks": 2, "poisoned": 1},
    {"stage": "zero1"},
    {"stage": "zero2", "chunks": 2},
    {"stage": "zero2", "poisoned": 1},
    {"stage": "zero2", "mode": "bptt"},
    {"stage": "zero2_offload", "poisoned": 0},
    {"stage": "zero3", "chunks": 2},
    {"stage": "zero3", "poisoned": 2},
    {"stage": "zero3_offload"},
]
AGENTS = ["data.lanes=4", "data.agents_per_lane=4"]
FOUR_RANKS: list[dict[str, Any]] = [{"stage": "zero2"}, {"stage": "zero3"}]


@pytest.mark.parametrize(("world_size", "cases"), [(1, ONE_RANK), (2, TWO_RANKS), (4, FOUR_RANKS)])
def test_updates_equal_plain_bptt(world_size: int, cases: list[dict[str, Any]], tmp_path: Path) -> None:
    cases = [{**case, "stage": _partitioned(case["stage"], tmp_path)} for case in cases]
    output = forked.run(engine_ranks.main, (cases,), world_size)[0]
    reports = [json.loads(line) for line in output.splitlines() if line.startswith("{")]
    assert len(reports) == len(cases)
    for case, report in zip(cases, reports, strict=True):
        norms = report["norms"]
        if "poisoned" in case:
            assert norms.pop(case["poisoned"]) is None, f"{case}: a non-finite loss on one rank was applied"
        exact = case.get("precision") != "bf16"
        assert norms == pytest.approx(report["expected_norms"], rel=1e-5 if exact else 3e-2), case
        assert report["drift"] < (1e-5 if exact else 0.2), report


def _partitioned(stage: str, folder: Path) -> str:
    """At stage 3 small parameters stay whole by default: ask for every one of this tiny model to be cut."""
    config = engine.load_config(stage)
    if "stage3_param_persistence_threshold" not in config["zero_optimization"]:
        return stage
    config["zero_optimization"]["stage3_param_persistence_threshold"] = 0
    file = folder / f"{stage}.json"
    file.write_text(json.dumps(config))
    return str(file)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"optimizer": {"type": "Adam"}}, "'optimizer' is set, but the recipe's optimizer"),
        ({"scheduler": {}}, "'scheduler' is set"),
        ({"train_batch_size": 7}, "'train_batch_size' is 7, the recipe says 16"),
        ({"gradient_clipping": 0.5}, "'gradient_clipping' is 0.5, the recipe says 1.0"),
        ({"bf16": {"enabled": True}}, "'bf16.enabled' contradicts train.precision=fp32"),
        ({"torch_autocast": {"enabled": True}}, "'torch_autocast.enabled' is True, the recipe says False"),
        (
            {"zero_optimization": {"offload_param": "auto"}},
            "'zero_optimization.offload_param' is 'auto', not an object",
        ),
        (
            {"zero_optimization": {"reduce_bucket_size": "auto"}},
            'reduce_bucket_size\' is "auto", which no recipe',
        ),
        ({"zero_optimization": {"stage": 7}}, "there is no ZeRO stage 7"),
        ({"zero_optimization": 2}, "'zero_optimization' is 2, not an object"),
        ({"fp16": True}, "'fp16' is True, not an object"),
    ],
)
def test_a_file_that_contradicts_the_recipe_is_refused(
    tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    file = tmp_path / "mine.json"
    file.write_text(json.dumps(change))
    with pytest.raises(UserError, match=message.replace("(", r"\(")):
        engine.resolve_config(recipe.load("tiny", [f"train.deepspeed={file}", *AGENTS]), 2)


def test_an_unknown_or_broken_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="one of: zero0"):
        engine.load_config("zero9")
    (tmp_path / "broken.json").write_text("{")
    with pytest.raises(UserError, match="not readable as JSON"):
        engine.load_config(str(tmp_path / "broken.json"))


def test_learning_rate_warms_up_and_decays_to_zero() -> None:
    section = recipe.OptimizerSection(lr=1.0, warmup_steps=4)
    rates = [engine.learning_rate(section, update, 8) for update in range(9)]
    assert rates == [0.25, 0.5, 0.75, 1.0, 1.0, 0.75, 0.5, 0.25, 0.0]
    constant = recipe.OptimizerSection(lr=1.0, schedule="constant")
    assert engine.learning_rate(constant, 7, 8) == 1.0


def test_decay_spares_norms_and_biases_unless_told() -> None:
    from tests.support import tiny

    model = tiny.model()
    spared = engine.parameter_groups(model, recipe.OptimizerSection(lr=1.0))
    assert [group["weight_decay"] for group in spared] == [0.01, 0.0]
    assert all(p.dim() >= 2 for p in spared[0]["params"])
    everything = engine.parameter_groups(model, recipe.OptimizerSection(lr=1.0, decay_all=True))
    assert [len(group["params"]) for group in everything] == [len(list(model.parameters()))]
