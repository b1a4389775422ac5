"""`membart bench replay`: the ways to train through a rollout, side by side on one model in one run.

Modes take turns round by round, so that whatever else the machine does hits all of them alike; times are
medians, ratios medians of the ratios within a round. A step is forward and backward of a whole rollout of
full segments; the optimizer's part, equal for all, is left out (with it the ratios would be nearer to 1).
With one thread on a CPU the clock is that of the process, which other processes disturb less.
Peak memory is taken in a fresh process for each mode and horizon.
"""

from __future__ import annotations

import ctypes
import json
import math
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from statistics import median
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pretrain.errors import UserError
from tools.bench.model import Device, Json, peak_megabytes, synchronize

if TYPE_CHECKING:
    from torch import Tensor

    from pretrain.dispatch.batch import Batch
    from pretrain.model import MemBartConfig, MemBartForConditionalGeneration
    from pretrain.replay import Cell, Mode

SHAPES: dict[str, dict[str, int]] = {
    "base": {"vocab_size": 50265, "d_model": 768, "layers": 6, "memory_len": 64},
    "large": {"vocab_size": 50265, "d_model": 1024, "layers": 12, "memory_len": 128},
    "small": {"vocab_size": 1024, "d_model": 128, "layers": 2, "memory_len": 16},
}
TARGET_RATIO, TARGET_GROWTH = 1.12, 0.01
_M_MMAP_THRESHOLD = -3  # glibc's mallopt


@dataclass(frozen=True)
class Setting:
    """What is trained on what."""

    shape: str
    batch: int
    window: int
    dtype: str
    device: str
    seed: int = 0

    def check(self) -> None:
        """Raises `UserError` for what does not exist."""
        import torch

        for name, value, known in (
            ("shape", self.shape, tuple(SHAPES)),
            ("dtype", self.dtype, ("float32", "bfloat16")),
        ):
            if value not in known:
                raise UserError(f"--{name} {value} is unknown", mend=f"one of: {', '.join(known)}")
        if torch.device(self.device).type == "cuda" and not torch.cuda.is_available():
            raise UserError("no CUDA device on this machine", mend="--device cpu")


@dataclass(frozen=True)
class Timed:
    """One mode; FLOPs are counted, see `pretrain.flops`."""

    mode: str
    seconds: float
    """Of a step, median."""
    ratio: float
    """Time against bptt, median over rounds."""
    flops_ratio: float
    """FLOPs against bptt."""
    target_tokens_per_second: float
    executed: float
    """FLOP/s, recomputation included."""
    utilization: float
    """`executed` as a share of the matmul ceiling of the same round, median."""
    useful: float
    """MFU against the same ceiling: without recomputation."""


@dataclass(frozen=True)
class Peak:
    """Largest memory of a step above what stood before it (weights, gradients, inputs), in MB."""

    mode: str
    horizon: int
    megabytes: float | None


