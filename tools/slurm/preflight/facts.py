"""What one node finds out about itself."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from pretrain import provenance
from pretrain.errors import UserError
from tools.slurm.preflight import gpus, inputs
from tools.slurm.site import DEFAULT_LEAD_SECONDS

FEWEST_INODES = 10_000
GB = 10**9


@dataclass(frozen=True)
class Limits:
    """What a site asks of its nodes: SITE_* of slurm/site.example.env."""

    free_gb: float = 50
    tmp_gb: float = 1
    clock_skew: float = 30
    slow_share: float = 0.5
    gb_per_second: float = 0
    lead_seconds: float = DEFAULT_LEAD_SECONDS

    @classmethod
    def read(cls, environ: Mapping[str, str] = os.environ) -> Limits:
        """From the environment; what is unset or empty keeps its default.

        Raises:
            UserError: not a number.
        """
        names = {
            "free_gb": "SITE_MIN_FREE_GB",
            "tmp_gb": "SITE_MIN_TMP_GB",
            "clock_skew": "SITE_MAX_CLOCK_SKEW",
            "slow_share": "SITE_SLOW_SHARE",
            "gb_per_second": "SITE_MIN_GB_PER_SECOND",
            "lead_seconds": "SITE_LEAD_SECONDS",
        }
        values = {}
        for key, name in names.items():
            if environ.get(name):
                try:
                    values[key] = float(environ[name])
                except ValueError:
                    raise UserError(f"{name}={environ[name]} is not a number", where="site file") from None
        return cls(**values)


@dataclass(frozen=True)
class Facts:
    """One node, as it can be sent to the others."""

    node: str
    problems: tuple[str, ...] = ()
    """What is wrong with the node whatever the others say."""
    versions: dict[str, str] = field(default_factory=dict)
    inputs: dict[str, str] = field(default_factory=dict)
    """Fingerprint of each path that the program reads."""
    gpu_tflops: tuple[float, ...] = ()

    def to_json(self) -> str:
        """As `from_json` reads it."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str | bytes) -> Facts:
        """What another node's `to_json` wrote."""
        content = json.loads(text)
        for name in ("problems", "gpu_tflops"):
            content[name] = tuple(content[name])
        return cls(**content)


def look(node: str, folder: Path, run: Path, program: Sequence[str], limits: Limits) -> Facts:
    """Examine this node; whatever fails becomes a problem, not an error."""
    problems = [*clock(folder, node, limits), *disks(run, limits)]
    cards = gpus.examine(expected=int(os.environ.get("SLURM_GPUS_ON_NODE", 0)))
    found, unreadable = inputs.fingerprints(program)
    versions = provenance.versions()
    commit = provenance.git_state().get("commit")
    if commit:
        versions["commit"] = str(commit)
    if cards.driver:
        versions["driver"] = cards.driver
    return Facts(node, (*problems, *cards.problems, *unreadable), versions, found, cards.tflops)


def clock(folder: Path, node: str, limits: Limits) -> list[str]:
    """This node's clock against that of the file server, which dates files."""
    probe = folder / f"{node}.clock"
    try:
        probe.write_text("")
        skew = time.time() - probe.stat().st_mtime
        probe.unlink()
    except OSError as error:
        return [f"{folder} cannot be written: {error.strerror}"]
    if abs(skew) > limits.clock_skew:
        return [f"the clock is {abs(skew):.0f} s {'fast' if skew > 0 else 'slow'}: check chrony or ntpd"]
    return []


def disks(run: Path, limits: Limits) -> list[str]:
    """Room for two more checkpoints and for temporary files."""
    place = next(parent for parent in (run, *run.parents) if parent.exists())
    needed = max(limits.free_gb * GB, 2 * last_checkpoint_bytes(run))
    return [
        *_room(place, needed, "remove old checkpoints or lower SITE_MIN_FREE_GB"),
        *_room(Path(tempfile.gettempdir()), limits.tmp_gb * GB, "clean it or set TMPDIR"),
    ]


def last_checkpoint_bytes(run: Path) -> int:
    """Size of a run's newest checkpoint; 0 before its first."""
    saved = sorted((run / "checkpoints").glob("step-*"))
    return sum(file.stat().st_size for file in saved[-1].iterdir()) if saved else 0


def _room(place: Path, needed: float, mend: str) -> list[str]:
    try:
        free, inodes = shutil.disk_usage(place).free, os.statvfs(place)
    except OSError as error:
        return [f"{place}: {error.strerror}"]
    if free < needed:
        return [f"{place} has {free / GB:.1f} GB free, {needed / GB:.1f} GB are needed: {mend}"]
    # File systems without a fixed number of inodes report none at all.
    if inodes.f_files and inodes.f_favail < FEWEST_INODES:
        return [f"{place} has {inodes.f_favail} inodes left: {mend}"]
    return [] if os.access(place, os.W_OK) else [f"{place} cannot be written"]
