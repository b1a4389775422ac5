"""Memory predicted from shapes is what real steps take, within ten per cent."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from pretrain import planning
from pretrain.model import MemBartConfig
from pretrain.planning import Rank, Sizes, Zero
from pretrain.replay import Cell, Mode, back_propagate
from tests.support import tiny
from tests.support.alive import Alive, no_gradients, padded

AGENTS, WINDOW = 3, 56
SHAPE: dict[str, Any] = {
    "d_model": 64,
    "encoder_ffn_dim": 256,
    "decoder_ffn_dim": 192,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "memory_len": 12,
    "vocab_size": 300,
}
ALONE = Zero(stage=0, world=1, offload_optimizer=False, offload_parameters=False, bucket=1)


def rank(config: MemBartConfig, sizes: Sizes, **changes: Any) -> Rank:
    fields: dict[str, Any] = {
        "zero": ALONE,
        "agents": AGENTS,
        "chunks": 1,
        "source": WINDOW,
        "target": WINDOW,
        "horizon": 2,
        "mode": "replay",
        "half": False,
        "checkpointing": False,
    }
    return Rank(config, sizes, **{**fields, **changes})


def measure(
    half: bool, mode: Mode = "replay", horizon: int = 2, checkpointing: bool = False, **changes: Any
) -> tuple[Rank, int]:
    """The rank of a rollout, and the peak of its tensors above weights, gradients and inputs."""
    model = tiny.model(**{**SHAPE, **changes}).train()
    if checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    cell = Cell(model)
    no_gradients(cell)
    rollout, memory = [padded(AGENTS, WINDOW) for _ in range(horizon)], model.construct_memory(AGENTS)

    def call(*args: Any, **kwargs: Any) -> Any:
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            return cell(*args, **kwargs)

    alive = Alive()
    before = alive.bytes
    with alive:
        back_propagate(
            call,
            rollout,
            memory,
            torch.ones(horizon),
            [("key", t) for t in range(horizon)],
            lambda scalar, last: scalar.backward(),
            mode=mode,
        )
    wanted = rank(
        model.config,
        Sizes.of(model),
        mode=mode,
        horizon=horizon,
        half=half,
        checkpointing=checkpointing,
    )
    return wanted, alive.peak - before


def predict(wanted: Rank) -> int:
    found = planning.memory(wanted)
    ids = 2 * planning.INDEX * wanted.agents * wanted.horizon * (wanted.source + wanted.target)
    return found.copies + found.activations + found.logits + found.memories - ids


@pytest.mark.parametrize(
    ("precision", "changes"),
    [
        ("fp32", {}),
        ("bf16", {}),
        ("bf16", {"memory_attention": "split"}),
        ("bf16", {"variant": "shared"}),
        ("bf16", {"variant": "memformer"}),
        ("fp32", {"variant": "memformer_rezero"}),
        ("bf16", {"loss_impl": "plain"}),
        ("fp32", {"checkpointing": True}),
        ("bf16", {"checkpointing": True}),
        ("bf16", {"mode": "bptt", "horizon": 3, "vocab_size": 3000}),
        ("fp32", {"mode": "bptt", "horizon": 3, "checkpointing": True}),
        ("bf16", {"mode": "checkpoint", "horizon": 3}),
    ],
    ids=lambda value: (
        value if isinstance(value, str) else ",".join(f"{v}" for v in value.values()) or "plain"
    ),
)
def test_a_timestep_takes_what_was_predicted(precision: str, changes: dict[str, Any]) -> None:
    wanted, measured = measure(precision == "bf16", **changes)
    assert predict(wanted) == pytest.approx(measured, rel=0.1)


def test_replay_holds_one_timestep_and_bptt_them_all() -> None:
    config, sizes = tiny.model(**SHAPE).config, Sizes.of(tiny.model(**SHAPE))

    def activations(**changes: Any) -> int:
        return planning.memory(rank(config, sizes, **changes)).activations

    assert activations(horizon=12) < 1.2 * activations(horizon=2)
    assert activations(mode="bptt", horizon=12) > 5 * activations(mode="bptt", horizon=2)


def test_chunks_and_recomputation_shrink_activations_alone() -> None:
    model = tiny.model(**SHAPE)
    sizes = Sizes.of(model)

    def held(**changes: Any) -> planning.Memory:
        return planning.memory(rank(model.config, sizes, agents=6, **changes))

    whole, cut, again = held(), held(chunks=6), held(checkpointing=True)
    assert cut.activations == pytest.approx(whole.activations / 6, rel=0.01)
    assert again.activations < whole.activations / 2
    assert cut.held == again.held == whole.held
    assert cut.memories == whole.memories


def test_parts_add_up_to_a_timestep_and_the_peak_is_its_fullest_moment() -> None:
    model = tiny.model(**SHAPE)
    found = planning.memory(rank(model.config, Sizes.of(model), zero=Zero(3, 4, True, False, 1000)))
    assert sum(found.parts.values()) == found.moments["timestep"]
    assert found.peak == max(found.moments.values()) >= found.moments["update"]


def test_sizes_tell_apart_what_trains_and_what_autocast_copies() -> None:
    model = tiny.model(**SHAPE)
    everything = sum(p.numel() for p in model.parameters())
    model.model.shared.requires_grad_(False)
    sizes = Sizes.of(model)
    assert sizes.parameters == everything
    assert sizes.trainable == everything - 300 * 64
    assert not sizes.embedding_trains
    assert sizes.linear == sizes.trainable_linear < sizes.trainable
    assert sizes.largest == 256 * 64


@pytest.mark.parametrize(
    ("zero", "expected"),
    [
        ({}, (0, False, False, 500_000_000)),
        ({"stage": 2, "reduce_bucket_size": 2e8}, (2, False, False, 200_000_000)),
        ({"stage": 2, "offload_optimizer": {"device": "none"}}, (2, False, False, 500_000_000)),
        (
            {"stage": 3, "offload_optimizer": {"device": "cpu"}, "offload_param": {"device": "nvme"}},
            (3, True, True, 500_000_000),
        ),
    ],
)
def test_a_deepspeed_file_says_where_things_are(
    zero: dict[str, Any], expected: tuple[int, bool, bool, int]
) -> None:
    found = Zero.of({"zero_optimization": zero}, 8)
    assert (found.stage, found.offload_optimizer, found.offload_parameters, found.bucket) == expected
    assert found.share(17) == 3
