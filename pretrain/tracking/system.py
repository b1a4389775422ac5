"""How busy this node is: processor, memory, disk and GPUs, sampled beside the training.

One sampler a node, each with a file of its own in the run folder (`system-NODE.jsonl`); rank 0's uploader
sends them all. Names are those of MLflow's "System metrics" page, with the node in between.
"""

from __future__ import annotations

import logging
import re
import shutil
import socket
import subprocess
import threading
from pathlib import Path

import psutil

from pretrain.tracking.metrics_file import MetricsFile, keep_until

_GPU_QUERY = {
    "utilization.gpu": "utilization_percentage",
    "memory.used": "memory_usage_megabytes",
    "memory.total": "memory_total_megabytes",
    "power.draw": "power_usage_watts",
}
_MEBIBYTE_IN_MEGABYTES = 1.048576

logger = logging.getLogger(__name__)


def node_name() -> str:
    """This machine's short name, as it appears in metric and file names."""
    return re.sub(r"[^\w-]", "_", socket.gethostname().split(".")[0]) or "node"


class NodeSampler:
    """Writes one sample of this node at once and then one every `interval` seconds.

    A sample's step is its number, going on where an earlier attempt on this node ended.
    """

    def __init__(self, run_dir: Path, *, interval: float = 30.0, node: str | None = None) -> None:
        self.node = node or node_name()
        path = run_dir / f"system-{self.node}.jsonl"
        keep_until(path, None)
        self._file = MetricsFile(path)
        self._run_dir = run_dir
        self._interval = interval
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="node-sampler", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Stop sampling; an answer of the GPU tool that is still awaited is not waited for."""
        self._stop.set()
        self._thread.join(timeout=2.0)

    def _run(self) -> None:
        psutil.cpu_percent()  # the first call only sets the mark that the next one measures from
        pause = min(1.0, self._interval)
        while not self._stop.wait(pause):
            pause = self._interval
            try:
                sample = sample_node(self._run_dir)
            except (psutil.Error, OSError) as error:
                logger.warning("this node is no longer sampled: %s", error)
                break
            named = {f"system/{self.node}/{name}": value for name, value in sample.items()}
            self._file.append(self._file.last_step + 1, "system", named)
        self._file.close()


def sample_node(run_dir: Path) -> dict[str, float]:
    """One look at this node; the disk is the one the run folder lies on."""
    memory, disk = psutil.virtual_memory(), shutil.disk_usage(run_dir)
    return {
        "cpu_utilization_percentage": psutil.cpu_percent(),
        "system_memory_usage_megabytes": memory.used / 1e6,
        "system_memory_usage_percentage": memory.percent,
        "disk_available_megabytes": disk.free / 1e6,
        **sample_gpus(),
    }


def sample_gpus() -> dict[str, float]:
    """What `nvidia-smi` says of each GPU; nothing where there is none."""
    if shutil.which("nvidia-smi") is None:
        return {}
    command = ["nvidia-smi", f"--query-gpu={','.join(_GPU_QUERY)}", "--format=csv,noheader,nounits"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout
    except (subprocess.SubprocessError, OSError) as error:
        logger.debug("nvidia-smi: %s", error)
        return {}
    return parse_gpus(answer)


def parse_gpus(answer: str) -> dict[str, float]:
    """Read `nvidia-smi`'s CSV: one GPU a line, a field such as `[N/A]` where it has no figure."""
    sample: dict[str, float] = {}
    for number, line in enumerate(answer.strip().splitlines()):
        for name, field in zip(_GPU_QUERY.values(), line.split(","), strict=False):
            try:
                value = float(field)
            except ValueError:
                continue
            sample[f"gpu_{number}_{name}"] = value * (_MEBIBYTE_IN_MEGABYTES if "megabytes" in name else 1.0)
    return sample