def replay(
    shape: Annotated[str, typer.Option(help="base, large or small.")] = "base",
    batch: Annotated[int, typer.Option(min=1, help="Agents.")] = 1,
    window: Annotated[int, typer.Option(min=3, help="Tokens of a segment, both sides.")] = 512,
    horizon: Annotated[int, typer.Option(min=1, help="Timesteps of the timed rollout.")] = 6,
    dtype: Annotated[str, typer.Option(help="float32, or bfloat16: autocast over float32.")] = "float32",
    device: Device = "cpu",
    rounds: Annotated[int, typer.Option(min=0, help="Every mode runs so many times; 0: no timing.")] = 3,
    modes: Annotated[
        str,
        typer.Option(
            help="Timed after bptt: replay, checkpoint, written (the paper's algorithm), authors (bptt with "
            "eager attention and all logits at once, as in their code)."
        ),
    ] = "replay,checkpoint,written,authors",
    horizons: Annotated[str, typer.Option(help="Where peak memory is taken; empty: nowhere.")] = "1,2,4,8,12",
    compile_layers: Annotated[bool, typer.Option("--compile", help="Also time compiled layers.")] = False,
    seed: Annotated[int, typer.Option(help="Of weights and inputs.")] = 0,
    as_json: Json = False,
) -> None:
    """Memory replay against plain back-propagation through time, checkpointing and the paper's algorithm."""
    import torch

    setting = Setting(shape, batch, window, dtype, device, seed)
    setting.check()
    lengths = [int(word) for word in horizons.split(",") if word.strip()]
    peaks = measure_peaks(setting, lengths)
    chosen = ["bptt", *(mode.strip() for mode in modes.split(",") if mode.strip())]
    unknown = sorted(set(chosen) - {"bptt", "replay", "checkpoint", "written", "authors"})
    if unknown:
        raise UserError(f"--modes: no mode {unknown[0]}", mend="replay, checkpoint, written, authors")
    timed, ceiling, per_token = (
        measure_times(setting, horizon, rounds, chosen, compile_layers) if rounds else ([], 0.0, 0.0)
    )
    on = torch.cuda.get_device_name() if device.startswith("cuda") else f"{torch.get_num_threads()} threads"
    title = f"{shape}, {batch} agents x {window} tokens, {dtype} on {device} ({on})"
    if as_json:
        figures = {"ceiling": ceiling, "useful_flops_per_target_token": per_token}
        found = {"modes": [asdict(t) for t in timed], "peaks": [asdict(p) for p in peaks]}
        print(json.dumps({"title": title, **figures, **found}))
        return
    print(title)
    if timed:
        print_times(timed, horizon, ceiling, per_token, _peak_flops(device))
    if peaks:
        print_peaks(peaks, stored_megabytes(setting))


def measure_times(
    setting: Setting, horizon: int, rounds: int, modes: list[str], compile_layers: bool
) -> tuple[list[Timed], float, float]:
    """The modes (`bptt` first), the matmul ceiling in FLOP/s, and useful FLOPs per target token."""
    import torch

    from pretrain import flops
    from pretrain.replay import Cell

    model, rollout, memory = prepare(setting, horizon)
    cell = Cell(model)
    names = {mode: (mode, False) for mode in modes}
    if compile_layers:
        for layer in (*model.model.encoder.layers, *model.model.decoder.layers):
            layer.compile()
        names |= {f"{mode}, compiled": (mode, True) for mode in modes if mode in ("bptt", "replay")}

    def stance(compiled: bool) -> AbstractContextManager[Any]:
        return nullcontext() if compiled else torch.compiler.set_stance("force_eager")

    for compiled in sorted({compiled for _, compiled in names.values()}):
        with stance(compiled):
            step(cell, rollout[:2], memory, "replay", setting)
    clock = clock_of(setting)
    times: dict[str, list[float]] = {name: [] for name in names}
    ceilings = []
    for _ in range(rounds):
        ceilings.append(matmul_speed(setting))
        for name, (mode, compiled) in names.items():
            cell.zero_grad(set_to_none=True)
            synchronize(memory.device)
            with stance(compiled):
                started = clock()
                step(cell, rollout, memory, mode, setting)
                synchronize(memory.device)
                times[name].append(clock() - started)

    config, size = model.config, setting.window
    segments = horizon * setting.batch
    useful = flops.training(config, size, size)
    timed = []
    for name, (mode, _) in names.items():
        if mode == "authors":
            executed = useful
        elif mode == "written":
            executed = useful + flops.forward(config, size, size).total
        else:
            known: Mode = mode  # type: ignore[assignment]
            executed = flops.executed(config, size, size, mode=known, horizon=horizon)
        seconds = median(times[name])
        share = median(1 / t / c for t, c in zip(times[name], ceilings, strict=True)) * segments
        timed.append(
            Timed(
                mode=name,
                seconds=seconds,
                ratio=median(t / b for t, b in zip(times[name], times["bptt"], strict=True)),
                flops_ratio=executed / useful,
                target_tokens_per_second=segments * size / seconds,
                executed=segments * executed / seconds,
                utilization=share * executed,
                useful=share * useful,
            )
        )
    return timed, median(ceilings), useful / size


def measure_peaks(setting: Setting, horizons: list[int]) -> list[Peak]:
    """Replay's and bptt's peaks at each horizon, every one in a process of its own."""
    context = get_context("spawn")
    peaks = []
    for mode in ("replay", "bptt"):
        for horizon in horizons:
            with ProcessPoolExecutor(1, mp_context=context) as fresh:
                megabytes = fresh.submit(peak_of, setting, mode, horizon).result()
            peaks.append(Peak(mode, horizon, megabytes))
    return peaks


