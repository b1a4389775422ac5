"""`membart bench attention` and `membart bench loss`: forms of the two heavy parts, side by side in one run.

Forms take turns round by round, so that whatever else the machine does hits all of them alike; times are
medians, ratios are medians of the ratios within a round. On a CPU shared with others, trust the CPU time.
"""

from __future__ import annotations

import ctypes
import gc
import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

if TYPE_CHECKING:
    import torch

Device = Annotated[str, typer.Option(help="cpu or cuda.")]
Precision = Annotated[
    Literal["float32", "bfloat16", "float16"], typer.Option(help="Of weights and activations.")
]
Rounds = Annotated[int, typer.Option(min=1, help="Every form runs so many times.")]
Seed = Annotated[int, typer.Option(help="Of weights and inputs.")]
Json = Annotated[bool, typer.Option("--json", help="Machine-readable.")]


@dataclass(frozen=True)
class Form:
    """One way to compute the same thing, forward and backward."""

    name: str
    seconds: float
    """Wall time, median."""
    ratio: float
    """Wall time against the first form, median over rounds."""
    cpu_ratio: float
    """CPU time of all threads against the first form, likewise."""
    megabytes: float | None
    """Largest memory above the start, None where the machine does not tell."""


def attention(
    batch: Annotated[int, typer.Option(min=1, help="Rows.")] = 4,
    length: Annotated[int, typer.Option(min=1, help="Tokens of a row.")] = 512,
    slots: Annotated[int, typer.Option(min=1, help="Memory slots.")] = 64,
    width: Annotated[
        int, typer.Option(min=1, help="Model width; 64 to a head, feed-forward 4 times as wide.")
    ] = 768,
    device: Device = "cpu",
    dtype: Precision = "float32",
    rounds: Rounds = 9,
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """One encoder layer, forward and backward: memory attention as one masked call, or split."""
    import torch

    from pretrain.model import MemBartConfig
    from pretrain.model.attention import build_masks
    from pretrain.model.layers import MemBartEncoderLayer

    kind = getattr(torch, dtype)
    config = MemBartConfig(
        d_model=width,
        encoder_attention_heads=width // 64,
        encoder_ffn_dim=4 * width,
        memory_len=slots,
        attn_implementation="sdpa",
    )
    torch.manual_seed(seed)
    layer = MemBartEncoderLayer(config, 0).to(device, kind)
    tokens = torch.randn(batch, length, width, device=device, dtype=kind, requires_grad=True)
    memory = torch.randn(batch, slots, width, device=device, dtype=kind, requires_grad=True)
    padding = torch.ones(batch, length, dtype=torch.long, device=device)
    padding[:, -length // 8 :] = 0
    forms = {
        f"{form}, {name}": build_masks(mask, slots, tokens, joint=form == "mask")
        for name, mask in (("padded", padding), ("full rows", None))
        for form in ("mask", "split")
    }

    def run(masks: Any) -> Callable[[], None]:
        def step() -> None:
            out, new, _ = layer(tokens, memory, masks)
            (out.sum() + new.sum()).backward()

        return step

    found = measure(
        {name: run(masks) for name, masks in forms.items()}, [tokens, memory, *layer.parameters()], rounds
    )
    report(found, f"{batch} x ({slots} + {length}), width {width}, {dtype} on {device}", as_json)


def loss(
    tokens: Annotated[int, typer.Option(min=1, help="Positions with a target.")] = 2048,
    vocabulary: Annotated[int, typer.Option(min=2, help="Classes.")] = 50265,
    width: Annotated[int, typer.Option(min=1, help="Model width.")] = 768,
    device: Device = "cpu",
    dtype: Precision = "float32",
    frozen: Annotated[
        bool, typer.Option(help="The embedding takes no gradient, as in the authors' training.")
    ] = False,
    rounds: Rounds = 5,
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """Cross-entropy over the vocabulary, forward and backward: our two forms and PyTorch's chunked one."""
    import torch
    from torch.nn.functional import linear_cross_entropy

    from pretrain.model.loss import summed_cross_entropy

    kind = getattr(torch, dtype)
    torch.manual_seed(seed)
    hidden = torch.randn(tokens, width, device=device, dtype=kind, requires_grad=True)
    weight = (0.02 * torch.randn(vocabulary, width, device=device)).to(kind).requires_grad_(not frozen)
    labels = torch.randint(vocabulary, (tokens,), device=device)
    sums: dict[str, float] = {}

    def run(name: str, compute: Callable[[], torch.Tensor]) -> Callable[[], None]:
        def step() -> None:
            total = compute()
            total.backward()
            sums[name] = total.item()

        return step

    def library(rows: int) -> torch.Tensor:
        options = torch.nn.LinearCrossEntropyOptions(batch_chunk_size=rows)
        return linear_cross_entropy(hidden, weight, labels, reduction="sum", options=options)

    forms: dict[str, Callable[[], torch.Tensor]] = {
        "plain": lambda: summed_cross_entropy(hidden, weight, labels, form="plain"),
        "chunked": lambda: summed_cross_entropy(hidden, weight, labels, form="chunked"),
        "torch, 512 rows": lambda: library(512),
    }
    found = measure({name: run(name, form) for name, form in forms.items()}, [hidden, weight], rounds)
    report(
        found, f"{tokens} targets, {vocabulary} classes, width {width}, {dtype} on {device}", as_json, sums
    )


def measure(forms: dict[str, Callable[[], None]], leaves: list[torch.Tensor], rounds: int) -> list[Form]:
    """Run the forms in turns; gradients of `leaves` are dropped before each."""
    times: dict[str, list[float]] = {name: [] for name in forms}
    work: dict[str, list[float]] = {name: [] for name in forms}
    memory: dict[str, list[float]] = {name: [] for name in forms}
    for step in forms.values():
        step()
    gc.collect()
    for _ in range(rounds):
        for name, step in forms.items():
            for leaf in leaves:
                leaf.grad = None
            with peak_megabytes(leaves[0].device) as peak:
                started, busy = time.perf_counter(), time.process_time()
                step()
                synchronize(leaves[0].device)
                times[name].append(time.perf_counter() - started)
                work[name].append(time.process_time() - busy)
            memory[name] += peak
    first = next(iter(forms))
    return [
        Form(
            name,
            seconds=median(times[name]),
            ratio=_ratio(times[name], times[first]),
            cpu_ratio=_ratio(work[name], work[first]),
            megabytes=max(memory[name], default=None),
        )
        for name in forms
    ]


def _ratio(mine: list[float], first: list[float]) -> float:
    return median(a / b for a, b in zip(mine, first, strict=True))


@contextmanager
def peak_megabytes(device: torch.device) -> Iterator[list[float]]:
    """Yields a list that holds, afterwards, the peak above the memory in use at the start.

    On a GPU the allocator's count, else the process's resident set (Linux); empty where neither is known.
    """
    import torch

    found: list[float] = []
    status, reset = Path("/proc/self/status"), Path("/proc/self/clear_refs")
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        yield found
        found.append((torch.cuda.max_memory_allocated(device) - before) / 1e6)
    elif status.exists() and reset.exists():
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        if trim is not None:
            trim(0)  # what the heap keeps for later would hide in the starting point
        reset.write_text("5", encoding="ascii")  # the high-water mark falls to what is resident now
        before = _resident(status, "VmRSS")
        yield found
        found.append((_resident(status, "VmHWM") - before) / 1e6)
    else:
        yield found


def _resident(status: Path, field: str) -> int:
    line = next(line for line in status.read_text(encoding="ascii").splitlines() if line.startswith(field))
    return int(line.split()[1]) * 1024


def synchronize(device: torch.device) -> None:
    import torch

    if device.type == "cuda":
        torch.cuda.synchronize(device)


def report(forms: list[Form], title: str, as_json: bool, sums: dict[str, float] | None = None) -> None:
    """Print the forms as a table or as JSON; `sums` are results that should agree."""
    if as_json:
        print(json.dumps({"title": title, "forms": [asdict(form) for form in forms], "sums": sums}))
        return
    print(title)
    print(f"{'form':<20}{'ms':>10}{'ratio':>8}{'CPU ratio':>11}{'peak MB':>10}{'result':>14}")
    for form in forms:
        peak = "-" if form.megabytes is None else f"{form.megabytes:.0f}"
        result = "" if sums is None else f"{sums[form.name]:.3f}"
        times = f"{1000 * form.seconds:>10.1f}{form.ratio:>8.2f}{form.cpu_ratio:>11.2f}"
        print(f"{form.name:<20}{times}{peak:>10}{result:>14}")
