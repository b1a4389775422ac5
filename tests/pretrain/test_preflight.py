"""Mistakes are found before anything is written: one clear line, exit code 2, nothing left behind."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import yaml

from pretrain import preflight, recipe
from pretrain.__main__ import run
from pretrain.corpus.build import build
from pretrain.corpus.shardset import Window
from pretrain.corpus.sources import SourceSpec
from pretrain.corpus.tokenizer import train_tokenizer
from pretrain.errors import EXIT_USER_ERROR
from pretrain.model import MemBartConfig
from tests.support import tiny


def wanted(shards: Path, root: Path, **changes: Any) -> recipe.Recipe:
    return recipe.parse(tiny.recipe(shards, root, **changes), "test")


def failing(shards: Path, root: Path, capsys: pytest.CaptureFixture[str], **changes: Any) -> str:
    """The one line that the command prints; it must exit with 2 and write nothing."""
    root.mkdir(exist_ok=True)
    file = root.parent / "mistake.yaml"
    file.write_text(yaml.safe_dump(tiny.recipe(shards, root, **changes)))
    before = sorted(root.rglob("*"))
    assert run(str(file), []) == EXIT_USER_ERROR
    assert sorted(root.rglob("*")) == before
    message = capsys.readouterr().err
    assert message.count("\n") == 1
    assert message.startswith("error: ")
    return message


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"data__shards": ["nowhere"]}, "nowhere: no shard set here"),
        ({"data__shards": []}, "data.shards names no shard set"),
        ({"data__window": 100}, "segments of 100 tokens do not fit 64 positions"),
        ({"data__window": 16, "data__overlap": 15}, "window of 16 tokens with 15 shared is impossible"),
        ({"model__config": {**tiny.MODEL, "vocab_size": 50265}}, "the shard set's tokenizer has"),
        ({"model__config": {**tiny.MODEL, "wings": 2}}, "model.config has no field wings"),
        ({"model__config": {**tiny.MODEL, "d_modle": 16}}, "did you mean 'd_model'?"),
        (
            {"model__config": {**tiny.MODEL, "d_model": "wide"}},
            "model.config: d_model is 'wide', not a number",
        ),
        ({"model__config": {**tiny.MODEL, "variant": "lstm"}}, "variant is 'lstm'"),
        ({"model__init": "./nowhere"}, "./nowhere: no such folder"),
        ({"data__shards": [__file__]}, "no shard set here"),
        ({"model__frozen": ["embed_position"]}, "model.frozen: no module 'embed_position'"),
        ({"replay__agent_chunks": 3}, "replay.agent_chunks=3 does not divide a rank's 8 agents"),
        ({"model__config": {**tiny.MODEL, "encoder_ffn_dim": 10**12}}, "3 checkpoints need"),
        ({"train__deepspeed": "zero7"}, "no such DeepSpeed configuration"),
    ],
)
def test_mistakes_in_a_recipe(
    shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], changes: dict[str, Any], expected: str
) -> None:
    assert expected in failing(shards, tmp_path / "runs", capsys, **changes)


@pytest.mark.parametrize(
    ("inside", "expected"),
    [
        ("checkpoints/", "this is a run or a checkpoint, not a model folder -- `membart export"),
        ("COMMIT.json", "this is a run or a checkpoint, not a model folder -- `membart export"),
        ("README.md", "no usable config.json"),
    ],
)
def test_a_folder_that_is_no_model_is_no_start(
    shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], inside: str, expected: str
) -> None:
    place = tmp_path / "place" / inside
    place.mkdir(parents=True) if inside.endswith("/") else place.parent.mkdir()
    if not place.exists():
        place.touch()
    assert expected in failing(shards, tmp_path / "runs", capsys, model__init=str(tmp_path / "place"))


def test_a_world_that_does_not_divide_the_lanes(
    shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {
        "RANK": 0,
        "WORLD_SIZE": 3,
        "LOCAL_RANK": 0,
        "MASTER_ADDR": "x",
        "MASTER_PORT": 1,
    }.items():
        monkeypatch.setenv(name, str(value))
    assert "3 ranks do not divide data.lanes=4" in failing(shards, tmp_path / "runs", capsys)


def test_a_deepspeed_file_that_contradicts_the_recipe(
    shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "mine.json"
    file.write_text(json.dumps({"gradient_clipping": 3.0}))
    message = failing(shards, tmp_path / "runs", capsys, train__deepspeed=str(file))
    assert "'gradient_clipping' is 3.0, the recipe says 1.0" in message


def test_a_checkpoint_with_another_tokenizer(
    shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = train_tokenizer(["wholly other words, nothing in common: xylophone quartz " * 40] * 3, 400)
    shard_vocabulary = json.loads((shards / "manifest.json").read_text())["tokenizer"]["vocab_size"]
    model = tmp_path / "bart"
    MemBartConfig(vocab_size=shard_vocabulary, **tiny.MODEL).save_pretrained(model)
    other.save(model)
    message = failing(shards, tmp_path / "runs", capsys, model__init=str(model), model__config={})
    assert "the tokenizer of" in message
    assert "is not the one the shard set was built with" in message


def test_a_run_folder_of_another_recipe_or_of_something_else(
    shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    earlier = wanted(shards, tmp_path / "runs", optimizer__lr=0.5)
    earlier.run_dir.mkdir(parents=True)
    (earlier.run_dir / "recipe.yaml").write_text(earlier.to_yaml())
    assert "belongs to another recipe (it differs in optimizer.lr)" in failing(
        shards, tmp_path / "runs", capsys
    )
    (earlier.run_dir / "recipe.yaml").rename(earlier.run_dir / "thesis.tex")
    assert "the folder exists and is no run" in failing(shards, tmp_path / "runs", capsys)


def test_a_set_without_a_held_out_split_and_weights_of_unknown_sources(
    shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    message = failing(shards, tmp_path / "runs", capsys, data__mixture={"elsewhere": 1.0})
    assert "the mixture and the shard set differ in elsewhere, made" in message
    whole = tmp_path / "whole"
    build(
        [SourceSpec("made", (str(shards.parent / "text.jsonl"),))],
        shards / "tokenizer",
        whole,
        window=Window(32, 8),
        min_tokens=32,
        held_out=0.0,
        workers=1,
    )
    assert "validation" in failing(whole, tmp_path / "runs", capsys)


def test_a_recipe_that_is_no_text(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "latin.yaml"
    file.write_bytes("name: caf\xe9".encode("latin-1"))
    assert run(str(file), []) == EXIT_USER_ERROR
    assert "give a UTF-8 YAML file" in capsys.readouterr().err


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_an_unwritable_run_folder_by_permission(
    shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = tmp_path / "runs"
    root.mkdir()
    root.chmod(0o500)
    assert "the run folder cannot be written" in failing(shards, root, capsys)


def test_a_run_folder_below_a_file(shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "taken").write_text("")
    file = tmp_path / "mistake.yaml"
    file.write_text(yaml.safe_dump(tiny.recipe(shards, tmp_path / "taken" / "runs")))
    assert run(str(file), []) == EXIT_USER_ERROR
    assert "the run folder cannot be written" in capsys.readouterr().err


@pytest.mark.parametrize(("name", "parameters", "trainable"), [
    ("membart_base", "182,589,697", "142,410,241"),
    ("membart_large", "558,629,889", "505,057,281"),
])  # fmt: skip
def test_the_paper_s_recipes_pass_a_dry_run(
    name: str, parameters: str, trainable: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert run(name, [f"root={tmp_path}"], dry_run=True, ranks=8) == 0
    printed = capsys.readouterr().out
    assert f"{parameters} ({trainable} train)" in printed
    assert "8 ranks, 4 agents each" in printed
    assert list(tmp_path.iterdir()) == []


def test_a_dry_run_counts_steps_of_an_epoch(shards: Path, tmp_path: Path) -> None:
    plan = preflight.check(wanted(shards, tmp_path), 1, dry=True)
    manifest = json.loads((shards / "manifest.json").read_text())
    documents = sum(shard["documents"] for shard in manifest["shards"] if shard["split"] == "train")
    printed = preflight.describe(plan)
    segments = int(printed.split("steps per epoch")[1].split("(")[1].split(" ")[0].replace(",", ""))
    assert segments > documents
    assert list(tmp_path.iterdir()) == []


def test_memory_of_a_rank_falls_with_the_stage(shards: Path, tmp_path: Path) -> None:
    held = {
        stage: preflight.rank_memory(
            preflight.check(wanted(shards, tmp_path, train__deepspeed=stage), 4, dry=True)
        ).parts
        for stage in ("zero0", "zero1", "zero3", "zero2_offload")
    }
    assert held["zero1"]["optimizer"] < held["zero0"]["optimizer"]
    assert held["zero3"]["parameters"] * 3 < held["zero1"]["parameters"]
    assert held["zero2_offload"]["optimizer"] == 0
