"""The whole mission on a real Slurm: families of one pretraining, one tracking server, a power failure."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from pretrain import checkpoint
from tests.slurm import cluster as machines
from tests.slurm import mission
from tests.slurm.cluster import Cluster
from tests.slurm.traces import journal, last_step, recipe_file, told

REPOSITORY = Path(__file__).parents[2]

pytestmark = [
    pytest.mark.punish,
    pytest.mark.skipif(bool(machines.missing()), reason=machines.missing()),
    pytest.mark.timeout(1800),
]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    os.environ["PYTHONPATH"] = str(REPOSITORY)
    folder = tmp_path_factory.mktemp("slurm")
    with Cluster(folder / "cluster", {"main": ("n1", "n2"), "aside": ("n3", "n4", "n5")}) as made:
        yield made


def site(folder: Path) -> Path:
    file = folder / "site.env"
    file.write_text(
        f"SITE_PYTHON={sys.executable}\nSITE_PARTITION=main\nSITE_MIN_FREE_GB=0.001\nSITE_MIN_TMP_GB=0.001\n"
        f"SITE_POLL_SECONDS=1\nexport PYTHONPATH={REPOSITORY} DS_ACCELERATOR=cpu OMP_NUM_THREADS=1\n"
    )
    return file


def test_every_family_comes_out_of_one_pipeline_with_one_tracking_server(
    cluster: Cluster, tmp_path: Path, shards: Path
) -> None:
    pipeline = mission.write_pipeline(
        tmp_path, shards, site(tmp_path).name, steps=20, finetune__preflight=True
    )
    made = tmp_path / "made"
    server = cluster.run(
        "env", f"MEMBART_HOME={REPOSITORY}", f"MEMBART_SITE={site(tmp_path)}", "sbatch", "--parsable",
        "--partition=aside", f"--output={tmp_path}/mlflow.out", REPOSITORY / "slurm" / "mlflow.sbatch",
        made / "runs",
    ).strip()  # fmt: skip
    cluster.until((made / "runs" / "mlflow.url").exists, "the server's address")
    membart = [sys.executable, "-m", "tools.cli", "slurm"]
    cluster.run(*membart, "submit", pipeline, timeout=300)
    cluster.until(
        lambda: "made-report" not in cluster.run("squeue", "-h", "-o", "%j"), "the end", timeout=1500
    )
    said = cluster.run(*membart, "status", pipeline, timeout=300)
    rows = {tuple(line.split()[:2]): line for line in said.splitlines()[1:]}
    for stage in ("finetune", "evaluate", "export"):
        for name in mission.FAMILIES:
            assert " done" in rows[stage, name], f"{said}\n{told(tmp_path)}"
            assert (made / "runs" / name / "report.html").is_file()
    for name in ("pretrain", *mission.FAMILIES):
        assert mission.speaks(made / "models" / name)
        assert name in (made / "report.html").read_text()
    assert cluster.run(*membart, "submit", "--dry-run", pipeline, timeout=300).strip() == "nothing to do"

    cluster.run("scancel", server)
    children = dict.fromkeys(mission.FAMILIES, "pretrain")
    assert mission.tracked(made / "runs") == {"pretrain": None, **children}


def test_a_run_outlives_the_power_failure_of_a_node(cluster: Cluster, tmp_path: Path, shards: Path) -> None:
    """Its ranks notice before Slurm does; either of them requeues the job, and it goes on elsewhere."""
    recipe = recipe_file(
        tmp_path / "recipe.yaml", shards, steps=400, train__peer_timeout=10, tracking__mlflow=False
    )
    run = tmp_path / "run"
    job = cluster.run(
        "env", f"MEMBART_HOME={REPOSITORY}", f"MEMBART_SITE={site(tmp_path)}", "sbatch", "--parsable",
        "--partition=aside", "--nodes=2", "--ntasks-per-node=1", f"--output={tmp_path}/pretrain.out",
        REPOSITORY / "slurm" / "pretrain.sbatch", run, recipe,
    ).strip()  # fmt: skip
    cluster.until(lambda: checkpoint.latest(run) is not None, f"a checkpoint\n{told(tmp_path)}", timeout=600)
    nodes = cluster.run("scontrol", "show", "hostnames", cluster.job(job)["NodeList"]).split()
    cluster.pull_the_plug(nodes[-1])
    try:
        cluster.until(lambda: cluster.state(job) in ("COMPLETED", "FAILED"), "the end", timeout=900)
    finally:
        print(told(tmp_path))
    assert cluster.state(job) == "COMPLETED"
    assert last_step(run) == 400
    assert f"{job}.0 starts on" in journal(run)
    assert f"{job}.1 ends, exit 0" in journal(run)
