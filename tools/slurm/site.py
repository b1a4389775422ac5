"""The site file as `membart slurm submit` sees it: options of sbatch that a cluster wants."""

from __future__ import annotations

import os
import subprocess
from dataclasses import dataclass
from pathlib import Path

from pretrain.errors import UserError

SCRIPTS = Path(__file__).resolve().parents[2] / "slurm"
"""The job scripts, beside the packages."""

_OPTIONS = {
    "SITE_PARTITION": "--partition",
    "SITE_ACCOUNT": "--account",
    "SITE_QOS": "--qos",
    "SITE_CONSTRAINT": "--constraint",
    "SITE_RESERVATION": "--reservation",
}
_OTHERS = ("SITE_EXCLUDE", "SITE_GPU_TYPE", "SITE_MAIL", "SITE_LEAD_SECONDS")
DEFAULT_LEAD_SECONDS = 300


@dataclass(frozen=True)
class Site:
    """Settings of one cluster."""

    file: Path | None = None
    values: tuple[tuple[str, str], ...] = ()
    extra: tuple[str, ...] = ()

    def value(self, name: str) -> str:
        """A setting; empty where the site has none."""
        return dict(self.values).get(name, "")

    @property
    def lead_seconds(self) -> int:
        """Warning before the time limit, while no save has been measured."""
        value = self.value("SITE_LEAD_SECONDS") or str(DEFAULT_LEAD_SECONDS)
        if not value.isdigit():
            raise UserError(
                f"SITE_LEAD_SECONDS='{value}' is no number of seconds", where=str(self.file), mend="mend it"
            )
        return int(value)

    def options(self, partition: str | None = None) -> list[str]:
        """Words for sbatch; `partition` takes the place of the site's."""
        values = dict(self.values) | ({"SITE_PARTITION": partition} if partition else {})
        words = [f"{option}={values[name]}" for name, option in _OPTIONS.items() if values.get(name)]
        if mail := self.value("SITE_MAIL"):
            words += [f"--mail-user={mail}", "--mail-type=END,FAIL,REQUEUE,INVALID_DEPEND"]
        return [*words, *self.extra]


def read(file: Path | None) -> Site:
    """The site file named, else that of MEMBART_SITE, else slurm/site.env, else no settings at all.

    Raises:
        UserError: it is not there, or bash cannot source it.
    """
    if file is None and (named := os.environ.get("MEMBART_SITE")):
        file = Path(named).resolve()
    elif file is None and (SCRIPTS / "site.env").is_file():
        file = SCRIPTS / "site.env"
    if file is None:
        return Site()
    if not file.is_file():
        raise UserError(
            "no such site file", where=str(file), mend="copy slurm/site.example.env there and fill it in"
        )
    names = [*_OPTIONS, *_OTHERS]
    script = (
        'source "$1" >&2; shift; for name; do printf "%s\\0" "${!name:-}"; done; '
        'if [[ -v SITE_SBATCH ]] && ((${#SITE_SBATCH[@]})); then printf "%s\\0" "${SITE_SBATCH[@]}"; fi'
    )
    done = subprocess.run(
        ["bash", "-eu", "-c", script, "bash", str(file), *names], capture_output=True, text=True
    )
    if done.returncode:
        raise UserError(
            f"cannot be sourced: {done.stderr.strip()}", where=str(file), mend="see slurm/site.example.env"
        )
    found = done.stdout.split("\0")[:-1]
    values = zip(names, found[: len(names)], strict=True)
    return Site(file, tuple((name, value) for name, value in values if value), tuple(found[len(names) :]))
