"""The shipped DeepSpeed files are complete, explained, and lead to training or to one clear line."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from pretrain import ds_check, engine, preflight, recipe
from pretrain.errors import UserError
from tests.support import tiny

NAMES = sorted(path.stem for path in engine.CONFIG_FOLDER.glob("*.json"))
HUGGING_FACE_FILLS = {
    "train_batch_size",
    "train_micro_batch_size_per_gpu",
    "gradient_accumulation_steps",
    "gradient_clipping",
}
AGENTS = ["data.lanes=4", "data.agents_per_lane=4"]


def resolved(name: str, *overrides: str) -> dict[str, Any]:
    return engine.resolve_config(recipe.load("tiny", [f"train.deepspeed={name}", *overrides, *AGENTS]), 2)


def without_async_io(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a machine that lacks libaio, whatever this one has."""
    from deepspeed.ops.op_builder import AsyncIOBuilder

    monkeypatch.setattr(AsyncIOBuilder, "is_compatible", lambda *_, **__: False)


@pytest.mark.parametrize("name", [name for name in NAMES if name != "zero3_nvme"])
def test_every_file_resolves_without_leftovers(name: str) -> None:
    config = resolved(name, "train.precision=bf16")
    assert '"auto"' not in json.dumps(config)
    assert config["train_micro_batch_size_per_gpu"] == 8
    assert config["torch_autocast"] == {"enabled": True, "dtype": "bfloat16"}


@pytest.mark.parametrize("name", NAMES)
def test_every_file_is_explained_key_by_key(name: str) -> None:
    text = (engine.CONFIG_FOLDER / "README.md").read_text(encoding="utf-8")
    assert f"`{name}`" in text

    def keys(node: dict[str, Any]) -> set[str]:
        inner = [keys(value) for value in node.values() if isinstance(value, dict)]
        return {*node, *(key for found in inner for key in found)}

    explained = set(re.findall(r"`([a-z0-9_]+)`", text))
    assert keys(engine.load_config(name)) - {"zero_optimization", "dtype", "enabled"} <= explained


@pytest.mark.parametrize("name", NAMES)
def test_auto_at_the_top_is_what_hugging_face_fills(name: str) -> None:
    config = engine.load_config(name)
    assert {key for key, value in config.items() if value == "auto"} == HUGGING_FACE_FILLS


def test_nvme_asks_for_a_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv(engine.NVME_VARIABLE, raising=False)
    with pytest.raises(UserError, match=r"no folder to write to .* set MEMBART_NVME_PATH=FOLDER"):
        resolved("zero3_nvme")
    monkeypatch.setenv(engine.NVME_VARIABLE, str(tmp_path / "missing"))
    with pytest.raises(UserError, match="missing"):
        resolved("zero3_nvme")


def test_nvme_without_libaio_ends_before_anything_is_written(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    disk, runs = tmp_path / "disk", tmp_path / "runs"
    disk.mkdir()
    monkeypatch.setenv(engine.NVME_VARIABLE, str(disk))
    without_async_io(monkeypatch)
    content = tiny.recipe(tmp_path / "shards", runs, train__deepspeed="zero3_nvme", data__shards=[])
    content["data"] |= {"window": 32, "overlap": 8}
    with pytest.raises(UserError, match="async_io") as caught:
        preflight.check(recipe.parse(content, "test"), 1, dry=True)
    assert "\n" not in str(caught.value)
    assert not runs.exists()
    assert not any(disk.iterdir())


def test_nvme_takes_its_folder_from_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from deepspeed.ops.op_builder import AsyncIOBuilder

    if not AsyncIOBuilder().is_compatible(verbose=False):
        pytest.skip("DeepSpeed's async_io does not build here: no libaio")
    monkeypatch.setenv(engine.NVME_VARIABLE, str(tmp_path))
    config = resolved("zero3_nvme")
    assert config["zero_optimization"]["offload_param"]["nvme_path"] == str(tmp_path)
    assert '"auto"' not in json.dumps(config)


def test_an_optimizer_on_nvme_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "mine.json"
    content = {"zero_optimization": {"stage": 3, "offload_optimizer": {"device": "nvme"}}}
    file.write_text(json.dumps(content))
    with pytest.raises(UserError, match="cannot be saved from"):
        resolved(str(file))


@pytest.mark.parametrize("name", NAMES)
def test_deepspeed_knows_every_key_of_the_shipped_files(name: str) -> None:
    ds_check.refuse_unknown_keys(engine.load_config(name), name)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ({"gradient_cliping": 1.0}, "has no key 'gradient_cliping' -- did you mean 'gradient_clipping'?"),
        ({"gradient_cliping": "auto"}, "did you mean 'gradient_clipping'?"),
        ({"zero_optimisation": {"stage": 2}}, "did you mean 'zero_optimization'?"),
        ({"my_own_remark": "fast"}, "DeepSpeed has no key 'my_own_remark' -- remove it"),
        ({"zero_optimization": {"stage": 2, "stge": 1}}, "'zero_optimization.stge': "),
        ({"zero_optimization": {"reduce_bucket_size": "big"}}, "'zero_optimization.reduce_bucket_size': "),
        ({"zero_optimization": {"stage": 3, "offload_param": {"devise": "cpu"}}}, "offload_param.devise': "),
        ({"wandb": {"enabld": True}}, "'wandb.enabld': "),
        ({"communication_data_type": "fp8"}, "Invalid communication_data_type"),
        ({"steps_per_print": 1, "communication_data_type": 16}, "'communication_data_type': "),
        ({"nebula": {"enabled": True}}, "Nebula checkpointing has been removed"),
        ({"checkpoint": {"tag_validation": "maybe"}}, "tag_validation value of MAYBE"),
    ],
)
def test_what_deepspeed_would_refuse_or_pass_over_is_one_line_that_names_file_and_key(
    tmp_path: Path, content: dict[str, object], said: str
) -> None:
    file = tmp_path / "mine.json"
    file.write_text(json.dumps(content))
    with pytest.raises(UserError, match=re.escape(said)) as caught:
        resolved(str(file))
    assert str(caught.value).startswith(f"DeepSpeed configuration '{file}': ")
    assert "\n" not in str(caught.value)


def test_a_file_of_ones_own_may_have_every_section_of_deepspeeds(tmp_path: Path) -> None:
    file = tmp_path / "mine.json"
    content = {
        "zero_optimization": {"stage": 1},
        "comms_logger": {"enabled": False},
        "flops_profiler": {"enabled": False},
        "activation_checkpointing": {"profile": False},
        "csv_monitor": {"enabled": False},
        "aio": {"block_size": 1048576},
        "data_types": {"grad_accum_dtype": "fp32"},
        "prescale_gradients": False,
        "vocabulary_size": 8,
        "bfloat16": {"enabled": False},
    }
    file.write_text(json.dumps(content))
    assert content.items() <= resolved(str(file)).items()
