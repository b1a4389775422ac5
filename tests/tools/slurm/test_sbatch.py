"""The lines that are given to sbatch."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

import pytest

from pretrain.errors import UserError
from tools.slurm import chain, lead, sbatch, site
from tools.slurm.pipeline import Pipeline


def submission(folder: Path, where: site.Site, **stages: Any) -> sbatch.Submission:
    pipeline = Pipeline.model_validate({"name": "p", "folder": folder / "made", "stages": stages})
    return sbatch.Submission(pipeline, where, folder, tuple(chain.tasks(pipeline, folder)))


def lines(wanted: sbatch.Submission) -> list[list[str]]:
    return [shlex.split(line) for line in sbatch.dry(wanted, chain.plan(wanted.tasks, {}))]


def write_site(folder: Path, text: str) -> Path:
    file = folder / "site.env"
    file.write_text(text)
    return file


def test_a_line_says_everything_about_its_job(tmp_path: Path) -> None:
    text = (
        "SITE_PARTITION=gpu\nSITE_ACCOUNT=lab\nSITE_GPU_TYPE=h100\nSITE_EXCLUDE=n[7-8]\n"
        "SITE_MAIL=me@lab\nSITE_SBATCH=(--exclusive '--comment=two words')\n"
        "site_setup() { exit 1; }\n"
    )
    where = site.read(write_site(tmp_path, text))
    stages = {
        "pretrain": {
            "recipe": "tiny", "set": ["train.steps=5"], "nodes": 8, "gpus_per_node": 4, "time": "1-00:00:00",
            "cpus_per_task": 12, "memory": "500G", "sbatch": ["--switches=1"],
        },
        "export": {"partition": "cpu"},
    }  # fmt: skip
    first, second = lines(submission(tmp_path, where, **stages))
    assert first[:9] == [
        "sbatch", "--parsable", "--job-name=p-pretrain", f"--chdir={tmp_path}",
        f"--output={tmp_path}/made/logs/%x-%j.out", "--nodes=8", "--ntasks-per-node=4",
        "--gpus-per-node=h100:4", "--cpus-per-task=12",
    ]  # fmt: skip
    wanted = {
        "--mem=500G", "--time=1-00:00:00", "--partition=gpu", "--account=lab", "--exclude=n[7-8]",
        "--mail-user=me@lab", "--exclusive", "--comment=two words", "--switches=1", "--signal=B:USR1@300",
    }  # fmt: skip
    assert wanted <= set(first)
    run = str(tmp_path / "made" / "runs" / "pretrain")
    assert first[-5:] == [
        str(site.SCRIPTS / "pretrain.sbatch"), run, "tiny", "tracking.experiment=p", "train.steps=5",
    ]  # fmt: skip
    assert {"--partition=cpu", "--dependency=afterok:JOBID-OF-LINE-1", "--kill-on-invalid-dep=yes"} <= set(
        second
    )
    assert not any(word.startswith("--signal") for word in second)
    home = f"--export=ALL,MEMBART_HOME={site.SCRIPTS.parent},MEMBART_SITE={tmp_path}/site.env"
    assert home in first


def test_arrays_read_their_words_from_a_table_that_never_changes(tmp_path: Path) -> None:
    families = {name: {"data": [f"jsonl:/d/{name}"]} for name in ("ki", "fusion")}
    finetune = {"from": "scratch", "families": families, "at_once": 1, "preflight": False}
    wanted = submission(tmp_path, site.Site(), finetune=finetune)
    [line] = lines(wanted)
    assert "--array=1,2%1" in line
    assert any(word.startswith("--export=") and word.endswith(",MEMBART_PREFLIGHT=off") for word in line)
    wanted.write_tables()
    table = Path(line[-1])
    assert line[-2] == "--tasks"
    first, second = [row.split("\t") for row in table.read_text().splitlines()]
    assert first[0].endswith("/runs/ki")
    assert second[1:] == ["fusion", "--from", "scratch", "--data", "jsonl:/d/fusion", "tracking.experiment=p"]
    other = submission(tmp_path, site.Site(), finetune={**finetune, "families": {"ki": families["ki"]}})
    assert lines(other)[0][-1] != str(table)


def test_words_that_a_table_cannot_hold_are_refused(tmp_path: Path) -> None:
    finetune = {"from": "scratch", "families": {"ki": {"set": ["a=\t"]}}}
    with pytest.raises(UserError, match="has a tab in it"):
        lines(submission(tmp_path, site.Site(), finetune=finetune))


def test_nodes_that_failed_a_preflight_are_left_out_of_the_next_submission(tmp_path: Path) -> None:
    wanted = submission(tmp_path, site.Site(), pretrain={"recipe": "tiny"})
    jobs = wanted.tasks[0].jobs
    jobs.mkdir(parents=True)
    (jobs / "excluded").write_text("n9\nn2\nn9\n")
    assert "--exclude=n2,n9" in lines(wanted)[0]


def records(run: Path, *rows: dict[str, Any]) -> None:
    run.mkdir(parents=True)
    (run / "metrics.jsonl").write_text(
        "".join(
            json.dumps({"step": i, "time": float(i), "kind": "train", **row}) + "\n"
            for i, row in enumerate(rows)
        )
    )


def test_the_warning_comes_early_enough_for_the_slowest_save_that_was_measured(tmp_path: Path) -> None:
    run = tmp_path / "run"
    records(run, {"step_seconds": 4.0}, {"checkpoint_seconds": 90.0}, {"checkpoint_seconds": 70.0})
    assert lead.seconds(run, default=300) == 60 + 2 * 90 + 4
    assert lead.seconds(tmp_path / "new", default=300) == 300


def test_at_least_half_of_a_short_job_is_left_for_training(tmp_path: Path) -> None:
    assert lead.seconds(tmp_path / "new", default=300, limit=200) == 100
    wanted = submission(tmp_path, site.Site(), pretrain={"recipe": "tiny", "time": "4"})
    assert "--signal=B:USR1@120" in lines(wanted)[0]


def test_a_site_file_that_bash_cannot_read_is_a_users_mistake(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot be sourced"):
        site.read(write_site(tmp_path, "SITE_SBATCH=("))
    with pytest.raises(UserError, match="no such site file"):
        site.read(tmp_path / "none.env")
    with pytest.raises(UserError, match="SITE_LEAD_SECONDS='soon' is no number"):
        _ = site.read(write_site(tmp_path, "SITE_LEAD_SECONDS=soon")).lead_seconds


def test_the_example_site_file_can_be_used_as_it_is(tmp_path: Path) -> None:
    found = site.read(site.SCRIPTS / "site.example.env")
    assert found.options() == []
    assert found.lead_seconds == site.DEFAULT_LEAD_SECONDS
