"""FLOPs counted from shapes are those that torch counts while the model runs."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from pretrain import flops
from pretrain.dispatch.batch import Batch
from pretrain.model import MemBartConfig
from pretrain.model.options import Variant
from pretrain.replay import Cell, Mode, back_propagate
from tests.support import tiny

SOURCE, TARGET, ROWS, HORIZON = 24, 20, 2, 3
SHAPE: dict[str, Any] = {
    "d_model": 32,
    "encoder_ffn_dim": 128,
    "decoder_ffn_dim": 96,
    "encoder_layers": 3,
    "memory_len": 8,
    "vocab_size": 300,
    "attn_implementation": "eager",  # the fused kernels' backward recomputes scores, which is not useful work
}
VARIANTS: tuple[Variant, ...] = ("membart", "shared", "memformer", "memformer_rezero")


def segment() -> Batch:
    ones = torch.ones(ROWS, SOURCE, dtype=torch.long)
    targets = 5 * torch.ones(ROWS, TARGET, dtype=torch.long)
    number = torch.arange(ROWS)
    return Batch(
        input_ids=6 * ones,
        attention_mask=ones,
        decoder_input_ids=targets,
        labels=targets,
        memory_resets=torch.zeros(ROWS, dtype=torch.long),
        lane=number,
        agent=number,
        document=number,
        segment=number,
        epoch=number,
        timestep=0,
        target_tokens=ROWS * TARGET,
    )


def counter() -> FlopCounterMode:
    def add_product(_into: Any, left: Any, right: Any, *_: Any, **__: Any) -> int:
        return 2 * left[0] * left[1] * right[1]

    # torch's table has addmm, but not the form in place that the chunked loss uses
    return FlopCounterMode(display=False, custom_mapping={torch.ops.aten.addmm_: add_product})


@pytest.mark.parametrize(
    "changes",
    [*({"variant": name} for name in VARIANTS), {"memory_attention": "split"}],
    ids=lambda changes: next(iter(changes.values())),
)
def test_forward_of_each_part(changes: dict[str, str]) -> None:
    model, batch = tiny.model(**SHAPE, **changes).requires_grad_(False), segment()
    memory = model.construct_memory(ROWS)
    with counter() as encoder:
        encoded = model.encode(batch.input_ids, batch.attention_mask, memory, batch.memory_resets)
    with counter() as decoder:
        model.token_loss(encoded, batch.decoder_input_ids, batch.labels)
    found = flops.forward(model.config, SOURCE, TARGET)
    assert ROWS * found.encoder == pytest.approx(encoder.get_total_flops(), rel=0.01)
    assert ROWS * (found.decoder + found.head) == pytest.approx(decoder.get_total_flops(), rel=0.01)


@pytest.mark.parametrize("mode", ["bptt", "replay", "checkpoint"])
@pytest.mark.parametrize("loss", ["plain", "chunked"])
@pytest.mark.parametrize("embedding_trains", [True, False])
def test_what_a_rollout_executes(mode: Mode, loss: str, embedding_trains: bool) -> None:
    model = tiny.model(**SHAPE, loss_impl=loss)
    model.model.shared.requires_grad_(embedding_trains)
    with counter() as counted:
        back_propagate(
            Cell(model),
            [segment() for _ in range(HORIZON)],
            model.construct_memory(ROWS),
            torch.ones(HORIZON),
            [("key", t) for t in range(HORIZON)],
            lambda scalar, last: scalar.backward(),
            mode=mode,
        )
    found = flops.executed(
        model.config, SOURCE, TARGET, mode=mode, horizon=HORIZON, embedding_trains=embedding_trains
    )
    assert ROWS * HORIZON * found == pytest.approx(counted.get_total_flops(), rel=0.02)


def test_the_base_model_needs_what_was_reckoned_by_hand() -> None:
    base = MemBartConfig(
        d_model=768,
        encoder_layers=6,
        decoder_layers=6,
        encoder_ffn_dim=3072,
        decoder_ffn_dim=3072,
        vocab_size=50265,
        memory_len=128,
    )
    found = flops.forward(base, 512, 512)
    assert found.total == pytest.approx(172e9, rel=0.05)
    assert found.head / found.total == pytest.approx(0.23, abs=0.01)
    ratio = flops.executed(base, 512, 512, mode="replay", horizon=6) / flops.training(base, 512, 512)
    assert 1.08 < ratio < 1.12


@pytest.mark.parametrize(
    ("name", "tera"),
    [
        ("NVIDIA H200", 989.4),
        ("NVIDIA H100 80GB HBM3", 989.4),
        ("NVIDIA H100 PCIe", 756),
        ("NVIDIA H100 NVL", 835),
        ("NVIDIA A100-SXM4-80GB", 312),
        ("NVIDIA RTX A6000", 154.8),
        ("NVIDIA H100 80GB HBM3 MIG 1g.10gb", 0),
        ("NVIDIA GeForce RTX 4090", 0),
        ("NVIDIA RTX 6000 Ada Generation", 0),
    ],
)
def test_peaks_by_name(name: str, tera: float) -> None:
    assert flops.peak_of(name) == pytest.approx(tera * 1e12)


def test_a_cpu_has_no_known_peak() -> None:
    assert flops.peak(torch.device("cpu")) == 0
