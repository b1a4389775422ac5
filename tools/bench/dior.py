"""`membart bench dior`: tokens per second of Dior-CVAE against the plain decoder (the paper's Table 7).

Models of one shape with random weights write replies of a fixed length to one context at a time, as the paper
does, beam search and cache included. They take turns round by round; times are medians, ratios medians of the
ratios within a round.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from statistics import median
from time import perf_counter
from typing import Annotated, Any

import typer

from pretrain.errors import UserError
from tools.bench.latency import SHAPES, VOCABULARY, sizes
from tools.bench.model import Device, Json, Precision, Rounds, Seed, synchronize
from tools.models import find_device

PLAIN = "BART"
PAPER = {"DialogVED": 131.34, "DELLA (BART)": 128.28, "Dior-CVAE": 123.95}
"""Tokens per second of Table 7."""


@dataclass(frozen=True)
class Writer:
    """One model."""

    name: str
    tokens_per_second: float
    ratio: float
    """Tokens per second against the plain decoder, median over rounds."""


def dior(
    shape: Annotated[str, typer.Option(help="base, large or small.")] = "base",
    context: Annotated[int, typer.Option(min=1, help="Tokens that are answered.")] = 96,
    tokens: Annotated[int, typer.Option(min=1, help="Tokens of a reply.")] = 20,
    beams: Annotated[int, typer.Option(min=1, help="1 is greedy.")] = 5,
    batch: Annotated[int, typer.Option(min=1, help="Contexts at a time.")] = 1,
    steps: Annotated[int, typer.Option(min=1, help="Diffusion steps.")] = 50,
    device: Device = "cpu",
    dtype: Precision = "float32",
    rounds: Rounds = 5,
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """Table 7: what latents, diffusion and infusion cost in generation."""
    import torch

    if shape not in SHAPES:
        raise UserError(f"--shape {shape} is unknown", mend=f"one of: {', '.join(SHAPES)}")
    find_device(device)
    torch.manual_seed(seed)
    ids = torch.randint(4, VOCABULARY, (batch, context), device=device)
    how = _options(tokens, beams)
    forms = {
        PLAIN: _plain(shape, ids, how, device, dtype),
        "Dior-CVAE": _dior(shape, ids, how, device, dtype, steps, "diffusion"),
        "Dior-CVAE, w = 0": _dior(shape, ids, how, device, dtype, steps, "diffusion", guidance_weight=0.0),
        "w/o diffusion": _dior(shape, ids, how, device, dtype, steps, "standard"),
    }
    seconds: dict[str, list[float]] = {name: [] for name in forms}
    with torch.inference_mode():
        for number in range(rounds + 1):
            for name, write in forms.items():
                synchronize(torch.device(device))
                began = perf_counter()
                write()
                synchronize(torch.device(device))
                if number:  # the first round warms up
                    seconds[name].append(perf_counter() - began)
    found = [
        Writer(
            name,
            batch * tokens / median(spent),
            median(plain / mine for plain, mine in zip(seconds[PLAIN], spent, strict=True)),
        )
        for name, spent in seconds.items()
    ]
    title = (
        f"{shape}, {batch} x {context} tokens answered in {tokens}, {beams} beams, {steps} diffusion steps, "
        f"{dtype} on {device}, {rounds} rounds"
    )
    if as_json:
        print(json.dumps({"title": title, "writers": [asdict(writer) for writer in found]}))
        return
    print(title)
    print(f"{'':<20}{'tokens/s':>10}{'against ' + PLAIN:>16}")
    for writer in found:
        print(f"{writer.name:<20}{writer.tokens_per_second:>10.1f}{writer.ratio:>14.3f} x")
    beside = ", ".join(
        f"{PAPER['Dior-CVAE'] / PAPER[name]:.3f} x {name}" for name in ("DialogVED", "DELLA (BART)")
    )
    print(f"paper, one V100: Dior-CVAE at {beside}")


def _plain(shape: str, ids: Any, how: dict[str, Any], device: str, dtype: str) -> Callable[[], Any]:
    """BART with transformers' own decoder."""
    import torch
    from transformers import BartConfig, BartForConditionalGeneration

    config = BartConfig(**sizes(shape), max_position_embeddings=_positions(ids, how))
    model = BartForConditionalGeneration(config)
    model = model.to(device, getattr(torch, dtype)).eval()
    return lambda: model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), **how)


def _dior(
    shape: str,
    ids: Any,
    how: dict[str, Any],
    device: str,
    dtype: str,
    steps: int,
    prior: str,
    **changes: Any,
) -> Callable[[], Any]:
    """Dior-CVAE on plain BART: encode, sample latents, decode."""
    import torch

    from finetune.families.dior_cvae import DiorConfig, DiorForConditionalGeneration
    from finetune.families.dior_cvae.diffusion import scaled_betas

    start, end = scaled_betas(steps)
    config = DiorConfig(
        **sizes(shape),
        **changes,
        memory_len=0,
        prior=prior,
        diffusion_steps=steps,
        beta_start=start,
        beta_end=end,
        max_position_embeddings=_positions(ids, how),
    )
    model = DiorForConditionalGeneration(config).to(device, getattr(torch, dtype)).eval()
    return lambda: model.generate(input_ids=ids, **how)


def _positions(ids: Any, how: dict[str, Any]) -> int:
    """Those of BART, or more where the contexts or replies that were asked for need more."""
    return max(1024, int(ids.shape[1]), 1 + int(how["max_new_tokens"]))


def _options(tokens: int, beams: int) -> dict[str, Any]:
    """Exactly `tokens` tokens, whatever random weights want to end on."""
    return {
        "max_new_tokens": tokens,
        "min_new_tokens": tokens,
        "num_beams": beams,
        "do_sample": False,
        "forced_eos_token_id": None,
        "early_stopping": False,
    }
