"""What is still to do, and what waits for what."""

from __future__ import annotations

from pathlib import Path

import pytest

from tools.slurm.chain import Active, Job, Key, Task, plan, tasks
from tools.slurm.pipeline import Pipeline

FAMILIES = ("membart", "fusion", "ki")


@pytest.fixture
def everything(tmp_path: Path) -> list[Task]:
    stages = {
        "pretrain": {"recipe": "tiny"},
        "knowledge": {"inputs": ["wiki.tsv"], "from": "pretrain", "set": ["steps=5"], "words": ["--pos"]},
        "finetune": {"families": {name: {"data": [f"jsonl:/data/{name}"]} for name in FAMILIES}},
        "evaluate": {"words": ["--split", "valid"]},
        "export": {},
        "report": {},
    }
    return tasks(Pipeline.model_validate({"name": "p", "folder": tmp_path, "stages": stages}), tmp_path)


def finish(found: list[Task], *keys: Key) -> None:
    for task in found:
        if task.key in keys:
            task.jobs.mkdir(parents=True, exist_ok=True)
            (task.jobs / "done").touch()


def shape(jobs: list[Job]) -> list[tuple[str, list[str], str]]:
    return [(job.stage, [task.name for task in job.tasks], job.dependency) for job in jobs]


def test_the_whole_chain_waits_link_by_link(everything: list[Task]) -> None:
    """Who learns from knowledge waits for it; the others do not."""
    others = ["membart", "fusion"]
    assert shape(plan(everything, {})) == [
        ("pretrain", ["pretrain"], ""),
        ("knowledge", ["knowledge"], "afterok:{pretrain:pretrain}"),
        ("finetune", others, "afterok:{pretrain:pretrain}"),
        ("finetune", ["ki"], "afterok:{pretrain:pretrain},afterok:{knowledge:knowledge}"),
        ("evaluate", others, "aftercorr:{finetune:membart+fusion}"),
        ("evaluate", ["ki"], "aftercorr:{finetune:ki}"),
        ("export", ["pretrain"], "afterok:{pretrain:pretrain}"),
        ("export", others, "aftercorr:{evaluate:membart+fusion}"),
        ("export", ["ki"], "aftercorr:{evaluate:ki}"),
        (
            "report",
            ["all"],
            "afterany:{pretrain:pretrain}:{knowledge:knowledge}:{finetune:membart+fusion}:{finetune:ki}"
            ":{evaluate:membart+fusion}:{evaluate:ki}"
            ":{export:pretrain}:{export:membart+fusion}:{export:ki}",
        ),
    ]


def test_tasks_carry_the_words_of_their_scripts(everything: list[Task], tmp_path: Path) -> None:
    words = {task.key: task.words for task in everything}
    runs = tmp_path / "runs"
    assert words["pretrain", "pretrain"] == (str(runs / "pretrain"), "tiny", "tracking.experiment=p")
    assert words["finetune", "fusion"] == (
        str(runs / "fusion"), "fusion", "--from", str(runs / "pretrain"), "--data", "jsonl:/data/fusion",
        "tracking.experiment=p",
    )  # fmt: skip
    assert words["finetune", "ki"][-1] == f"model.knowledge={tmp_path}/knowledge/annotations"
    assert words["knowledge", "knowledge"] == (
        str(tmp_path / "knowledge"), "wiki.tsv", "--from", str(runs / "pretrain"), "--set", "steps=5",
        "--data", "jsonl:/data/ki", "--", "--pos",
    )  # fmt: skip
    assert words["evaluate", "ki"] == (str(runs / "ki"), "--split", "valid")
    assert words["export", "ki"] == (str(runs / "ki"), str(tmp_path / "models" / "ki"))
    everyone = tuple(str(runs / name) for name in ("pretrain", *FAMILIES))
    assert words["report", "all"] == ("--out", str(tmp_path / "report.html"), *everyone)
    assert {task.key: task.number for task in everything if task.number} == {
        (stage, name): number
        for stage in ("finetune", "evaluate", "export")
        for number, name in enumerate(FAMILIES, start=1)
    }