def peak_of(setting: Setting, mode: str, horizon: int) -> float | None:
    """MB of one step above the state before it; meant for a process that does nothing else."""
    from pretrain.replay import Cell

    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        # Every tensor of some size gets pages of its own, which go back when it dies: the resident set then
        # follows the living tensors.
        mallopt(_M_MMAP_THRESHOLD, 1 << 16)
    model, rollout, memory = prepare(setting, horizon)
    cell = Cell(model)
    step(cell, rollout[:1], memory, "replay", setting)
    cell.zero_grad(set_to_none=False)
    with peak_megabytes(memory.device) as found:
        step(cell, rollout, memory, mode, setting)
    return found[0] if found else None


def prepare(setting: Setting, horizon: int) -> tuple[MemBartForConditionalGeneration, list[Batch], Tensor]:
    """A fresh model, `horizon` timesteps of full rows, and a memory."""
    import torch

    from pretrain.dispatch.batch import Batch
    from pretrain.model import MemBartConfig, MemBartForConditionalGeneration

    sizes = dict(SHAPES[setting.shape])
    layers, width = sizes.pop("layers"), sizes["d_model"]
    config = MemBartConfig(
        **sizes,
        encoder_layers=layers,
        decoder_layers=layers,
        encoder_attention_heads=width // 64,
        decoder_attention_heads=width // 64,
        encoder_ffn_dim=4 * width,
        decoder_ffn_dim=4 * width,
        max_position_embeddings=max(1024, setting.window),
        dropout=0.0,
    )
    torch.manual_seed(setting.seed)
    model = MemBartForConditionalGeneration.from_scratch(config).to(setting.device).train()
    ones = torch.ones(setting.batch, setting.window, dtype=torch.long)
    number = torch.arange(setting.batch)

    def timestep(t: int) -> Batch:
        ids = torch.randint(4, config.vocab_size, ones.shape)
        return Batch(
            input_ids=ids,
            attention_mask=ones,
            decoder_input_ids=ids.roll(1, 1),
            labels=ids,
            memory_resets=torch.zeros_like(number),
            lane=number,
            agent=number,
            document=number,
            segment=number,
            epoch=number,
            timestep=t,
            target_tokens=ids.numel(),
        ).to(setting.device)

    return model, [timestep(t) for t in range(horizon)], model.construct_memory(setting.batch)


def step(cell: Cell, rollout: list[Batch], memory: Tensor, mode: str, setting: Setting) -> None:
    """Forward and backward of a whole rollout; gradients are left in the parameters."""
    import torch

    from pretrain.replay import back_propagate, loss_coefficients

    def call(*arguments: Any, **options: Any) -> tuple[Tensor | None, Tensor, Tensor]:
        # One context a call, as DeepSpeed does it: casts of weights made without gradient must not be reused.
        with torch.autocast(memory.device.type, torch.bfloat16, enabled=setting.dtype == "bfloat16"):
            return cell(*arguments, **options)

    def whole(
        batch: Batch, state: Tensor, key: Any, loss: bool = True
    ) -> tuple[Tensor | None, Tensor, Tensor]:
        if loss:
            return call(batch, state, key)
        cell.requires_grad_(False)  # else the chunked loss would make its gradient already here
        try:
            return call(batch, state, key)
        finally:
            cell.requires_grad_(True)

    if mode == "authors":
        with as_authors(cell.model.config):  # type: ignore[attr-defined]
            return step(cell, rollout, memory, "bptt", setting)
    run: Callable[..., tuple[Tensor | None, Tensor, Tensor]] = call
    keys = [("bench", t) for t in range(len(rollout))]
    if mode == "written":
        # The first roll runs all of every timestep, the last one too.
        with torch.no_grad():
            whole(rollout[-1], memory, keys[-1], loss=False)
        run = whole
    counts = torch.tensor([batch.target_tokens for batch in rollout], device=memory.device)
    known: Mode = "replay" if mode == "written" else mode  # type: ignore[assignment]
    back_propagate(
        run,
        rollout,
        memory,
        loss_coefficients(counts, "uniform"),
        keys,
        lambda scalar, last: scalar.backward(),
        mode=known,
    )


