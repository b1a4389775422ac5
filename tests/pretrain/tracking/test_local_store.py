"""The default store: one SQLite file beside the run folders, made by whoever comes first."""

from __future__ import annotations

import inspect
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from pretrain.errors import UserError
from pretrain.tracking import NodeSampler, NullTracker, Tracker, sync
from pretrain.tracking.locks import BusyError, file_lock
from pretrain.tracking.system import node_name, parse_gpus

TRAINER = """
import sys
from pathlib import Path
from pretrain.tracking import Tracker

tracker = Tracker.start(Path(sys.argv[1]), experiment="fresh", run_name="r", params={}, tags={})
assert "mlflow" not in sys.modules, "mlflow delays the start of training"
sys.stdin.readline()
tracker.log(1, "train", {"loss": 1.0})
assert tracker.finish("FINISHED", timeout=60)
print(tracker.view)
"""

DATABASE_FULL = """
import logging, resource, sys, threading
from pathlib import Path
from pretrain.tracking import Tracker

class Outage(logging.Handler):
    def __init__(self):
        super().__init__()
        self.seen = threading.Event()
    def emit(self, record):
        if "is not reached" in record.getMessage():
            self.seen.set()

run_dir, outage = Path(sys.argv[1]), Outage()
logging.getLogger("pretrain.tracking").addHandler(outage)
first = Tracker.start(run_dir, experiment="full", run_name="r", params={}, tags={}, system_interval=None)
first.log(1, "train", {"loss": 1.0})
assert first.finish("KILLED", timeout=60)
tracker = Tracker.start(run_dir, experiment="full", run_name="r", params={}, tags={}, resume_step=1,
                        system_interval=None, upload_interval=0.05)
size = (run_dir.parent / "mlflow.db").stat().st_size
resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))
for step in range(2, 3001):
    tracker.log(step, "train", {"loss": 1 / step})
assert outage.seen.wait(60)
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
assert tracker.finish("FINISHED", timeout=60)
"""

