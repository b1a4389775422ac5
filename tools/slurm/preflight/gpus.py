"""The GPUs of a node: as many as asked for, healthy by the driver's account, and able to multiply."""

from __future__ import annotations

import shutil
import subprocess
import time
from dataclasses import dataclass

BUSY_MEGABYTES = 2000
"""Memory in use before anything of ours has started."""
SIZE, REPEATS = 4096, 20

_QUERY = {
    "uuid": "",
    "driver_version": "",
    "memory.used": "",
    "ecc.errors.uncorrected.volatile.total": "uncorrected memory errors",
    "retired_pages.pending": "memory pages wait for retirement",
    "remapped_rows.failure": "memory rows could not be remapped",
    "remapped_rows.pending": "memory rows wait for remapping",
    "clocks_throttle_reasons.hw_slowdown": "the hardware slows it down",
}
_WELL = {"", "0", "no", "not active", "n/a", "[n/a]", "[not supported]", "not supported"}


@dataclass(frozen=True)
class Cards:
    """All GPUs of a node."""

    problems: tuple[str, ...] = ()
    tflops: tuple[float, ...] = ()
    """bf16 matrix products, of each GPU that this process sees."""
    driver: str = ""


def examine(expected: int) -> Cards:
    """Look at the node's GPUs; nothing is looked at where none is expected."""
    if not expected:
        return Cards()
    problems, driver = by_driver(expected)
    if problems:
        return Cards(tuple(problems), driver=driver)
    import torch

    if not torch.cuda.is_available():
        return Cards(("torch sees no GPU: check the driver and torch's build",), driver=driver)
    tflops: list[float] = []
    for number in range(torch.cuda.device_count()):
        try:
            tflops.append(multiply(number))
        except RuntimeError as error:
            problems.append(f"GPU {number}: {str(error).splitlines()[0]}")
    return Cards(tuple(problems), tuple(tflops), driver)


def by_driver(expected: int) -> tuple[list[str], str]:
    """What nvidia-smi reports: problems, and the driver's version."""
    if shutil.which("nvidia-smi") is None:
        return [], ""
    query = [f"--query-gpu={','.join(_QUERY)}", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(["nvidia-smi", *query], capture_output=True, text=True, timeout=60)
    except subprocess.TimeoutExpired:
        return ["nvidia-smi does not answer: restart the node"], ""
    if done.returncode:
        said = " ".join(done.stdout.split() + done.stderr.split())
        return [f"nvidia-smi fails: {said or f'exit {done.returncode}'}"], ""
    rows = [[cell.strip() for cell in line.split(",")] for line in done.stdout.splitlines() if line.strip()]
    problems = [f"GPU {number}: {problem}" for number, row in enumerate(rows) for problem in _of_one(row)]
    if len(rows) < expected:
        problems.append(f"{len(rows)} GPUs instead of {expected}")
    return problems, rows[0][1] if rows else ""


def multiply(number: int) -> float:
    """TFLOP/s of bf16 matrix products on one GPU.

    Raises:
        RuntimeError: CUDA fails, or the product is wrong.
    """
    import torch

    device = torch.device("cuda", number)
    ones = torch.ones(SIZE, SIZE, dtype=torch.bfloat16, device=device)
    product = ones @ ones
    torch.cuda.synchronize(device)
    began = time.perf_counter()
    for _ in range(REPEATS):
        product = ones @ ones
    torch.cuda.synchronize(device)
    seconds = time.perf_counter() - began
    if not bool((product == SIZE).all()):
        raise RuntimeError("a matrix product is wrong")
    return round(REPEATS * 2 * SIZE**3 / seconds / 1e12, 1)


def _of_one(row: list[str]) -> list[str]:
    values = dict(zip(_QUERY, row, strict=False))
    problems = [
        f"{problem} ({name}: {values[name]})"
        for name, problem in _QUERY.items()
        if problem and values.get(name, "").lower() not in _WELL
    ]
    used = values.get("memory.used", "")
    if used.isdigit() and int(used) > BUSY_MEGABYTES:
        problems.append(f"{used} MB are in use by something else")
    return problems
