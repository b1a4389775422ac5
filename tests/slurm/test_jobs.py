"""The job scripts on a real Slurm: whatever happens to a job, the work goes on, or ends for a good reason.

Everything is submitted at once and disturbed while it runs: ranks cost seconds of importing, so few are
started and each shows several things.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import sqlite3
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from threading import Event
from typing import Any

import pytest
import yaml

from finetune.knowledge.annotations import Annotations
from pretrain import checkpoint
from tests.slurm import cluster as machines
from tests.slurm import mission
from tests.slurm.cluster import Cluster
from tests.slurm.traces import journal, last_step, ranks, recipe_file, tell, told
from tests.support import runs

REPOSITORY = Path(__file__).parents[2]
SCRIPTS = REPOSITORY / "slurm"
MAIN, ASIDE, SMALL = ("n1", "n2", "n3"), ("n4", "n5", "n6", "n7"), ("n8", "n9", "n10")
"""Nodes of the pipeline, of the run that is parted from its controller, and of programs of one line."""
BROKEN = "n2"

TUNED = ("membart", "ki")
"""With knowledge and without; all five families are in `tests/punish/test_slurm.py`."""

SITE = f"""\
SITE_PYTHON={sys.executable}
SITE_PARTITION=main
SITE_MIN_FREE_GB=0.001
SITE_MIN_TMP_GB=0.001
SITE_POLL_SECONDS=1
export PYTHONPATH={REPOSITORY} DS_ACCELERATOR=cpu OMP_NUM_THREADS=1
"""
SITE_OF_SMALL = """\
SITE_POLL_SECONDS=1
SITE_WAIT_SECONDS=10
SITE_LEAD_SECONDS=58
SITE_START_SECONDS=6
SITE_STALL_SECONDS=6
SITE_MAX_FRUITLESS=2
"""
ENDED = {"COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL"}
ENDS = {
    "preempted-twice": ("COMPLETED", "0:0", 2),
    "mistaken": ("FAILED", "2:0", 0),
    "dies-unsaved": ("FAILED", "1:0", 2),
    "unlucky": ("COMPLETED", "0:0", 1),
    "dies-always": ("FAILED", "1:0", 3),
    "stopped": ("FAILED", "75:0", 0),
    "cancelled": ("CANCELLED", None, 0),
    "hangs": ("COMPLETED", "0:0", 1),
    "unplugged": ("COMPLETED", "0:0", 1),
    "warned": ("COMPLETED", "0:0", 1),
}
"""State, exit code and restarts with which Slurm leaves each program of program.sh."""

pytestmark = [
    pytest.mark.skipif(bool(machines.missing()), reason=machines.missing()),
    pytest.mark.timeout(1800),
]


@dataclass
class Scene:
    """A cluster with everything submitted."""

    cluster: Cluster
    folder: Path
    pipeline: Path
    parted: str
    """Job of a run of its own."""
    small: dict[str, str]
    """Jobs of the programs of one line."""
    array: str
    """An array of them."""
    over: Event = field(default_factory=Event)
    parting: Future[Parted] = field(init=False)
    """What becomes of the run of its own, meanwhile."""

    @property
    def made(self) -> Path:
        return self.folder / "made"

    def run(self, name: str = "pretrain") -> Path:
        return self.made / "runs" / name

    def membart(self, *words: object) -> str:
        return self.cluster.run(sys.executable, "-m", "tools.cli", "slurm", *words, timeout=300)

    def job(self, stage: str, name: str) -> str:
        jobs = json.loads((self.made / "jobs.json").read_text())["jobs"]
        [found] = [row for row in jobs if (row["stage"], row["name"]) == (stage, name)]
        return f"{found['job']}_{found['number']}" if found["number"] else found["job"]

    def until(self, met: Callable[[], Any], what: str, job: str = "") -> None:
        """Wait; past the time, or when `job` has ended without it, tell what the jobs said."""

        def met_or_over() -> bool:
            assert not self.over.is_set(), "the tests are over"
            over = job and self.cluster.state(job) in ENDED
            return bool(met()) or bool(over)

        try:
            self.cluster.until(met_or_over, what, timeout=1500)
            assert met(), f"not before the end of job {job}: {what}"
        except AssertionError as error:
            raise AssertionError(f"{error}\n{told(self.folder)}") from None


@dataclass(frozen=True)
class Parted:
    """A run cut off from the controller, and the second start that has taken over; both stand still."""

    old: list[int]
    new: list[int]
    """Process ids of the ranks of both starts."""


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory, shards: Path) -> Iterator[Scene]:
    folder = tmp_path_factory.mktemp("slurm")
    (folder / "site.env").write_text(SITE)
    (folder / "small.env").write_text(SITE_OF_SMALL)
    recipe_file(folder / "endless.yaml", shards, steps=1_000_000, tracking__mlflow=False)
    fails = {"family": "membart.yaml", "data": ["jsonl:nowhere"]}
    pipeline = mission.write_pipeline(
        folder, shards, "site.env", steps=60, tuned=TUNED, finetune__families__fails=fails
    )
    os.environ["PYTHONPATH"] = str(REPOSITORY)
    partitions = {"main": MAIN, "aside": ASIDE, "small": SMALL}
    with Cluster(folder / "cluster", partitions) as cluster:
        # The shard set vanishes from one node.
        cluster.run("mount", "-t", "tmpfs", "tmpfs", shards, host=BROKEN)
        small = {name: submit_small(cluster, folder, name) for name in ENDS}
        parted = cluster.run(
            "env", f"MEMBART_HOME={REPOSITORY}", f"MEMBART_SITE={folder}/site.env", "MEMBART_PREFLIGHT=off",
            "sbatch", "--parsable", "--partition=aside", "--nodes=2", "--ntasks-per-node=1",
            f"--output={folder}/%x-%j.out", SCRIPTS / "pretrain.sbatch", folder / "parted",
            folder / "endless.yaml",
        ).strip()  # fmt: skip
        array = submit_small(cluster, folder, "array", "--array=1-2")
        found = Scene(cluster, folder, pipeline, parted, small, array)
        with ThreadPoolExecutor(1) as beside:
            found.parting = beside.submit(part, found)
            found.membart("submit", pipeline)
            yield found
            found.over.set()


def part(scene: Scene) -> Parted:
    """Let the run of its own go some way, then cut it off from the controller, not from its disk."""
    cluster, run, job = scene.cluster, scene.folder / "parted", scene.parted
    scene.until(lambda: last_step(run) >= 40, "40 updates of the run of its own", job)
    old, left = ranks(job, restart=0), checkpoint.resolve(run)
    tell(old, signal.SIGSTOP)
    nodes = cluster.run("scontrol", "show", "hostnames", cluster.job(job)["NodeList"])
    cluster.isolate(*nodes.split())
    scene.until(lambda: checkpoint.resolve(run).update > left.update, "a checkpoint of the new start", job)
    new = ranks(job, restart=1)
    tell(new, signal.SIGSTOP)
    return Parted(old, new)


def submit_small(cluster: Cluster, folder: Path, name: str, *words: str) -> str:
    """A job whose program behaves like NAME of program.sh."""
    nodes = "--nodes=2" if name == "unplugged" else "--nodelist=n8"
    limit = "--time=1" if name == "warned" else "--time=60"
    return cluster.run(
        "env", f"MEMBART_HOME={REPOSITORY}", f"MEMBART_SITE={folder}/small.env",
        "sbatch", "--parsable", "--partition=small", nodes, limit, *words, f"--output={folder}/{name}.out",
        REPOSITORY / "tests" / "slurm" / "program.sbatch", folder / "small" / name, name,
    ).strip()  # fmt: skip


@pytest.mark.parametrize(
    "stage", ["pretrain", "knowledge", "finetune", "evaluate", "export", "report", "mlflow"]
)
def test_slurm_takes_each_script_on_64_nodes_of_8_gpus(scene: Scene, stage: str) -> None:
    size = [] if stage == "mlflow" else ["--nodes=64", "--ntasks-per-node=8", "--gpus-per-node=h100:8"]
    array = ["--array=1-5%2"] if stage in ("finetune", "evaluate", "export") else []
    words = [
        "sbatch", "--test-only", "--partition=big", *size, *array, "--time=2-00:00:00",
        SCRIPTS / f"{stage}.sbatch", "a", "b",
    ]  # fmt: skip
    done = scene.cluster.try_run(*words)
    assert done.returncode == 0, done.stderr
    assert stage == "mlflow" or "using 512 processors on nodes big[1-64]" in done.stderr
    too_many = scene.cluster.try_run(*("--gpus-per-node=h100:9" if "h100" in str(w) else w for w in words))
    assert stage == "mlflow" or too_many.returncode != 0


def test_a_node_that_fails_the_preflight_is_named_and_the_job_goes_on_without_it(scene: Scene) -> None:
    run, job = scene.run(), scene.job("pretrain", "pretrain")
    scene.until(lambda: f"{job}.1 preflight passed" in journal(run), "the preflight passes", job)
    said = journal(run)
    assert re.search(rf"{job}\.0 preflight: {BROKEN}: .*shards", said), said
    assert f"{job}.0 requeued: without {BROKEN}" in said
    assert scene.cluster.job(job)["ExcNodeList"] == BROKEN
    assert "preflight: n1" not in said, "a good node was blamed"
    assert re.search(rf"{job}\.1 preflight passed: all-reduce over 2 ranks [\d.]+ GB/s", said), said


def test_a_preempted_run_saves_and_continues_bit_identically(scene: Scene) -> None:
    """The run of its own has the same recipe, and nothing has disturbed it in its first 40 updates."""
    cluster, run, job = scene.cluster, scene.run(), scene.job("pretrain", "pretrain")
    scene.until(lambda: last_step(run) >= 3, "three updates", job)
    stopped = ranks(job, restart=1)
    tell(stopped, signal.SIGSTOP)  # so that it does not finish before Slurm has acted
    urgent = cluster.run(
        "sbatch", "--parsable", "--partition=urgent", "--nodelist=n1", "--cpus-per-task=8", "--time=5",
        "--output=/dev/null", "--wrap=true",
    ).strip()  # fmt: skip
    scene.until(lambda: cluster.job(job).get("PreemptTime", "None") != "None", "the preemption", job)
    tell(stopped, signal.SIGCONT)
    scene.until(lambda: f"{job}.1 requeued: saved, exit 75" in journal(run), "the requeue", job)
    scene.until(lambda: cluster.state(urgent) == "COMPLETED", "the urgent job")
    log = "".join(
        file.read_text() for file in (run.with_name("pretrain.jobs") / "pretrain" / f"{job}.1").glob("n*.log")
    )
    at = int(re.search(r"SIGTERM: saved \S+step-(\d+)", log)[1])  # type: ignore[index]

    scene.until(lambda: (run.with_name("pretrain.jobs") / "pretrain" / "done").exists(), "the end", job)
    scene.parting.result(timeout=1500)
    mine, theirs = runs.numbers(run), runs.numbers(scene.folder / "parted")
    compared = [key for key in mine if key[0] == "train" and key in theirs]
    assert max(step for _, step in compared) >= at + 10
    assert {key: mine[key] for key in compared} == {key: theirs[key] for key in compared}


def test_a_start_behind_a_partition_cannot_commit_and_scancel_stays_cancelled(scene: Scene) -> None:
    cluster, run, job = scene.cluster, scene.folder / "parted", scene.parted
    parted = scene.parting.result(timeout=1500)
    before = {saved.path.name: saved.path.stat().st_mtime_ns for saved in checkpoint.committed(run)}
    tell(parted.old, signal.SIGCONT)
    scene.until(lambda: not ranks(job, restart=0), "the old start ends")
    assert before == {s.path.name: s.path.stat().st_mtime_ns for s in checkpoint.committed(run)}
    here = run.with_name("parted.jobs") / "pretrain" / f"{job}.0"
    assert "was superseded by attempt 2" in "".join(log.read_text() for log in here.glob("n*.log"))

    cluster.run("scancel", job)
    tell(parted.new, signal.SIGCONT)
    scene.until(lambda: f"{job}.1 ends, exit 75" in journal(run), "the cancelled job saves")
    assert "saved, exit 75; the job is COMPLETING, not requeued" in journal(run)
    scene.until(lambda: cluster.state(job) == "CANCELLED", "the job ends")
    assert cluster.job(job)["Restarts"] == "1"


def test_the_whole_mission_is_one_chain_and_a_fine_tune_that_fails_takes_nothing_down(scene: Scene) -> None:
    scene.until(
        lambda: scene.cluster.state(scene.job("report", "all")) in ("COMPLETED", "FAILED"),
        "the end",
    )
    said = scene.membart("status", scene.pipeline)
    rows = {tuple(line.split()[:2]): line for line in said.splitlines()[1:]}
    lost = {(stage, "fails") for stage in ("finetune", "evaluate", "export")}
    for stage, name in rows.keys() - lost:
        found = scene.cluster.job(scene.job(stage, name))
        assert (found["JobState"], found["ExitCode"]) == ("COMPLETED", "0:0"), f"{said}\n{told(scene.made)}"
        assert " done" in rows[stage, name]
    assert {name for stage, name in rows.keys() - lost if stage == "finetune"} == set(TUNED)
    assert "60/60" in rows["pretrain", "pretrain"]
    assert " failed " in rows["finetune", "fails"]
    assert " cancelled " in rows["evaluate", "fails"]
    assert "DependencyNeverSatisfied" in rows["export", "fails"]

    again = [shlex.split(line) for line in scene.membart("submit", "--dry-run", scene.pipeline).splitlines()]
    assert [Path(next(w for w in words if w.endswith(".sbatch"))).stem for words in again] == [
        "finetune", "evaluate", "export", "report",
    ]  # fmt: skip
    assert [word for words in again for word in words if word.startswith("--array=")] == [
        "--array=3%2", "--array=3", "--array=3",
    ]  # fmt: skip
    assert not any(word.startswith("--dependency") for word in again[0])


@pytest.mark.parametrize("name", ["pretrain", *TUNED])
def test_every_model_of_the_mission_can_be_loaded_and_generates(scene: Scene, name: str) -> None:
    assert mission.speaks(scene.made / "models" / name)


def test_the_mission_is_one_experiment_and_one_report(scene: Scene) -> None:
    children = dict.fromkeys(TUNED, "pretrain")
    assert mission.tracked(scene.made / "runs") == {"pretrain": None, **children}
    page = (scene.made / "report.html").read_text()
    for name in ("pretrain", *TUNED):
        assert (scene.run(name) / "report.html").is_file()
        assert name in page
    for name in TUNED:
        assert (scene.run(name) / "evaluation" / "test" / "evaluation.json").is_file()
    with sqlite3.connect(scene.made / "runs" / "mlflow.db") as store:
        [(twice,)] = store.execute(
            "select count(*) from (select 1 from metrics group by run_uuid, key, step having count(*) > 1)"
        )
        [(steps,)] = store.execute(
            "select count(distinct step) from metrics join runs using (run_uuid) "
            "where name = 'pretrain' and key = 'loss'"
        )
    assert (twice, steps) == (0, 60), "preempted and requeued, the pretraining is one run of 60 updates"


def test_what_is_known_reaches_the_fine_tune_that_learns_from_it(scene: Scene) -> None:
    """The other fine-tunes need not wait for it."""
    known = scene.made / "knowledge" / "annotations"
    recipe = yaml.safe_load((scene.run("ki") / "recipe.yaml").read_text())
    assert recipe["model"]["knowledge"] == str(known)
    assert Annotations.open(known).manifest.spans > 0
    jobs = {name: scene.job("finetune", name).partition("_")[0] for name in TUNED}
    assert jobs["membart"] != jobs["ki"]


@pytest.mark.parametrize("name", ENDS)
def test_a_job_is_requeued_when_it_saved_and_nobody_cancelled_it(scene: Scene, name: str) -> None:
    cluster, job = scene.cluster, scene.small[name]
    place = scene.folder / "small" / f"{name}.jobs"
    begun = scene.folder / "small" / name / "checkpoints"
    if name == "cancelled":
        scene.until(begun.exists, "the program runs", job)
        cluster.run("scancel", job)
    if name == "unplugged":
        scene.until(begun.exists, "the program runs", job)
        cluster.pull_the_plug(
            cluster.run("scontrol", "show", "hostnames", cluster.job(job)["NodeList"]).split()[-1]
        )
    state, code, restarts = ENDS[name]
    scene.until(lambda: cluster.state(job) == state, f"{name} is {state}", job)
    found = cluster.job(job)
    assert (code or found["ExitCode"], str(restarts)) == (found["ExitCode"], found["Restarts"]), told(place)


def test_an_array_task_that_is_requeued_leaves_the_other_tasks_alone(scene: Scene) -> None:
    """The last task of an array has the whole array's job id in SLURM_JOB_ID."""
    cluster = scene.cluster
    for task in ("1", "2"):
        job = f"{scene.array}_{task}"
        scene.until(lambda job=job: cluster.state(job) == "COMPLETED", f"the end of {job}", job)  # type: ignore[misc]
    assert [cluster.job(f"{scene.array}_{task}")["Restarts"] for task in ("1", "2")] == ["0", "1"]
