"""Whatever a server does, training does not notice, and afterwards it has each (metric, step) once."""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from pretrain.errors import UserError
from pretrain.tracking import METRICS_FILE, Tracker, read_records, spool, sync
from pretrain.tracking.locks import file_lock

NOT_BLOCKED_SECONDS = 5.0
"""Far more than a log call needs, far less than any fault below lasts."""

TRAINER = """
import sys
from pathlib import Path
from pretrain.tracking import Tracker

run_dir, uri, experiment = Path(sys.argv[1]), sys.argv[2], sys.argv[3]
tracker = Tracker.start(run_dir, experiment=experiment, run_name="killed", params={"lr": 0.1}, tags={},
                        tracking_uri=uri, upload_interval=0.05, system_interval=None)
for step in range(1, 21):
    tracker.log(step, "train", {"loss": 1 / step})
print("logged", flush=True)
sys.stdin.read()
"""


def start(run_dir: Path, uri: str, experiment: str, **more: Any) -> Tracker:
    settings: dict[str, Any] = {
        "params": {"optimizer": {"lr": 0.1}, "seed": 1},
        "tags": {"git_commit": "abc"},
        "upload_interval": 0.05,
        "system_interval": None,
        **more,
    }
    return Tracker.start(run_dir, experiment=experiment, run_name="run", tracking_uri=uri, **settings)


def train(tracker: Tracker, first: int, last: int) -> None:
    for step in range(first, last + 1):
        tracker.log(step, "train", {"loss": 10 / step, "gate_mean": 0.5})
        if step % 5 == 0:
            tracker.log(step, "validation", {"validation/loss": 11 / step})


def in_file(run_dir: Path) -> dict[tuple[str, int], list[float]]:
    """What `Server.history` must say."""
    found: dict[tuple[str, int], list[float]] = {}
    for record, _ in read_records(run_dir / METRICS_FILE):
        assert record is not None
        for name, value in record.metrics.items():
            found.setdefault((name, record.step), []).append(value)
    return found


def test_down_at_start_dead_midway_errors_and_back(
    server: Any, proxy: Any, run_dir: Path, outages: Any
) -> None:
    proxy.down()
    tracker = start(run_dir, proxy.url, "outages")
    train(tracker, 1, 8)
    outages.wait_for("is not reached", 1)
    assert tracker.run_id is None
    proxy.up()
    outages.wait_for("is reached again", 1)
    assert ("loss", 8) in proxy.delivered
    proxy.down()
    train(tracker, 9, 12)
    outages.wait_for("is not reached", 2)
    proxy.errors_left = 5
    proxy.up()
    train(tracker, 13, 16)
    plot = run_dir / "loss.png"
    plot.write_bytes(b"picture")
    tracker.artifact(plot, "plots")
    assert tracker.finish("FINISHED", timeout=60)
    assert proxy.errors_left == 0

    run = server.only_run("outages")
    assert run.info.run_id == tracker.run_id
    assert run.info.status == "FINISHED"
    assert run.data.params == {"optimizer.lr": "0.1", "seed": "1"}
    assert run.data.tags["mlflow.source.git.commit"] == run.data.tags["git_commit"] == "abc"
    assert server.history(run.info.run_id) == in_file(run_dir)
    assert max(Counter(proxy.delivered).values()) == 1
    assert len(in_file(run_dir)) == 2 * 16 + 3
    plots = [entry.path for entry in server.client.list_artifacts(run.info.run_id, "plots")]
    assert plots == ["plots/loss.png"]
    assert outages.count("is not reached") == outages.count("is reached again") == 2, (
        "told once, not each try"
    )


def test_a_slow_server_is_not_waited_for_and_gets_everything_later(
    server: Any, proxy: Any, run_dir: Path
) -> None:
    proxy.gate.clear()
    began = time.monotonic()
    tracker = start(run_dir, proxy.url, "slow")
    train(tracker, 1, 200)
    tracker.artifact(run_dir / METRICS_FILE)
    assert time.monotonic() - began < NOT_BLOCKED_SECONDS
    proxy.wait_for(lambda seen: seen.requests.total() >= 1)
    began = time.monotonic()
    assert not tracker.finish("FINISHED", timeout=0.2)
    assert time.monotonic() - began < NOT_BLOCKED_SECONDS
    with pytest.raises(UserError, match="being uploaded by a running process"):
        sync(run_dir)

    proxy.gate.set()
    with file_lock(spool.lock_path(run_dir), timeout=30):
        assert proxy.delivered == [], "what nobody waits for goes no further"
    synced = sync(run_dir)
    run = server.only_run("slow")
    assert synced.run_id == run.info.run_id
    assert run.info.status == "FINISHED"
    assert server.history(run.info.run_id) == in_file(run_dir)
    assert max(Counter(proxy.delivered).values()) == 1


