"""`membart slurm` where there is no Slurm, and where Slurm says no: one line, and nothing half done."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner, Result

from pretrain.errors import UserError
from tools.slurm.cli import app
from tools.slurm.record import Submitted, add

REFUSES = """\
#!/bin/sh
echo "sbatch: error: Batch job submission failed: Requested time limit is invalid" >&2
exit 1
"""
TAKES_ONE = """\
#!/bin/sh
case "$*" in *--test-only*) exit 0 ;; *-pretrain*) echo 17; exit 0 ;; esac
echo "sbatch: error: QOSMaxSubmitJobPerUserLimit" >&2
exit 1
"""
CANCELS = """\
#!/bin/sh
echo "$@" >>"${0%/*}/cancelled"
"""


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A pipeline file on a machine without Slurm."""
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "bash").symlink_to(str(shutil.which("bash")))
    monkeypatch.setenv("PATH", f"{tmp_path}/bin")
    (tmp_path / "site.env").touch()
    stages = {"pretrain": {"recipe": "tiny"}, "export": {}}
    made = tmp_path / "pipeline.yaml"
    made.write_text(yaml.safe_dump({"name": "p", "folder": "made", "site": "site.env", "stages": stages}))
    return made


def command(file: Path, name: str, text: str) -> None:
    """A command of Slurm's that answers as a cluster might."""
    made = file.parent / "bin" / name
    made.write_text(text)
    made.chmod(0o755)


def membart(*words: object) -> Result:
    result = CliRunner().invoke(app, [str(word) for word in words])
    if isinstance(result.exception, UserError):
        raise result.exception
    assert result.exit_code == 0, result.output
    return result


def test_without_slurm_the_lines_can_be_looked_at_and_nothing_is_submitted(file: Path) -> None:
    assert membart("submit", file, "--dry-run").output.count("sbatch --parsable") == 2
    with pytest.raises(UserError, match="sbatch is not on this machine -- go to a node where jobs"):
        membart("submit", file)
    assert "not submitted" in membart("status", file).output
    assert "no job of this pipeline is in the queue" in membart("cancel", file).output
    assert not (file.parent / "made").exists()


def test_what_was_submitted_cannot_be_looked_at_without_slurm(file: Path) -> None:
    (file.parent / "made").mkdir()
    add(file.parent / "made", [Submitted("pretrain", "pretrain", "17", 0, "now", "sbatch")])
    for words in (["submit"], ["status"], ["cancel"]):
        with pytest.raises(UserError, match="squeue is not on this machine"):
            membart(*words, file)


def test_slurms_own_words_are_told_with_the_stage_and_the_line(file: Path) -> None:
    command(file, "sbatch", REFUSES)
    with pytest.raises(UserError) as caught:
        membart("submit", file)
    said = str(caught.value)
    assert said.startswith("stages.pretrain: sbatch: error: Batch job submission failed: Requested time ")
    assert "-- line: sbatch --test-only --parsable --job-name=p-pretrain" in said
    assert not (file.parent / "made").exists()


def test_a_chain_that_cannot_be_submitted_whole_is_taken_back(file: Path) -> None:
    command(file, "sbatch", TAKES_ONE)
    command(file, "scancel", CANCELS)
    with pytest.raises(UserError, match="sbatch: error: QOSMaxSubmitJobPerUserLimit"):
        membart("submit", file)
    assert (file.parent / "bin" / "cancelled").read_text() == "17\n"
    assert not (file.parent / "made" / "jobs.json").exists()


def test_a_folder_that_cannot_be_made_is_named(file: Path) -> None:
    command(file, "sbatch", TAKES_ONE)
    (file.parent / "made").write_text("a file")
    with pytest.raises(UserError, match=r"/made: cannot be written: .* -- give another `folder`"):
        membart("submit", file)


def test_a_list_of_jobs_that_cannot_be_read_stops_everything(file: Path) -> None:
    (file.parent / "made").mkdir()
    (file.parent / "made" / "jobs.json").write_text("{")
    for words in (["submit"], ["status"], ["cancel"]):
        with pytest.raises(UserError, match=r"jobs.json: cannot be read -- move it away"):
            membart(*words, file)
