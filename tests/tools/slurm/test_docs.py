"""The pipeline files that the documentation shows can be used."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from tools.slurm import chain, pipeline

REPOSITORY = Path(__file__).parents[3]


def block(page: str, kind: str, word: str) -> str:
    """The one block of a page that has a word in it."""
    text = (REPOSITORY / page).read_text(encoding="utf-8")
    [found] = [part for part in re.findall(rf"```{kind}\n(.*?)```", text, re.DOTALL) if word in part]
    return str(found)


def shown() -> dict[str, str]:
    """The pipelines that a user is told to copy."""
    page = block("docs/cluster.md", "yaml", "stages:")
    return {
        "page": page,
        "example": (REPOSITORY / "slurm" / "pipeline.example.yaml").read_text(encoding="utf-8"),
    }


@pytest.mark.parametrize("name", shown())
def test_a_pipeline_that_is_shown_can_be_submitted_and_makes_all_five_families(
    name: str, tmp_path: Path
) -> None:
    file = tmp_path / "large.yaml"
    file.write_text(shown()[name])
    found = pipeline.load(file)
    pipeline.check(found, file)
    tasks = chain.tasks(found, tmp_path)
    five = {"membart", "fusion", "persona_cvae", "ki", "dior_cvae"}
    assert {task.name for task in tasks if task.stage == "finetune"} == five
    assert {task.stage for task in tasks} == set(pipeline.STAGES)


def test_the_rehearsal_of_the_page_is_the_same_pipeline_made_small(tmp_path: Path) -> None:
    file = tmp_path / "large.yaml"
    file.write_text(shown()["page"])
    command = block("docs/cluster.md", "sh", "sed -e").partition("\nmembart")[0]
    for name in ("large", "rehearsal"):
        command = command.replace(f"/shared/{name}.yaml", f"{tmp_path}/{name}.yaml")
    subprocess.run(["bash", "-e", "-c", command], check=True)
    large, small = pipeline.load(file), pipeline.load(tmp_path / "rehearsal.yaml")
    pipeline.check(small, file)
    assert small.folder.name == "rehearsal"
    stages = small.stages
    for stage in (stages.pretrain, stages.knowledge, stages.finetune, stages.evaluate, stages.export):
        assert stage is not None
        assert stage.time == "20"
    assert stages.pretrain is not None
    assert stages.pretrain.layout == (2, 4)
    assert stages.pretrain.set[:2] == ("train.steps=20", "checkpoint.every=10")
    assert stages.finetune is not None
    assert large.stages.finetune is not None
    assert list(stages.finetune.families) == list(large.stages.finetune.families)
    assert all(family.set[0] == "train.steps=20" for family in stages.finetune.families.values())


def test_every_script_says_how_it_is_used() -> None:
    for script in sorted((REPOSITORY / "slurm").glob("*.sbatch")):
        head = script.read_text(encoding="utf-8").split("set -euo pipefail")[0]
        assert re.search(rf"^#   sbatch .*slurm/{script.name}", head, re.MULTILINE), script.name
        assert "#SBATCH --requeue" in head
        assert "#SBATCH --open-mode=append" in head
