"""The pipeline files that the documentation shows can be used."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tools.slurm import chain, pipeline

REPOSITORY = Path(__file__).parents[3]


@pytest.mark.parametrize("page", ["slurm/README.md", "docs/cluster.md"])
def test_the_pipeline_of_a_page_is_read_and_makes_all_five_families(page: str, tmp_path: Path) -> None:
    text = (REPOSITORY / page).read_text(encoding="utf-8")
    [shown] = [block for block in re.findall(r"```yaml\n(.*?)```", text, re.DOTALL) if "stages:" in block]
    file = tmp_path / "large.yaml"
    file.write_text(shown)
    found = pipeline.load(file)
    tasks = chain.tasks(found, tmp_path)
    five = {"membart", "fusion", "persona_cvae", "ki", "dior_cvae"}
    assert {task.name for task in tasks if task.stage == "finetune"} == five
    assert {task.stage for task in tasks} == set(pipeline.STAGES)


def test_every_script_says_how_it_is_used() -> None:
    for script in sorted((REPOSITORY / "slurm").glob("*.sbatch")):
        head = script.read_text(encoding="utf-8").split("set -euo pipefail")[0]
        assert re.search(rf"^#   sbatch .*slurm/{script.name}", head, re.MULTILINE), script.name
        assert "#SBATCH --requeue" in head
        assert "#SBATCH --open-mode=append" in head
