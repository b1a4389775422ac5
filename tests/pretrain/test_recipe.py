"""Recipes: what they accept, what they refuse, what identifies a run."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from pretrain import recipe
from pretrain.errors import UserError


@pytest.mark.parametrize("name", recipe.shipped())
def test_shipped_recipes_survive_a_round_trip_through_yaml(name: str, tmp_path: Path) -> None:
    loaded = recipe.load(name)
    file = tmp_path / "copy.yaml"
    file.write_text(loaded.to_yaml())
    assert recipe.load(str(file)) == loaded


@pytest.mark.parametrize(("name", "layers", "width", "heads", "rate"), [
    ("membart_base", 6, 768, 12, 3e-5),
    ("membart_large", 12, 1024, 16, 1e-5),
])  # fmt: skip
def test_table_7_of_the_paper(name: str, layers: int, width: int, heads: int, rate: float) -> None:
    loaded = recipe.load(name)
    config = loaded.model.config
    assert [config[f"{part}_layers"] for part in ("encoder", "decoder")] == [layers, layers]
    assert config["d_model"] == width
    assert [config[f"{part}_attention_heads"] for part in ("encoder", "decoder")] == [heads, heads]
    assert config["dropout"] == config["attention_dropout"] == config["activation_dropout"] == 0.0
    assert (loaded.data.window, loaded.data.overlap, loaded.agents) == (512, 128, 32)
    assert (loaded.noise.mask_ratio, loaded.noise.permute_ratio, loaded.noise.replace_length) == (0.3, 0.0, 1)
    assert (loaded.optimizer.lr, loaded.optimizer.warmup_steps, loaded.optimizer.weight_decay) == (
        rate,
        5000,
        0.01,
    )
    assert (loaded.replay.horizon, loaded.train.steps) == (6, 100_000)


def test_overrides_reach_nested_keys_and_keep_their_types() -> None:
    loaded = recipe.load(
        "tiny", ["train.steps=7", "optimizer.lr=3e-4", "data.shards=[a,b]", "replay.mode=bptt"]
    )
    assert (loaded.train.steps, loaded.optimizer.lr) == (7, 3e-4)
    assert (loaded.data.shards, loaded.replay.mode) == (("a", "b"), "bptt")


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["train.stepz=3"], "unknown recipe key 'train.stepz' -- did you mean 'train.steps'"),
        (["optimiser.lr=3"], "unknown recipe key 'optimiser' -- did you mean 'optimizer'"),
        (["train.steps=many"], "recipe key 'train.steps'"),
        (["train.steps=0"], "recipe key 'train.steps'"),
        (["replay.horizon=2", "replay.time_overlap=2"], "time_overlap (2) must be below horizon (2)"),
        (["steps"], "'steps' is not key=value"),
        (["name.x=1"], "'name' is a value, not a section"),
        (["noise.mask_ratio=1.5"], "recipe key 'noise.mask_ratio'"),
        (["data.shards=a"], "'data.shards': a list is wanted -- set it with data.shards=[A,B]"),
        (["train=3"], "'train': a section, not a value -- set it with train.KEY=VALUE"),
    ],
)
def test_mistakes_are_named_with_their_cure(overrides: list[str], message: str) -> None:
    with pytest.raises(UserError) as caught:
        recipe.load("tiny", overrides)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_unknown_recipe_suggests_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="did you mean 'membart_base'"):
        recipe.load("membart_bas")
    with pytest.raises(UserError, match="no such recipe file"):
        recipe.load(str(tmp_path / "none.yaml"))
    broken = tmp_path / "broken.yaml"
    broken.write_text("name: [")
    with pytest.raises(UserError, match="not valid YAML"):
        recipe.load(str(broken))


def test_a_folder_is_a_run_or_is_refused(tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    with pytest.raises(UserError, match=r"this folder is no run: it has no recipe\.yaml"):
        recipe.load(str(run))
    (run / "recipe.yaml").write_text(recipe.load("tiny").to_yaml())
    found, place = recipe.locate(str(run))
    assert recipe.load(found, place).run_dir == run
    assert recipe.locate("tiny") == ("tiny", [])
    (run / "config.json").write_text("{}")
    with pytest.raises(UserError, match="a checkpoint or an exported model, not a run"):
        recipe.locate(str(run))


def test_a_folder_called_like_a_shipped_recipe_does_not_hide_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "tiny").mkdir()
    monkeypatch.chdir(tmp_path)
    assert recipe.load("tiny").name == "tiny"


def test_a_name_may_be_a_number() -> None:
    assert recipe.load("tiny", ["name=2024"]).name == "2024"


def test_hash_changes_with_what_a_run_computes_and_with_nothing_else() -> None:
    plain = recipe.load("tiny").hash()
    for reporting in (
        "name=x",
        "root=/elsewhere",
        "train.log_every=5",
        "train.deepspeed=zero3",
        "data.workers=3",
    ):
        assert recipe.load("tiny", [reporting]).hash() == plain, reporting
    for substance in (
        "train.seed=2",
        "optimizer.lr=1",
        "data.lanes=8",
        "noise.mask_ratio=0.2",
        "replay.horizon=2",
    ):
        assert recipe.load("tiny", [substance]).hash() != plain, substance


def test_every_field_is_documented_or_named_by_its_section() -> None:
    """Users read the recipe through its keys: the shipped files must spell them as the schema does."""
    for name in recipe.shipped():
        text = recipe.load(name).to_yaml()
        assert set(yaml.safe_load(text)) == set(recipe.Recipe.model_fields)
