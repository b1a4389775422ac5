"""What the job scripts' shell does by itself, without Slurm; tests/slurm has the rest."""

from __future__ import annotations

import socket
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).parents[3] / "slurm"


def shell(words: str) -> str:
    """What a line of bash prints that knows `lib.sh`."""
    done = subprocess.run(
        ["bash", "-euc", f'source "$0"; {words}', str(SCRIPTS / "lib.sh")],
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.strip()


@contextmanager
def listening(*places: tuple[socket.AddressFamily, str, int]) -> Iterator[list[int]]:
    """Other programs on this host; gives their ports, of which 0 lets the kernel choose."""
    with ExitStack() as stack:
        ports = []
        for family, host, port in places:
            other = stack.enter_context(socket.socket(family))
            other.bind((host, port))
            other.listen()
            ports.append(other.getsockname()[1])
        yield ports


def test_a_job_takes_a_port_that_no_other_program_of_its_node_has() -> None:
    """Neither for its ranks nor, above, for their preflight."""
    with listening((socket.AF_INET, "127.0.0.1", 0), (socket.AF_INET6, "::1", 0)) as (first, above):
        ports = f"FIRST_PORT={first} PORTS=3"
        assert shell(f"{ports}; free_port 0") == str(first + 1)
        assert shell(f"FIRST_PORT={above - 3} PORTS=3; free_port 0") == str(above - 2)
    assert shell(f"{ports}; free_port 0") == str(first)


def test_ports_of_jobs_lie_below_those_that_the_kernel_gives_away() -> None:
    assert shell("free_port 0; free_port 5999; free_port 6000").split()[:2] == ["20000", "25999"]


def test_a_job_starts_so_many_times_from_the_same_checkpoint_or_from_none(tmp_path: Path) -> None:
    """Every start is counted; a new checkpoint, or another job, begins anew."""
    settings = f"RUN={tmp_path}/run JOBS={tmp_path} JOB=7 RESTART=0 SITE_MAX_FRUITLESS=2"
    start = "(refuse_fruitless_starts; echo started)"
    save = f"mkdir -p {tmp_path}/run/checkpoints/step-1; touch {tmp_path}/run/checkpoints/step-1/COMMIT.json"
    refused = "error: 2 restarts in a row came to no new checkpoint"

    said = shell(f"{settings}; {start}; {start}; {start} || {save}; {start}; JOB=8; {start}").splitlines()
    assert [line for line in said if refused not in line] == ["started"] * 4
    assert refused in said[2]


def test_a_program_that_does_not_train_is_not_started_again_when_it_dies(tmp_path: Path) -> None:
    """Its starts are not counted, and an evaluation that the kernel kills for memory would die for ever."""
    place = tmp_path / "run" / "checkpoints" / "step-1"
    place.mkdir(parents=True)
    (place / "COMMIT.json").touch()
    settings = f"RUN={tmp_path}/run JOBS={tmp_path} JOB=7 RESTART=0 NODES=()"
    assert shell(f"{settings}; for code in 4 137; do (conclude $code) || echo $?; done") == "4\n137"


@pytest.mark.parametrize(
    "words",
    [
        ["knowledge"],
        ["knowledge", "/k", "--data", "a:b"],
        ["knowledge", "/k", "wiki.tsv"],
        ["knowledge", "/k", "wiki.tsv", "--index", "/i", "--data", "a:b"],
        ["knowledge", "/k", "wiki.tsv", "--data"],
        ["knowledge", "/k", "wiki.tsv", "--date", "a:b"],
        ["report"],
        ["report", "--out", "page.html"],
        ["pretrain", "/run"],
        ["finetune", "/run"],
        ["evaluate"],
        ["export", "/run"],
        ["mlflow"],
    ],
)
def test_a_script_without_its_words_says_how_it_is_used(words: list[str]) -> None:
    done = subprocess.run(
        ["bash", str(SCRIPTS / f"{words[0]}.sbatch"), *words[1:]],
        capture_output=True,
        text=True,
        env={"PATH": "/usr/bin:/bin", "MEMBART_HOME": str(SCRIPTS.parent)},
    )
    assert done.returncode == 2
    assert done.stderr.startswith(f"usage: {words[0]}.sbatch "), done.stderr
