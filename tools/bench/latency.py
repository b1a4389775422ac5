"""`membart bench latency`: what one turn costs with memory, against models that read the history again.

BART at growing contexts, LED at 2,048 and MemBART at short contexts with several memory sizes, all of one
shape with random weights, one dialogue, full context (the paper's section 4.5 and Table 3). Models take turns
round by round; times are medians, ratios medians of the ratios within a round.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median, pstdev
from time import perf_counter
from typing import Annotated, Any

import typer

from pretrain.errors import UserError
from tools.bench.model import Device, Json, synchronize

SHAPES = {"base": (768, 6), "large": (1024, 12), "small": (128, 2)}
VOCABULARY = 50265
LED_WINDOW = 1024
REFERENCE = "MemBART (128) 128"
TARGETS = {"cpu": {"BART 1024": 2.5, "LED 2048": 6.0}, "cuda": {"BART 1024": 3.2, "LED 2048": 11.0}}


@dataclass(frozen=True)
class Turn:
    """One model at one context."""

    name: str
    context: int
    slots: int
    seconds: float
    """Of encoding the context and decoding the targets, median."""
    spread: float
    """Standard deviation over the rounds, seconds."""
    ratio: float
    """Time against MemBART with 128 tokens and 128 slots, median over rounds."""


def latency(
    shape: Annotated[str, typer.Option(help="base, large or small.")] = "base",
    targets: Annotated[int, typer.Option(min=1, help="Tokens that the decoder reads in one pass.")] = 32,
    bart: Annotated[str, typer.Option(help="Contexts of BART.")] = "128,256,512,1024",
    led: Annotated[str, typer.Option(help="Contexts of LED; empty leaves it out.")] = "2048",
    membart: Annotated[str, typer.Option(help="Contexts of MemBART.")] = "128,256,512",
    slots: Annotated[str, typer.Option(help="Memory sizes of MemBART.")] = "64,128,256",
    device: Device = "cpu",
    dtype: Annotated[str, typer.Option(help="float32, bfloat16 or float16.")] = "float32",
    rounds: Annotated[int, typer.Option(min=1, help="Every model runs so many times.")] = 10,
    turns: Annotated[int, typer.Option(min=0, help="Length of the dialogue in the cost curve.")] = 30,
    plot: Annotated[Path | None, typer.Option(help="PNG of the cost of a dialogue by its turns.")] = None,
    seed: Annotated[int, typer.Option(help="Of weights and inputs.")] = 0,
    as_json: Json = False,
) -> None:
    """One turn: encoder over the context and one decoder pass over the targets."""
    import torch

    if shape not in SHAPES:
        raise UserError(f"--shape {shape} is unknown", mend=f"one of: {', '.join(SHAPES)}")
    if torch.device(device).type == "cuda" and not torch.cuda.is_available():
        raise UserError("no CUDA device on this machine", mend="--device cpu")
    torch.manual_seed(seed)
    models = {
        **{f"BART {n}": (n, 0, bart_turn(shape, n, targets, device, dtype)) for n in _numbers(bart)},
        **{f"LED {n}": (n, 0, led_turn(shape, n, targets, device, dtype)) for n in _numbers(led)},
        **{
            f"MemBART ({m}) {n}": (n, m, membart_turn(shape, n, m, targets, device, dtype))
            for n in _numbers(membart)
            for m in _numbers(slots)
        },
    }
    if REFERENCE not in models:
        raise UserError(
            f"{REFERENCE} is what all others are compared with", mend="keep --membart and --slots 128"
        )
    times: dict[str, list[float]] = {name: [] for name in models}
    with torch.inference_mode():
        for number in range(rounds + 1):
            for name, (_, _, run) in models.items():
                synchronize(torch.device(device))
                started = perf_counter()
                run()
                synchronize(torch.device(device))
                if number:  # the first round warms up
                    times[name].append(perf_counter() - started)
    found = [
        Turn(
            name,
            context,
            kept,
            median(times[name]),
            pstdev(times[name]),
            median(mine / base for mine, base in zip(times[name], times[REFERENCE], strict=True)),
        )
        for name, (context, kept, _) in models.items()
    ]
    on = torch.cuda.get_device_name() if device.startswith("cuda") else f"{torch.get_num_threads()} threads"
    title = f"{shape}, 1 dialogue, {targets} targets, {dtype} on {device} ({on}), {rounds} rounds"
    if plot is not None:
        draw(found, turns, plot)
    if as_json:
        print(json.dumps({"title": title, "turns": [asdict(turn) for turn in found]}))
        return
    print(title)
    wanted = TARGETS["cuda" if device.startswith("cuda") else "cpu"]
    print(f"{'model (slots) context':<24}{'ms':>10}{'±':>8}{'against ' + REFERENCE:>28}{'target':>9}")
    for turn in found:
        goal = f"{wanted[turn.name]:g} x" if turn.name in wanted else ""
        milliseconds = f"{1000 * turn.seconds:>10.1f}{1000 * turn.spread:>8.1f}"
        print(f"{turn.name:<24}{milliseconds}{turn.ratio:>26.2f} x{goal:>9}")
    if plot is not None:
        print(plot)


def bart_turn(shape: str, context: int, targets: int, device: str, dtype: str) -> Callable[[], Any]:
    """One turn of a BART that reads `context` tokens."""
    from transformers import BartConfig, BartForConditionalGeneration

    config = BartConfig(**sizes(shape), max_position_embeddings=max(1024, context, targets))
    model = _ready(BartForConditionalGeneration(config), device, dtype)
    ids, mask, decoder = _inputs(context, targets, device)
    return lambda: (
        model(input_ids=ids, attention_mask=mask, decoder_input_ids=decoder, use_cache=False).logits
    )


def led_turn(shape: str, context: int, targets: int, device: str, dtype: str) -> Callable[[], Any]:
    """One turn of an LED (windowed attention of 1,024, the first token global)."""
    import torch
    from transformers import LEDConfig, LEDForConditionalGeneration

    config = LEDConfig(
        **sizes(shape),
        attention_window=LED_WINDOW,
        max_encoder_position_embeddings=16384,
        max_decoder_position_embeddings=1024,
    )
    model = _ready(LEDForConditionalGeneration(config), device, dtype)
    ids, mask, decoder = _inputs(context, targets, device)
    everywhere = torch.zeros_like(mask)
    everywhere[:, 0] = 1
    return lambda: (
        model(
            input_ids=ids,
            attention_mask=mask,
            global_attention_mask=everywhere,
            decoder_input_ids=decoder,
            use_cache=False,
        ).logits
    )


def membart_turn(
    shape: str, context: int, slots: int, targets: int, device: str, dtype: str
) -> Callable[[], Any]:
    """One turn of a MemBART: context and memory in, logits and the next memory out."""
    import torch

    from pretrain.model import MemBartConfig, MemBartForConditionalGeneration

    config = MemBartConfig(**sizes(shape), memory_len=slots, max_position_embeddings=1024)
    model = _ready(MemBartForConditionalGeneration(config), device, dtype)
    ids, mask, decoder = _inputs(context, targets, device)
    memory = torch.randn(1, slots, config.d_model, device=device)
    resets = torch.zeros(1, dtype=torch.long, device=device)

    def turn() -> Any:
        return model(
            input_ids=ids,
            attention_mask=mask,
            memory_states=memory,
            memory_resets=resets,
            decoder_input_ids=decoder,
            use_cache=False,
        ).logits

    return turn


def draw(found: list[Turn], turns: int, path: Path) -> None:
    """Cost of a whole dialogue: O(T N²) with memory, O(T² N²) where the history is read again at each turn.

    Every turn adds as many tokens as divide BART's longest context by `turns`; a model's time between the
    measured contexts is interpolated.
    """
    import numpy as np
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    bart = sorted((turn.context, turn.seconds) for turn in found if turn.name.startswith("BART"))
    contexts, seconds = (np.array(column) for column in zip(*bart, strict=True))
    number = np.arange(1, turns + 1)
    history = np.minimum(number * contexts[-1] / turns, contexts[-1])
    figure = Figure(figsize=(6.4, 4.0), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.plot(
        number, np.cumsum(np.interp(history, contexts, seconds)), label="BART, whole history every turn"
    )
    for turn in found:
        if turn.slots == 128:
            axes.plot(
                number, number * turn.seconds, label=f"MemBART, {turn.context} tokens + {turn.slots} slots"
            )
    axes.set_xlabel(f"turns of the dialogue ({contexts[-1] / turns:.0f} tokens each)")
    axes.set_ylabel("seconds spent so far")
    axes.legend(frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)


def sizes(shape: str) -> dict[str, int]:
    """Fields of a BART's configuration for one of `SHAPES`."""
    width, layers = SHAPES[shape]
    return {
        "vocab_size": VOCABULARY,
        "d_model": width,
        "encoder_layers": layers,
        "decoder_layers": layers,
        "encoder_attention_heads": width // 64,
        "decoder_attention_heads": width // 64,
        "encoder_ffn_dim": 4 * width,
        "decoder_ffn_dim": 4 * width,
    }


def _ready(model: Any, device: str, dtype: str) -> Any:
    import torch

    return model.to(device, getattr(torch, dtype)).eval()


def _inputs(context: int, targets: int, device: str) -> tuple[Any, Any, Any]:
    import torch

    ids = torch.randint(4, VOCABULARY, (1, context), device=device)
    return ids, torch.ones_like(ids), torch.randint(4, VOCABULARY, (1, targets), device=device)


def _numbers(text: str) -> list[int]:
    try:
        return [int(word) for word in text.split(",") if word.strip()]
    except ValueError:
        raise UserError(f"'{text}' is not a list of numbers", mend="for example 128,256") from None
