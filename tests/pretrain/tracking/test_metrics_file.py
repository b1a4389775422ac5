"""`metrics.jsonl` holds whole records in order, whatever happened while it was written."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest

from pretrain.tracking.metrics_file import MetricsFile, Record, keep_until, read_records
from pretrain.tracking.spool import flatten, queue_artifact, queued_artifacts

DISK_FULL = """
import os, resource, sys
from pathlib import Path
from pretrain.tracking.metrics_file import MetricsFile

path = Path(sys.argv[1])
file = MetricsFile(path)
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, resource.RLIM_INFINITY))
for step in range(1, 51):
    file.append(step, "train", {"loss": step / 7})
assert 900 < path.stat().st_size <= 1000
assert path.read_bytes().endswith(b"\\n"), "half a record stays on a full disk"
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
file.append(51, "train", {"loss": 51 / 7})
file.close()
"""


def written(path: Path, steps: range) -> MetricsFile:
    file = MetricsFile(path)
    for step in steps:
        file.append(step, "train", {"loss": 1 / step})
        if step % 3 == 0:
            file.append(step, "validation", {"validation/loss": 2 / step})
    return file


def records(path: Path) -> list[Record]:
    found = [record for record, _ in read_records(path)]
    assert None not in found
    return [record for record in found if record is not None]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "metrics.jsonl"


def test_a_record_reads_as_it_was_written(path: Path) -> None:
    file = MetricsFile(path)
    values = {"loss": 0.1, "gate_mean": math.nan, "gradient_norm": math.inf, "down": -math.inf, "count": 3}
    file.append(7, "train", values)
    (record,) = records(path)
    assert (record.step, record.kind) == (7, "train")
    assert math.isnan(record.metrics["gate_mean"])
    assert {n: v for n, v in record.metrics.items() if n != "gate_mean"} == {
        n: v for n, v in values.items() if n != "gate_mean"
    }
    line = json.loads(path.read_text(), parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    assert line["gradient_norm"] == "Infinity"
    assert record.time == round(record.time, 3)


@pytest.mark.parametrize(
    "tail", [b"", b'{"step": 10, "lo', b"\x00" * 40, b'{"step": 10}\n', b"\n\n", b"[1]\n"]
)
def test_the_end_is_mended(path: Path, tail: bytes) -> None:
    written(path, range(1, 10)).close()
    whole = path.read_bytes()
    path.write_bytes(whole + tail)
    assert keep_until(path, None) == len(whole)
    assert path.read_bytes() == whole


def test_a_crash_at_any_byte_costs_the_torn_record_only(path: Path) -> None:
    written(path, range(1, 4)).close()
    whole = path.read_bytes()
    ends = [number + 1 for number, byte in enumerate(whole) if byte == ord("\n")]
    for size in range(len(whole) + 1):
        path.write_bytes(whole[:size])
        keep_until(path, None)
        lines = sum(end <= size + 1 for end in ends)  # a record that lacks only its newline is whole
        assert path.read_bytes() == whole[: ends[lines - 1] if lines else 0]
        file = MetricsFile(path)
        file.append(9, "train", {"loss": 9.0})
        file.close()
        assert [record.step for record in records(path)][-1] == 9


def test_records_after_the_step_are_dropped_and_come_again(path: Path) -> None:
    written(path, range(1, 13)).close()
    whole = path.read_bytes()
    for step in (12, 9, 5, 0):
        path.write_bytes(whole)
        kept = keep_until(path, step)
        assert kept == path.stat().st_size
        assert whole.startswith(path.read_bytes())
        assert [r.step for r in records(path) if r.kind == "train"] == list(range(1, step + 1))
        written(path, range(step + 1, 13)).close()
        assert [(r.step, r.metrics) for r in records(path)] == [
            (int(line["step"]), {n: v for n, v in line.items() if "loss" in n})
            for line in map(json.loads, whole.splitlines())
        ]
    assert keep_until(path.with_name("none"), 3) == 0
    assert not path.with_name("none").exists()


def test_a_metric_has_one_value_a_step(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    file = written(path, range(1, 4))
    file.append(3, "validation", {"validation/loss": 99.0, "validation/perplexity": 5.0})
    file.append(2, "train", {"loss": 99.0})
    file.close()
    file = MetricsFile(path)
    file.append(3, "train", {"loss": 99.0})
    file.append(4, "train", {"loss": 0.25})
    file.close()
    assert all(99.0 not in record.metrics.values() for record in records(path))
    assert records(path)[-2].metrics == {"validation/perplexity": 5.0}
    assert records(path)[-1].metrics == {"loss": 0.25}
    assert len(caplog.records) == 3, "each kind of mistake is told once a file"


def test_a_metric_cannot_take_the_place_of_a_field(path: Path) -> None:
    file = MetricsFile(path)
    with pytest.raises(ValueError, match="no metric can be called time"):
        file.append(1, "train", {"loss": 1.0, "time": 3.0})
    file.append(1, "train", {"loss": 1.0})
    assert [record.metrics for record in records(path)] == [{"loss": 1.0}]


def test_a_full_disk_costs_no_record(path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", DISK_FULL, str(path)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert [record.step for record in records(path)] == list(range(1, 52))
    assert done.stderr.count("\n") == 2, "said when it begins and when it ends"


def test_a_reader_leaves_the_line_being_written(path: Path) -> None:
    written(path, range(1, 3)).close()
    size = path.stat().st_size
    path.write_bytes(path.read_bytes() + b'{"step": 3, "time": 1.0, "kind": "train", "loss": 0.')
    assert [after for _, after in read_records(path)][-1] == size
    with path.open("ab") as stream:
        stream.write(b"5}\nrubbish\n")
    later = list(read_records(path, start=size))
    assert [None if record is None else record.metrics for record, _ in later] == [{"loss": 0.5}, None]
    assert later[-1][1] == path.stat().st_size


def test_the_artifact_queue_moves_with_the_run_folder(tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    run_dir.mkdir()
    queue_artifact(run_dir, run_dir / "plots" / "loss.png", "plots")
    queue_artifact(run_dir, tmp_path / "outside", "")
    with (run_dir / "tracking" / "artifacts.jsonl").open("ab") as stream:
        stream.write(b'{"path": "to')
    queue_artifact(run_dir, run_dir / "b", "")
    moved = run_dir.rename(tmp_path / "moved")
    assert [(path, folder) for path, folder, _ in queued_artifacts(moved, 0)] == [
        (moved / "plots" / "loss.png", "plots"),
        (tmp_path / "outside", ""),
        (None, ""),
        (moved / "b", ""),
    ]


def test_settings_are_flattened() -> None:
    assert flatten({"a": {"b": 1, "c": {"d": [1, 2]}}, "e": "text", "f": {}, "g": None}) == {
        "a.b": "1",
        "a.c.d": "[1, 2]",
        "e": "text",
        "f": "{}",
        "g": "null",
    }
