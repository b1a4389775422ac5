"""Ranks are found under every launcher; contradictions are refused."""

from __future__ import annotations

import socket

import pytest

from pretrain.distributed import World, detect, start
from pretrain.errors import EXIT_RESTART, RendezvousError, UserError

TORCHRUN = {"RANK": "3", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "MASTER_ADDR": "n1", "MASTER_PORT": "2"}
SRUN = {
    "SLURM_PROCID": "5",
    "SLURM_NTASKS": "16",
    "SLURM_LOCALID": "1",
    "SLURM_JOB_ID": "120045",
    "SLURM_STEP_ID": "0",
    "SLURM_STEP_NODELIST": "alpha,beta",
}


def test_torchrun_deepspeed_and_plain_variables() -> None:
    assert detect(TORCHRUN) == World(rank=3, size=8, local_rank=1, address="n1", port=2)


def test_a_port_need_not_be_named() -> None:
    assert detect({name: value for name, value in TORCHRUN.items() if name != "MASTER_PORT"}).port == 29500


def test_srun_tasks_share_a_port_that_is_the_job_s_own() -> None:
    assert detect(SRUN) == World(rank=5, size=16, local_rank=1, address="alpha", port=20045)


def test_explicit_variables_win_over_slurm_s() -> None:
    assert detect({**SRUN, **TORCHRUN}).rank == 3


def test_a_job_step_s_batch_shell_is_a_single_process() -> None:
    """Inside `sbatch` without `srun` SLURM_PROCID is set too; only a step runs many tasks."""
    batch_shell = {name: value for name, value in SRUN.items() if name != "SLURM_STEP_ID"}
    assert (detect(batch_shell).rank, detect(batch_shell).size) == (0, 1)


def test_nothing_set_is_a_world_of_one() -> None:
    world = detect({})
    assert (world.rank, world.size, world.is_first) == (0, 1, True)


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({"RANK": "0"}, "WORLD_SIZE, LOCAL_RANK, MASTER_ADDR not set"),
        ({**TORCHRUN, "RANK": "x"}, "RANK='x' is not a number"),
        ({**SRUN, "MASTER_PORT": "x"}, "MASTER_PORT='x' is not a number"),
        ({**TORCHRUN, "RANK": "8"}, "rank 8 is outside a world of 8"),
    ],
)
def test_incomplete_or_contradictory_variables_are_refused(environment: dict[str, str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        detect(environment)


def test_a_port_that_another_program_has_is_no_mistake_of_the_user(monkeypatch: pytest.MonkeyPatch) -> None:
    """A job that ends with this code is started again, with another port."""
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.setenv(name, "")  # so that what `start` sets is taken back
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(RendezvousError, match=f"port {port} is taken by another program") as caught:
            start(World(0, 1, 0, "127.0.0.1", port), timeout_seconds=5)
    assert caught.value.exit_code == EXIT_RESTART
