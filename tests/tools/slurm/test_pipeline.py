"""PIPELINE.yaml is checked before a job waits for hours."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from pretrain.errors import UserError
from tools.slurm.pipeline import Stage, check, load


def write(folder: Path, **changes: Any) -> Path:
    """A pipeline file; `changes` replace dotted keys, `stages__pretrain__nodes=8`."""
    content: dict[str, Any] = {
        "name": "large",
        "folder": "made",
        "stages": {
            "pretrain": {"recipe": "membart_large", "nodes": 8, "gpus_per_node": 4, "time": "2-00:00:00"},
            "finetune": {"families": {"membart": {"data": ["convai2:/data/convai2"]}}, "gpus_per_node": 8},
            "evaluate": {},
            "export": {},
            "report": {},
        },
    }
    for key, value in changes.items():
        *parents, leaf = key.split("__")
        node = content
        for parent in parents:
            node = node[parent]
        node[leaf] = value
    file = folder / "pipeline.yaml"
    file.write_text(yaml.safe_dump(content, sort_keys=False))
    return file


def test_a_pipeline_is_read_with_paths_beside_its_file(tmp_path: Path) -> None:
    file = write(tmp_path)
    pipeline = load(file)
    check(pipeline, file)
    assert pipeline.run("pretrain") == tmp_path / "made" / "runs" / "pretrain"
    assert pipeline.model("membart") == tmp_path / "made" / "models" / "membart"
    assert pipeline.stages.pretrain is not None
    assert (pipeline.stages.pretrain.nodes, pipeline.stages.pretrain.ranks_per_node) == (8, 4)


@pytest.mark.parametrize(
    ("time", "seconds"),
    [
        ("90", 5400),
        ("90:30", 5430),
        ("12:00:00", 43200),
        ("2-00:00:00", 172800),
        ("1-12", 129600),
        ("1-02:30", 95400),
    ],
)
def test_durations_are_slurms(tmp_path: Path, time: str, seconds: int) -> None:
    """12:00:00 without quotes is 43200 to YAML 1.1, and would be minutes to Slurm."""
    file = write(tmp_path)
    file.write_text(file.read_text().replace("2-00:00:00", time))
    stage = load(file).stages.pretrain
    assert stage is not None
    assert (stage.time, stage.seconds) == (time, seconds)
    assert Stage().seconds is None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"stages__pretrain__node": 8}, "unknown key 'stages.pretrain.node'.*did you mean 'nodes'"),
        ({"stages__evalute": {}}, "unknown key 'stages.evalute'.*did you mean 'evaluate'"),
        (
            {"stages__finetune__families": {"membart": {"dat": []}}},
            "families.membart.dat'.*did you mean 'data'",
        ),
        ({"nam": "x"}, "unknown key 'nam'.*did you mean 'name'"),
        ({"stages__pretrain__time": "two days"}, "'two days' is no duration"),
        ({"stages__pretrain__nodes": 0}, "stages.pretrain.nodes: .*greater than 0"),
        ({"name": "a b"}, "'a b' is no plain name"),
        ({"stages": {"report": {}}}, "neither pretrain nor finetune"),
        ({"stages__finetune__from": "/runs/old"}, "give one of them"),
        ({"stages": {"pretrain": {"recipe": "tiny"}, "evaluate": {}}}, "there is no finetune"),
    ],
)
def test_a_mistake_is_one_line_that_says_where(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        load(write(tmp_path, **changes))
    assert "pipeline.yaml" in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"stages__pretrain__recipe": "membart_larg"}, "did you mean 'membart_large'"),
        ({"stages__pretrain__set": ["train.step=5"]}, "unknown recipe key 'train.step'"),
        ({"stages__pretrain__nodes": 5}, "20 ranks do not divide 32 lanes"),
        ({"stages__finetune__families": {"fuson": {}}}, "no family 'fuson'.*did you mean 'fusion'"),
        ({"stages__finetune__families": {"pretrain": {}}}, "'pretrain' is no name for a fine-tune"),
    ],
)
def test_recipes_and_ranks_are_checked_before_anything_is_submitted(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    file = write(tmp_path, **changes)
    with pytest.raises(UserError, match=message):
        check(load(file), file)


def test_a_file_that_is_not_there_or_no_yaml_is_a_users_mistake(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot be read"):
        load(tmp_path / "none.yaml")
    (tmp_path / "bad.yaml").write_text("a: [")
    with pytest.raises(UserError, match="not valid YAML"):
        load(tmp_path / "bad.yaml")
