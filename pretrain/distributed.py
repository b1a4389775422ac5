"""Ranks: who we are, whoever launched us, and the few collectives that training needs."""

from __future__ import annotations

import os
import re
import socket
import subprocess
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist
from torch.distributed import distributed_c10d

from pretrain.errors import RendezvousError, UserError

Result = TypeVar("Result")


@dataclass(frozen=True)
class World:
    """This process among its peers."""

    rank: int
    size: int
    local_rank: int
    address: str
    port: int

    @property
    def is_first(self) -> bool:
        return self.rank == 0

    @property
    def device(self) -> torch.device:
        if torch.cuda.is_available():
            return torch.device("cuda", self.local_rank % torch.cuda.device_count())
        return torch.device("cpu")

    @property
    def backend(self) -> str:
        return "nccl" if self.device.type == "cuda" else "gloo"


def detect(environ: Mapping[str, str] = os.environ) -> World:
    """Ranks from torchrun/deepspeed (`RANK`, ...), else from srun (`SLURM_*`), else a single process.

    Raises:
        UserError: an incomplete or contradictory set of variables.
    """
    if "RANK" in environ or "WORLD_SIZE" in environ:
        names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR")
        missing = [name for name in names if name not in environ]
        if missing:
            raise UserError(
                f"{', '.join(missing)} not set beside {' '.join(n for n in names if n in environ)}",
                where="environment",
                mend=f"set all of {' '.join(names)}, or use torchrun, deepspeed or srun",
            )
        numbers = {name: _number(environ, name) for name in names if name != "MASTER_ADDR"}
        world = World(
            numbers["RANK"],
            numbers["WORLD_SIZE"],
            numbers["LOCAL_RANK"],
            environ["MASTER_ADDR"],
            _number(environ, "MASTER_PORT") if "MASTER_PORT" in environ else 29500,
        )
    elif "SLURM_PROCID" in environ and "SLURM_STEP_ID" in environ:
        job = _number(environ, "SLURM_JOB_ID")
        world = World(
            rank=_number(environ, "SLURM_PROCID"),
            size=_number(environ, "SLURM_NTASKS"),
            local_rank=_number(environ, "SLURM_LOCALID"),
            address=environ.get("MASTER_ADDR")
            or _first_host(environ.get("SLURM_STEP_NODELIST", "localhost")),
            port=_number(environ, "MASTER_PORT") if "MASTER_PORT" in environ else 20000 + job % 10000,
        )
    else:
        world = World(rank=0, size=1, local_rank=0, address="127.0.0.1", port=_free_port())
    if not 0 <= world.rank < world.size:
        raise UserError(f"rank {world.rank} is outside a world of {world.size}", where="environment")
    return world


def start(world: World, timeout_seconds: int) -> None:
    """Join the process group; every rank calls it once, before any model is built.

    Raises:
        RendezvousError: some rank did not come in time, or another program has the port.
    """
    os.environ.update(
        RANK=str(world.rank),
        WORLD_SIZE=str(world.size),
        LOCAL_RANK=str(world.local_rank),
        MASTER_ADDR=world.address,
        MASTER_PORT=str(world.port),
    )
    if world.device.type == "cuda":
        torch.cuda.set_device(world.device)
    limit = timedelta(seconds=timeout_seconds)
    try:
        dist.init_process_group(world.backend, rank=world.rank, world_size=world.size, timeout=limit)
    except (RuntimeError, ValueError) as error:
        place = f"{world.address}:{world.port}"
        if "EADDRINUSE" in str(error) or "already in use" in str(error):
            raise RendezvousError(
                f"port {world.port} is taken by another program",
                where=place,
                mend="start again with another MASTER_PORT",
            ) from None
        raise RendezvousError(
            f"the {world.size} ranks did not find one another: {reason(error)}",
            where=place,
            mend="see whether every rank was started, and whether its node reaches that address",
        ) from None


def limit_collectives(seconds: int) -> None:
    """Give every process group that exists now this timeout; libraries make theirs with torch's defaults."""
    for group in distributed_c10d._world.pg_map:
        distributed_c10d._set_pg_timeout(timedelta(seconds=seconds), group)


def is_broken_collective(error: Exception) -> bool:
    """Whether an exception says that a peer or the network failed, not this process."""
    if isinstance(error, dist.DistError):
        return True
    words = ("gloo", "Connection closed by peer", "Connection reset by peer", "NCCL")
    return isinstance(error, RuntimeError) and any(word in str(error) for word in words)


def stop() -> None:
    if dist.is_initialized():
        dist.destroy_process_group()


def total(values: torch.Tensor) -> torch.Tensor:
    """Sum of `values` over all ranks (in place)."""
    dist.all_reduce(values, op=dist.ReduceOp.SUM)
    return values


def any_rank(flag: bool, device: torch.device) -> bool:
    """True on every rank when `flag` is true on at least one."""
    return bool(largest(int(flag), device))


def largest(value: int, device: torch.device) -> int:
    """The largest `value` of all ranks, on every rank."""
    box = torch.tensor([value], device=device)
    dist.all_reduce(box, op=dist.ReduceOp.MAX)
    return int(box.item())


def gather(value: Any) -> list[Any]:
    """Every rank's small picklable `value`, in rank order, on every rank."""
    values: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(values, value)
    return values


def broadcast(value: Any) -> Any:
    """Rank 0's small picklable `value`, on every rank."""
    box = [value]
    dist.broadcast_object_list(box, src=0)
    return box[0]


def on_first(action: Callable[[], Result]) -> Result:
    """What `action` returns on rank 0, where alone it runs, on every rank; small and picklable.

    Raises:
        UserError: on every rank, when it is raised on rank 0.
    """
    result: Any = None
    error: tuple[type[UserError], str, str, str] | None = None
    if dist.get_rank() == 0:
        try:
            result = action()
        except UserError as found:
            error = type(found), found.what, found.where, found.mend
    result, error = broadcast((result, error))
    if error is not None:
        kind, what, where, mend = error
        raise kind(what, where=where, mend=mend)
    return cast(Result, result)


def reason(error: Exception) -> str:
    """What torch says of a broken group, in one line without its own source files and advice."""
    first = str(error).strip().split("\n")[0]
    return re.sub(r"^\[\S+\] ", "", first).split(". ")[0].removesuffix(".")[:200]


def _number(environ: Mapping[str, str], name: str) -> int:
    try:
        return int(environ[name])
    except (KeyError, ValueError):
        found = environ.get(name, "")
        raise UserError(
            f"{name}='{found}' is not a number", where="environment", mend="check the launcher"
        ) from None


def _first_host(nodelist: str) -> str:
    """First host of a Slurm node list; `scontrol` knows every bracket form."""
    if "[" not in nodelist:
        return nodelist.split(",")[0]
    try:
        names = subprocess.run(
            ["scontrol", "show", "hostnames", nodelist], capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError) as error:
        raise UserError(
            f"cannot expand node list {nodelist}: {error}",
            where="environment",
            mend="set MASTER_ADDR in the job script",
        ) from None
    return names.stdout.split()[0]


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