@contextmanager
def as_authors(config: MemBartConfig) -> Iterator[None]:
    """Inside, attention is two matrix products around a softmax, slots and tokens in one masked call, and the
    loss is taken from all logits at once."""
    changes = {"memory_attention": "mask", "loss_impl": "plain", "_attn_implementation": "eager"}
    before = {name: getattr(config, name) for name in changes}
    try:
        for name, value in changes.items():
            setattr(config, name, value)
        yield
    finally:
        for name, value in before.items():
            setattr(config, name, value)


def matmul_speed(setting: Setting) -> float:
    """FLOP/s of a large square product in the dtype of the matrix products, best of five."""
    import torch

    device = torch.device(setting.device)
    size = 8192 if device.type == "cuda" else 2048
    left, right = (torch.randn(size, size, device=device, dtype=getattr(torch, setting.dtype)) for _ in "ab")
    best, clock = math.inf, clock_of(setting)
    for _ in range(5):
        synchronize(device)
        started = clock()
        left @ right
        synchronize(device)
        best = min(best, clock() - started)
    return 2 * size**3 / best


def clock_of(setting: Setting) -> Callable[[], float]:
    """Processor time where one CPU thread works, since other programs do not disturb it; else wall time."""
    import torch

    alone = setting.device == "cpu" and torch.get_num_threads() == 1
    return time.process_time if alone else time.perf_counter


def stored_megabytes(setting: Setting) -> float:
    """One timestep's memory, float32, which replay keeps."""
    shape = SHAPES[setting.shape]
    return 4e-6 * setting.batch * shape["memory_len"] * shape["d_model"]


def print_times(timed: list[Timed], horizon: int, ceiling: float, per_token: float, peak: float) -> None:
    """The table of times; `ceiling` and `peak` in FLOP/s, `per_token` in FLOPs."""
    print(f"{per_token / 1e9:.3f} GFLOP of useful work per target token; matmul {ceiling / 1e12:.3f} TFLOP/s")
    print(f"{'mode, T = ' + str(horizon):<20}{'ms':>10}{'ratio':>8}{'FLOPs':>8}{'tokens/s':>10}", end="")
    print(f"{'TFLOP/s':>10}{'hardware':>10}{'MFU':>8}{'of peak':>9}")
    for t in timed:
        of_peak = f"{t.target_tokens_per_second * per_token / peak:.1%}" if peak else "-"
        print(
            f"{t.mode:<20}{1000 * t.seconds:>10.1f}{t.ratio:>8.3f}{t.flops_ratio:>8.3f}"
            f"{t.target_tokens_per_second:>10.0f}{t.executed / 1e12:>10.3f}{t.utilization:>10.1%}"
            f"{t.useful:>8.1%}{of_peak:>9}"
        )
    print(f"hardware and MFU: shares of the matmul speed; target of replay's ratio at T = 6: {TARGET_RATIO}")


def print_peaks(peaks: list[Peak], stored: float) -> None:
    """The table of peaks, with replay's growth at each doubling less `stored` MB a timestep."""
    print(f"{'peak MB above start':<20}{'T':>4}{'MB':>10}{'per doubling':>14}  (target {TARGET_GROWTH:+.0%})")
    before: Peak | None = None
    for peak in peaks:
        if peak.megabytes is None:
            print(f"{peak.mode:<20}{peak.horizon:>4}{'unknown':>10}")
            continue
        growth = ""
        if before is not None and before.mode == peak.mode and before.megabytes:
            more = peak.megabytes - before.megabytes - stored * (peak.horizon - before.horizon)
            growth = f"{more / before.megabytes / math.log2(peak.horizon / before.horizon):+.1%}"
        print(f"{peak.mode:<20}{peak.horizon:>4}{peak.megabytes:>10.1f}{growth:>14}")
        before = peak
    print(f"growth is without the memories that a rollout stores, {stored:.2f} MB a timestep")


def _peak_flops(device: str) -> float:
    import torch

    from pretrain import flops

    return flops.peak(torch.device(device))
