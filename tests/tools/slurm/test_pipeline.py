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
    assert pipeline.stages.pretrain.layout == (8, 4)


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
        ({"stages__evaluate__nodes": 2}, "unknown key 'stages.evaluate.nodes'"),
        ({"stages__pretrain__set": "train.steps=5"}, "stages.pretrain.set: is a list; write .one."),
        ({"stages__report": ""}, "stages.report: is a section of keys and values; {} where it has none"),
        ({"stages__finetune__families": ["ki"]}, "stages.finetune.families: is a section of keys"),
        ({"stages__pretrain": {}}, "stages.pretrain.recipe: has to be there"),
        ({"stages__knowledge": {}}, "as `index`: give one of them"),
        ({"stages__knowledge": {"input": []}}, "'stages.knowledge.input'.*did you mean 'inputs'"),
        ({"stages__knowledge": {"index": "i", "set": ["batch=2"]}}, "an index has one"),
        ({"stages__knowledge": {"index": "i"}}, "knowledge is for 'ki', and there is no such fine-tune"),
        (
            {"stages__knowledge": {"index": "i"}, "stages__finetune__families": {"ki": {}}},
            "dialogues of 'ki', which has no data",
        ),
        (
            {
                "stages__knowledge": {"index": "i"},
                "stages__finetune__families": {"ki": {"data": ["a:b"], "set": ["model.knowledge=k"]}},
            },
            "'ki' sets model.knowledge and has knowledge made",
        ),
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
        (
            {
                "stages__knowledge": {"inputs": ["a.tsv"], "set": ["stpes=5"]},
                "stages__finetune__families": {"ki": {"data": ["a:b"]}},
            },
            "stpes",
        ),
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


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "pipeline.yaml: cannot be read: No such file or directory -- name a pipeline file"),
        (b"\x7fELF\x02\xd0", "pipeline.yaml: not a text in UTF-8 -- name a pipeline file"),
        (b"", "pipeline.yaml: a pipeline: is a section of keys and values"),
        (b"- a\n", "pipeline.yaml: a pipeline: is a section of keys and values"),
        (b"name: [a\nb: c", "pipeline.yaml, line 2, column 2: not valid YAML: expected ',' or ']'"),
        (b"name: a\nname: b\n", "pipeline.yaml, line 2, column 1: not valid YAML: the key 'name' is there"),
        (b"stages: &all\n  pretrain: *all\n", "pipeline.yaml, line 1, column 9: not valid YAML: found un"),
    ],
)
def test_a_file_that_is_no_pipeline_is_a_users_mistake(
    tmp_path: Path, content: bytes | None, message: str
) -> None:
    file = tmp_path / "pipeline.yaml"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(UserError) as caught:
        load(file)
    said = str(caught.value)
    assert said.startswith(f"{tmp_path}/{message}")
    assert "Errno" not in said
    with pytest.raises(UserError, match="cannot be read: Is a directory"):
        load(tmp_path)
