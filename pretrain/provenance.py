"""Where a run came from: versions, git state, job."""

from __future__ import annotations

import os
import platform
import subprocess
from importlib import metadata
from pathlib import Path

import pretrain

PACKAGES = ("torch", "deepspeed", "transformers", "mlflow", "numpy")


def versions() -> dict[str, str]:
    """Version of this program, of Python and of the packages that decide results."""
    found = {"membart": pretrain.__version__, "python": platform.python_version()}
    return found | {name: metadata.version(name) for name in PACKAGES}


def git_state() -> dict[str, str | bool]:
    """Commit of the source tree, and whether it has uncommitted changes; empty outside a checkout."""
    root = Path(__file__).resolve().parent.parent
    try:
        commit = _git(root, "rev-parse", "HEAD")
        return {"commit": commit, "dirty": bool(_git(root, "status", "--porcelain", "--untracked-files=no"))}
    except (OSError, subprocess.CalledProcessError):
        return {}


def tags() -> dict[str, str]:
    """What identifies this process for a tracker: commit and cluster job."""
    state = git_state()
    found = {"git_commit": str(state["commit"]), "git_dirty": str(state["dirty"])} if state else {}
    for tag, variable in (("slurm_job_id", "SLURM_JOB_ID"), ("slurm_restart", "SLURM_RESTART_COUNT")):
        if variable in os.environ:
            found[tag] = os.environ[variable]
    return found


def _git(root: Path, *words: str) -> str:
    done = subprocess.run(
        ["git", "-C", str(root), *words], capture_output=True, text=True, check=True, timeout=10
    )
    return done.stdout.strip()