LOCK_HOLDER = """
import sys
from pathlib import Path
from pretrain.tracking.locks import file_lock

with file_lock(Path(sys.argv[1]), timeout=0):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_two_processes_on_a_fresh_store_make_it_once(tmp_path: Path, local: Any) -> None:
    children = []
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        children.append(
            subprocess.Popen(
                [sys.executable, "-c", TRAINER, str(tmp_path / name)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
        )
    for child in children:
        assert child.stdin is not None
        child.stdin.write("go\n")
        child.stdin.flush()
    answers = [child.communicate(timeout=120) for child in children]
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    for child, (out, err) in zip(children, answers, strict=True):
        assert child.returncode == 0, err
        assert err == "", "nothing but the trainer's own lines on the console"
        assert out == f"mlflow ui --backend-store-uri {uri}\n"
    runs = local(uri).runs("fresh")
    assert [run.info.status for run in runs] == ["FINISHED", "FINISHED"]
    assert all(run.data.metrics["loss"] == 1.0 for run in runs)
    assert all(run.info.artifact_uri.startswith((tmp_path / "mlartifacts").as_uri()) for run in runs)


def test_a_database_without_room_gets_everything_later(run_dir: Path, local: Any) -> None:
    done = subprocess.run(
        [sys.executable, "-c", DATABASE_FULL, str(run_dir)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    store = local(f"sqlite:///{run_dir.parent / 'mlflow.db'}")
    assert store.history(store.only_run("full").info.run_id) == {
        ("loss", step): [1 / step] for step in range(1, 3001)
    }


def test_system_metrics_of_every_node_are_sent_by_rank_0(run_dir: Path, local: Any) -> None:
    other = NodeSampler(run_dir, interval=0.01, node="node7")
    tracker = Tracker.start(
        run_dir,
        experiment="system",
        run_name="r",
        params={},
        tags={},
        system_interval=0.01,
        upload_interval=0.05,
    )
    tracker.log(1, "train", {"loss": 1.0})
    wait_for_lines(run_dir / "system-node7.jsonl", 2)
    wait_for_lines(run_dir / f"system-{node_name()}.jsonl", 2)
    other.stop()
    assert tracker.finish("FINISHED", timeout=60)
    store = local(f"sqlite:///{run_dir.parent / 'mlflow.db'}")
    run = store.only_run("system")
    for node in ("node7", node_name()):
        steps = store.steps(run.info.run_id, f"system/{node}/system_memory_usage_percentage")
        assert steps == list(range(len(steps)))
        assert len(steps) >= 2
        assert 0 <= run.data.metrics[f"system/{node}/cpu_utilization_percentage"] <= 100
    again = NodeSampler(run_dir, interval=0.01, node="node7")
    before = len((run_dir / "system-node7.jsonl").read_text().splitlines())
    wait_for_lines(run_dir / "system-node7.jsonl", before + 1)
    again.stop()
    samples = [json.loads(line)["step"] for line in (run_dir / "system-node7.jsonl").read_text().splitlines()]
    assert samples == list(range(len(samples))), "a later attempt on the node counts on"


def wait_for_lines(path: Path, count: int) -> None:
    deadline = time.monotonic() + 30
    while path.read_text().count("\n") < count:
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_gpu_figures_that_are_not_given_are_left_out() -> None:
    assert parse_gpus("37, 1000, 143771, 512.25\n[N/A], 2, 81559, [Not Supported]\n") == {
        "gpu_0_utilization_percentage": 37.0,
        "gpu_0_memory_usage_megabytes": pytest.approx(1048.576),
        "gpu_0_memory_total_megabytes": pytest.approx(150754.820, abs=0.001),
        "gpu_0_power_usage_watts": 512.25,
        "gpu_1_memory_usage_megabytes": pytest.approx(2.097152),
        "gpu_1_memory_total_megabytes": pytest.approx(85520.809, abs=0.001),
    }
    assert parse_gpus("No devices were found\n") == {}


def finished_run(run_dir: Path, **more: Any) -> None:
    tracker = Tracker.start(
        run_dir, experiment="e", run_name="r", params={}, tags={}, system_interval=None, **more
    )
    for step in range(1, 6):
        tracker.log(step, "train", {"loss": float(step)})
    assert tracker.finish("FINISHED", timeout=60)


def test_sync_brings_a_run_without_mlflow_to_any_store_once(
    run_dir: Path, tmp_path: Path, local: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    finished_run(run_dir, upload=False)
    assert not (run_dir.parent / "mlflow.db").exists()
    first, second = (f"sqlite:///{tmp_path / name}.db" for name in ("first", "second"))
    assert sync(run_dir, tracking_uri=first).metrics_sent == 5
    assert sync(run_dir, tracking_uri=first).metrics_sent == 0
    monkeypatch.setenv("MLFLOW_TRACKING_URI", second)
    assert sync(run_dir).metrics_sent == 5
    assert sync(run_dir, tracking_uri=first).metrics_sent == 0, "another store in between changes nothing"
    for uri in (first, second):
        store = local(uri)
        run = store.only_run("e")
        sent = [
            (m.step, m.value, m.timestamp) for m in store.client.get_metric_history(run.info.run_id, "loss")
        ]
        lines = map(json.loads, (run_dir / "metrics.jsonl").read_text().splitlines())
        assert sent == [(line["step"], line["loss"], round(line["time"] * 1000)) for line in lines]
        assert len(sent) == 5
        assert run.info.status == "FINISHED"
        assert run.info.end_time == round(
            json.loads((run_dir / "tracking/run.json").read_text())["ended"] * 1000
        )


def test_a_store_that_was_emptied_is_filled_again(run_dir: Path, local: Any, tmp_path: Path) -> None:
    finished_run(run_dir, tracking_uri=f"sqlite:///{tmp_path / 'one.db'}")
    (tmp_path / "one.db").rename(tmp_path / "old.db")
    moved = run_dir.rename(run_dir.with_name("moved"))
    progress = moved / "tracking" / "progress.json"
    before = json.loads(progress.read_text())
    uri = f"sqlite:///{tmp_path / 'two.db'}"
    progress.write_text(json.dumps({**before, "tracking_uri": uri}))
    assert sync(moved, tracking_uri=uri).metrics_sent == 5
    store = local(uri)
    run = store.only_run("e")
    assert run.info.run_id != before["run_id"]
    assert store.steps(run.info.run_id, "loss") == [1, 2, 3, 4, 5]
    assert [entry.path for entry in store.client.list_artifacts(run.info.run_id)] == ["params.json"]


def test_damaged_tracking_state_is_named(run_dir: Path) -> None:
    finished_run(run_dir, upload=False)
    (run_dir / "tracking" / "run.json").write_text('{"experiment": ')
    with pytest.raises(UserError, match=r"run\.json: not readable as tracking state") as error:
        sync(run_dir)
    assert "\n" not in str(error.value)


def test_a_lock_excludes_threads_and_processes_and_dies_with_its_holder(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    with file_lock(path, timeout=0), pytest.raises(BusyError), file_lock(path, timeout=0):
        pass
    with file_lock(path, timeout=0):
        other = subprocess.run(
            [sys.executable, "-c", LOCK_HOLDER, str(path)],
            capture_output=True,
            text=True,
            check=False,
            input="",
        )
        assert "BusyError" in other.stderr
    with subprocess.Popen(
        [sys.executable, "-c", LOCK_HOLDER, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        with pytest.raises(BusyError), file_lock(path, timeout=0):
            pass
        holder.kill()
        holder.wait(30)
        with file_lock(path, timeout=5):
            pass


def test_the_other_ranks_tracker_has_the_same_calls(run_dir: Path) -> None:
    null = NullTracker()
    for name in ("log", "artifact", "finish"):
        assert inspect.signature(getattr(NullTracker, name)) == inspect.signature(getattr(Tracker, name))
    null.log(1, "train", {"loss": 1.0})
    null.artifact(run_dir / "x")
    assert null.finish("FINISHED", timeout=0)
    assert (null.run_id, null.view) == (None, "")
    assert list(run_dir.iterdir()) == []