def test_what_is_done_is_skipped_and_nothing_waits_for_it(everything: list[Task]) -> None:
    finish(
        everything,
        ("pretrain", "pretrain"),
        ("knowledge", "knowledge"),
        ("export", "pretrain"),
        *((stage, name) for stage in ("finetune", "evaluate", "export") for name in ("membart", "ki")),
        ("report", "all"),
    )
    assert shape(plan(everything, {})) == [
        ("finetune", ["fusion"], ""),
        ("evaluate", ["fusion"], "aftercorr:{finetune:fusion}"),
        ("export", ["fusion"], "aftercorr:{evaluate:fusion}"),
        ("report", ["all"], "afterany:{finetune:fusion}:{evaluate:fusion}:{export:fusion}"),
    ]


def test_a_finished_pipeline_has_nothing_to_do(everything: list[Task]) -> None:
    finish(everything, *(task.key for task in everything))
    assert plan(everything, {}) == []


def test_what_is_in_the_queue_is_waited_for_and_not_submitted_again(everything: list[Task]) -> None:
    finish(everything, ("pretrain", "pretrain"), ("export", "pretrain"), ("finetune", "membart"))
    active = {
        ("knowledge", "knowledge"): Active("69", 0),
        ("finetune", "fusion"): Active("70", 2),
        ("finetune", "ki"): Active("71", 9),
        ("report", "all"): Active("80", 0),
    }
    assert shape(plan(everything, active)) == [
        ("evaluate", ["membart"], ""),
        ("evaluate", ["fusion"], "aftercorr:70"),
        ("evaluate", ["ki"], "afterok:71_9"),
        ("export", ["membart"], "aftercorr:{evaluate:membart}"),
        ("export", ["fusion"], "aftercorr:{evaluate:fusion}"),
        ("export", ["ki"], "aftercorr:{evaluate:ki}"),
    ]


def test_a_fine_tune_waits_for_knowledge_that_is_being_made_and_not_for_what_is_done(
    everything: list[Task],
) -> None:
    finish(everything, ("pretrain", "pretrain"))
    found = plan(everything, {("knowledge", "knowledge"): Active("69", 0)})
    waiting = [(names, dependency) for stage, names, dependency in shape(found) if stage == "finetune"]
    assert waiting == [(["membart", "fusion"], ""), (["ki"], "afterok:69")]


def test_knowledge_by_an_index_needs_no_pretraining_of_this_pipeline(tmp_path: Path) -> None:
    families = {name: {"family": "ki", "data": ["jsonl:/data/a", f"jsonl:/data/{name}"]} for name in "bc"}
    stages = {
        "knowledge": {"index": "/k/index", "for": ["b", "c"]},
        "finetune": {"from": "/models/base", "families": families},
    }
    found = tasks(Pipeline.model_validate({"name": "p", "folder": tmp_path, "stages": stages}), tmp_path)
    assert found[0].words == (
        str(tmp_path / "knowledge"), "--index", "/k/index",
        "--data", "jsonl:/data/a", "--data", "jsonl:/data/b", "--data", "jsonl:/data/c", "--",
    )  # fmt: skip
    assert shape(plan(found, {})) == [
        ("knowledge", ["knowledge"], ""),
        ("finetune", ["b", "c"], "afterok:{knowledge:knowledge}"),
    ]


def test_without_evaluation_exports_wait_for_the_fine_tunes(tmp_path: Path) -> None:
    stages = {"finetune": {"from": "/models/base", "families": {"ki": {}}}, "export": {}}
    found = tasks(Pipeline.model_validate({"name": "p", "folder": tmp_path, "stages": stages}), tmp_path)
    assert found[0].words[1:4] == ("ki", "--from", "/models/base")
    assert shape(plan(found, {})) == [
        ("finetune", ["ki"], ""),
        ("export", ["ki"], "aftercorr:{finetune:ki}"),
    ]