@pytest.mark.parametrize(
    "lost",
    [["experiments/create", "runs/create"], ["runs/log-batch"] * 2],  # parameters and tags, then metrics
    ids=["create", "log"],
)
def test_a_lost_reply_makes_no_second_run_and_no_second_value(
    server: Any, proxy: Any, run_dir: Path, lost: list[str]
) -> None:
    experiment = f"lost {lost[0]}"
    proxy.lost_replies = list(lost)
    tracker = start(run_dir, proxy.url, experiment)
    train(tracker, 1, 10)
    assert tracker.finish("FINISHED", timeout=60)
    assert proxy.lost_replies == []
    run = server.only_run(experiment)
    assert server.history(run.info.run_id) == in_file(run_dir)
    assert max(Counter(proxy.delivered).values()) == 1


def test_killed_between_sending_and_remembering(
    server: Any, proxy: Any, run_dir: Path, caplog: pytest.LogCaptureFixture
) -> None:
    proxy.lost_replies = ["runs/log-batch"] * 1000
    with subprocess.Popen(
        [sys.executable, "-c", TRAINER, str(run_dir), proxy.url, "killed"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == b"logged\n"
        proxy.wait_for(lambda seen: ("loss", 20) in seen.delivered)
        os.kill(child.pid, signal.SIGKILL)
    proxy.lost_replies = []
    with (run_dir / METRICS_FILE).open("ab") as stream:
        stream.write(b'{"step": 21, "time": 17')

    tracker = start(run_dir, proxy.url, "killed", params={"lr": 0.2}, resume_step=12)
    steps = [record.step for record, _ in read_records(run_dir / METRICS_FILE) if record is not None]
    assert steps == list(range(1, 13)), "what comes again, and the torn line, are gone"
    for step in range(13, 31):
        tracker.log(step, "train", {"loss": 1 / step})
    assert tracker.finish("KILLED", timeout=60)

    run = server.only_run("killed")
    assert run.info.status == "KILLED"
    assert server.history(run.info.run_id) == in_file(run_dir) == {("loss", s): [1 / s] for s in range(1, 31)}
    assert max(Counter(proxy.delivered).values()) == 1
    assert run.data.params == {"lr": "0.1"}
    assert run.data.tags["changed.lr"] == "0.1 -> 0.2"
    assert run.data.tags["attempts"] == "2"
    told = [record.message for record in caplog.records if "0.1 -> 0.2" in record.message]
    assert len(told) == 1
    assert "parameter lr differs" in told[0]
    assert sync(run_dir).metrics_sent == 0
    assert len([record for record in caplog.records if "0.1 -> 0.2" in record.message]) == 1, (
        "told once a change"
    )


def test_resume_continues_the_run_even_when_the_first_job_had_no_server(
    server: Any, proxy: Any, run_dir: Path
) -> None:
    proxy.down()
    first = start(run_dir, proxy.url, "late")
    train(first, 1, 10)
    assert not first.finish("KILLED", timeout=0.1)
    proxy.up()
    second = start(run_dir, proxy.url, "late", resume_step=10)
    train(second, 11, 20)
    proxy.wait_for(lambda seen: ("loss", 20) in seen.delivered)
    run = server.only_run("late")
    assert run.info.status == "RUNNING"
    assert second.finish("KILLED", timeout=60)
    third = start(run_dir, proxy.url, "late", resume_step=20)
    assert third.run_id == run.info.run_id, "known before the server is asked: the checkpoint wants it"
    train(third, 21, 22)
    proxy.wait_for(lambda seen: ("loss", 22) in seen.delivered)
    assert server.only_run("late").info.status == "RUNNING"
    assert third.finish("FINISHED", timeout=60)
    assert server.history(run.info.run_id) == in_file(run_dir)
    assert server.only_run("late").info.status == "FINISHED"


@pytest.mark.parametrize("remembered", [True, False])
def test_a_resumed_run_may_log_at_other_steps(
    server: Any, proxy: Any, run_dir: Path, remembered: bool
) -> None:
    experiment = f"other steps {remembered}"
    first = start(run_dir, proxy.url, experiment)
    for step in range(10, 41, 10):
        tracker_log(first, step)
    assert first.finish("KILLED", timeout=60)
    if not remembered:  # as if it was killed before it could note that the last records were sent
        path = spool.progress_path(run_dir)
        progress = json.loads(path.read_text())
        progress["steps"] = {"loss": 10}
        progress["offsets"][METRICS_FILE] = len((run_dir / METRICS_FILE).read_bytes().splitlines(True)[0])
        path.write_text(json.dumps(progress))
    second = start(run_dir, proxy.url, experiment, resume_step=10)
    for step in range(11, 31):
        tracker_log(second, step)
    assert second.finish("KILLED", timeout=60)
    proxy.lost_replies = ["runs/log-batch"] * 4
    third = start(run_dir, proxy.url, experiment, resume_step=22)
    for step in range(24, 61, 4):
        tracker_log(third, step)
    assert third.finish("FINISHED", timeout=60)

    run = server.only_run(experiment)
    logged = {10, *range(11, 31), 40, *range(24, 61, 4)}
    assert server.history(run.info.run_id) == {("loss", step): [1 / step] for step in logged}
    assert max(Counter(proxy.delivered).values()) == 1


def tracker_log(tracker: Tracker, step: int) -> None:
    tracker.log(step, "train", {"loss": 1 / step})


def test_what_the_server_lost_is_sent_again(server: Any, run_dir: Path) -> None:
    first = start(run_dir, server.uri, "gone")
    train(first, 1, 5)
    assert first.finish("FINISHED", timeout=60)
    assert first.run_id is not None
    server.client.delete_run(first.run_id)
    second = start(run_dir, server.uri, "gone", resume_step=5)
    train(second, 6, 7)
    assert second.finish("FINISHED", timeout=60)
    assert server.only_run("gone").info.run_id == first.run_id, "a deleted run is restored"

    (run_dir / "tracking" / "progress.json").unlink()
    assert sync(run_dir, tracking_uri=server.uri).metrics_sent == 0, "found again by its key"
    progress = json.loads((run_dir / "tracking" / "progress.json").read_text())
    progress["steps"]["loss"] = 100
    progress["run_id"] = "0" * 32
    (run_dir / "tracking" / "progress.json").write_text(json.dumps(progress))
    assert sync(run_dir, tracking_uri=server.uri).run_id == first.run_id
    assert server.history(first.run_id) == in_file(run_dir)


def test_long_and_odd_values(server: Any, run_dir: Path) -> None:
    long = {"text": "x" * 9000, "twin": "x" * 8999 + "y", "name with (odd) letters": 1}
    tracker = start(run_dir, server.uri, "odd", params=long, tags={"note": "t" * 9000})
    tracker.log(1, "train", {"loss": float("nan"), "f1@k": 1.0, "up": float("inf")})
    assert tracker.finish("FINISHED", timeout=60)
    run = server.only_run("odd")
    values = run.data.params
    assert len(values["text"]) == len(values["twin"]) == 500
    assert values["text"] != values["twin"]
    assert values["name with _odd_ letters"] == "1"
    assert len(run.data.tags["note"]) == 5000
    history = server.history(run.info.run_id)
    assert history.keys() == {("loss", 1), ("f1_k", 1), ("up", 1)}
    assert str(history["loss", 1]) == "[nan]"
    path = server.client.download_artifacts(run.info.run_id, "params.json")
    assert json.loads(Path(path).read_text())["text"] == long["text"]

    again = start(run_dir, server.uri, "odd", params=long, tags={}, resume_step=1)
    assert again.finish("FINISHED", timeout=60)
    assert not [tag for tag in server.only_run("odd").data.tags if tag.startswith("changed.")]


def test_many_metrics_and_params_fit_the_limits_of_a_request(server: Any, run_dir: Path) -> None:
    params = {f"p{number}": number for number in range(250)}
    tracker = start(run_dir, server.uri, "many", params=params)
    wide = {f"validation/history_gain_by_segment/{number}": number / 7 for number in range(1500)}
    tracker.log(1, "validation", wide)
    train(tracker, 2, 700)
    assert tracker.finish("FINISHED", timeout=60)
    run = server.only_run("many")
    assert len(run.data.params) == 250
    assert {name: value for name, value in run.data.metrics.items() if name in wide} == wide
    assert server.steps(run.info.run_id, "loss") == list(range(2, 701))


def test_a_fine_tune_is_a_child_and_a_missing_artifact_stops_nothing(
    server: Any, run_dir: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tracker = start(run_dir, server.uri, "child", parent_run_id="f" * 32)
    tracker.log(1, "train", {"loss": 1.0})
    tracker.artifact(run_dir / "pruned.bin")
    folder = run_dir / "checkpoints" / "step-1"
    folder.mkdir(parents=True)
    (folder / "weights").write_text("w")
    tracker.artifact(folder, "checkpoints")
    tracker.artifact(folder, "checkpoints")
    assert tracker.finish("FINISHED", timeout=60)
    run = server.only_run("child")
    assert run.data.tags["mlflow.parentRunId"] == "f" * 32
    paths = [entry.path for entry in server.client.list_artifacts(run.info.run_id, "checkpoints/step-1")]
    assert paths == ["checkpoints/step-1/weights"]
    assert any("pruned.bin" in record.message for record in caplog.records)


def test_sync_says_in_one_line_why_it_cannot(
    run_dir: Path, proxy: Any, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(UserError, match="no tracked run"):
        sync(run_dir)
    tracker = start(run_dir, "http://me:secret@127.0.0.1:1", "refused", upload=False)
    tracker.log(1, "train", {"loss": 1.0})
    assert tracker.finish("FINISHED", timeout=0)
    caplog.set_level(logging.DEBUG, "pretrain")
    with pytest.raises(UserError, match="not uploaded") as error:
        sync(run_dir, tracking_uri="http://me:secret@127.0.0.1:1", timeout=0.1)
    assert "\n" not in str(error.value)
    for text in (str(error.value), caplog.text, (run_dir / "tracking" / "run.json").read_text()):
        assert "secret" not in text
