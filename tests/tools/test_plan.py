"""`membart plan`: what it predicts is what real ranks take and send, and its advice works."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry
from typer.testing import CliRunner

from pretrain import engine, recipe
from pretrain.corpus.shardset import ShardSet
from pretrain.errors import UserError
from pretrain.planning import Rank, Sizes, Zero, memory
from pretrain.replay import Cell, back_propagate
from tests.support import processes, tiny
from tests.support.alive import padded
from tools.cli import app
from tools.plan import case, costs, operations
from tools.plan.cluster import GPUS, cluster

WORLD, AGENTS, WINDOW, HORIZON, BUCKET = 2, 2, 48, 2, 40_000
SHAPE: dict[str, Any] = {
    "d_model": 64,
    "encoder_ffn_dim": 256,
    "decoder_ffn_dim": 256,
    "encoder_layers": 2,
    "decoder_layers": 1,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "memory_len": 12,
    "vocab_size": 300,
}
CASES = (("zero0", "fp32"), ("zero1", "bf16"), ("zero2_offload", "fp32"), ("zero3", "bf16"))


def rank(zero: Zero, precision: str, **changes: Any) -> Rank:
    model = tiny.model(**SHAPE)
    fields: dict[str, Any] = {
        "agents": AGENTS,
        "chunks": 1,
        "source": WINDOW,
        "target": WINDOW,
        "horizon": HORIZON,
        "mode": "replay",
        "half": precision == "bf16",
        "checkpointing": False,
    }
    return Rank(model.config, Sizes.of(model), zero, **{**fields, **changes})


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Rank, dict[str, Any]]]:
    """Ranks as they are planned, and what two real ranks took and sent, by configuration."""
    folder, cases, ranks = tmp_path_factory.mktemp("plan"), [], []
    for name, precision in CASES:
        config = engine.load_config(name)
        # Small models: a bucket that does not dwarf them, and no weights too small to be cut up.
        config["zero_optimization"] |= {"reduce_bucket_size": BUCKET}
        if name == "zero3":
            config["zero_optimization"] |= {"stage3_param_persistence_threshold": 0}
        file = folder / f"{name}.json"
        file.write_text(json.dumps(config))
        ranks.append(rank(Zero.of(config, WORLD), precision))
        cases.append(
            {
                "deepspeed": str(file),
                "precision": precision,
                "agents": AGENTS,
                "window": WINDOW,
                "horizon": HORIZON,
                "shape": SHAPE,
            }
        )
    script = str(Path(__file__).with_name("plan_ranks.py"))
    lines = processes.run([script, json.dumps(cases)], WORLD)[0].splitlines()
    found = [json.loads(line) for line in lines if line.startswith("{")]
    return {name: both for (name, _), *both in zip(CASES, ranks, found, strict=True)}  # type: ignore[misc]


@pytest.mark.parametrize("name", [name for name, _ in CASES])
def test_a_rank_takes_the_memory_that_was_predicted(
    name: str, measured: dict[str, tuple[Rank, dict[str, Any]]]
) -> None:
    planned, found = measured[name]
    predicted = memory(planned)
    # On a CPU device and host are one, and the optimizer has its workspace there only in the update.
    work = 2 * 4 * planned.zero.share(planned.sizes.trainable) if planned.zero.offload_optimizer else 0
    moments = {moment: size + predicted.host for moment, size in predicted.moments.items()}
    assert moments["timestep"] - work == pytest.approx(found["timestep"], rel=0.1)
    assert moments["reduction"] - work == pytest.approx(found["reduction"], rel=0.1)
    if planned.zero.stage:  # without ZeRO a GPU updates all weights at once, a CPU one after the other
        assert moments["update"] == pytest.approx(found["update"], rel=0.1)


@pytest.mark.parametrize("name", [name for name, _ in CASES])
def test_a_rank_sends_the_bytes_that_were_predicted(
    name: str, measured: dict[str, tuple[Rank, dict[str, Any]]]
) -> None:
    planned, found = measured[name]
    predicted, carried = costs.traffic(planned), found["collectives"]
    once = (WORLD - 1) / WORLD
    gathered = once * carried.get("_allgather_base_", 0)
    if planned.zero.stage == 3:
        assert (WORLD - 1) * carried["_reduce_scatter_base_"] == pytest.approx(predicted.gradients, rel=0.01)
        # What is still there need not be gathered again: the prediction is the most that can be.
        assert gathered < predicted.gathered < 1.25 * gathered
    else:
        assert 2 * once * carried["allreduce_"] == pytest.approx(predicted.gradients, rel=0.01)
        assert gathered == pytest.approx(predicted.weights, rel=0.01)


class Flops(TorchDispatchMode):
    """torch's own count of matrix products; its `FlopCounterMode` fails on layers that are recomputed."""

    def __init__(self) -> None:
        super().__init__()
        self.total = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        # its table has addmm, but not the form in place that the chunked loss uses
        known = torch.ops.aten.addmm if func.overloadpacket is torch.ops.aten.addmm_ else func.overloadpacket
        if known in flop_registry:
            self.total += flop_registry[known](*args, **(kwargs or {}), out_val=made)
        return made


@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_step_executes_the_flops_that_a_profiler_counts(checkpointing: bool) -> None:
    model = tiny.model(**SHAPE, attn_implementation="eager").train()
    if checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})

    with Flops() as counted:
        back_propagate(
            Cell(model),
            [padded(AGENTS, WINDOW) for _ in range(HORIZON)],
            model.construct_memory(AGENTS),
            torch.ones(HORIZON),
            [("key", t) for t in range(HORIZON)],
            lambda scalar, last: scalar.backward(),
        )
    planned = rank(Zero.of({}, 1), "fp32", checkpointing=checkpointing)
    assert costs.executed(planned) == pytest.approx(counted.total, rel=0.02)


def test_operations_add_up_to_any_depth() -> None:
    config = tiny.model(**{**SHAPE, "encoder_layers": 4, "decoder_layers": 3}).config
    found = operations.count(config, half=True)
    assert (found.roll, found.forward, found.backward) == operations.counted(config, True, 4, 3)
    assert found.backward > found.forward > found.roll > 0


def test_starting_kernels_takes_the_time_where_tokens_are_few() -> None:
    machines = cluster("h100", 1, 2)
    started = operations.Operations(100, 200, 300)
    few = rank(Zero.of({}, 2), "bf16")
    assert started.of_step(few) == HORIZON * 500 + (HORIZON - 1) * 100
    assert started.of_step(rank(Zero.of({}, 2), "bf16", chunks=2)) == 2 * started.of_step(few)
    step = costs.step(few, started, machines)
    assert step.compute == step.launching > step.computing
    many = costs.step(rank(Zero.of({}, 2), "bf16", agents=100_000), started, machines)
    assert many.compute == many.computing > many.launching


def test_a_ring_is_as_fast_as_its_slowest_link() -> None:
    assert cluster("h100", 1, 8, link_utilization=1).wire == GPUS["h100"].link
    assert cluster("h100", 8, 8, link_utilization=1).wire == 8 * GPUS["h100"].adapter
    assert cluster("h100", 8, 8, link_utilization=0.5, network=10e9).wire == 5e9
    assert cluster("h100", 8, 8, network=1e15).wire == cluster("h100", 1, 8).wire


def test_transfers_hide_behind_computation_only_at_stage_3() -> None:
    machines = cluster("h100", 2, 1, network=1e9, link_utilization=1)
    none, zero = operations.Operations(0, 0, 0), {"stage": 3}

    def step(**changes: Any) -> costs.Step:
        return costs.step(rank(Zero.of({"zero_optimization": zero}, 2), "bf16", **changes), none, machines)

    hidden, bare = step(agents=10_000), step(agents=1)
    assert hidden.exposed == hidden.waiting
    assert bare.exposed == bare.waiting + bare.overlapping - bare.compute > bare.waiting
    zero = {"stage": 1}
    assert step(agents=10_000).overlapping == 0
    assert step(agents=10_000).exposed == step(agents=1).exposed > 0


def planned(*words: str) -> dict[str, Any]:
    made = CliRunner().invoke(app, ["plan", *words, "--json"])
    assert made.exit_code == 0, made.output
    return dict(json.loads(made.output))


def test_the_large_recipe_on_eight_nodes_in_words() -> None:
    made = CliRunner().invoke(
        app, ["plan", "membart_large", "data.lanes=64", "--nodes", "8", "--gpu", "h200"]
    )
    assert made.exit_code == 0
    assert "membart_large on 8 x 8 H200 SXM 141 GB: 64 ranks, 1 agent each" in made.output
    assert "zero2 fits: " in made.output
    for label in (
        "activations",
        "logits",
        "fullest",
        "network",
        "hides behind nothing",
        "GPU-hours",
        "reading",
    ):
        assert label in made.output


def test_figures_agree_with_each_other() -> None:
    found = planned("membart_base", "train.steps=1000", "validation.every=0", "--gpus-per-node", "4")
    step, run, storage = found["step"], found["run"], found["storage"]
    tokens = 32 * 6 * 512
    assert run["tokens_per_second"] * step["total"] == pytest.approx(tokens)
    assert run["gpu_hours"] == pytest.approx(4 * 24 * run["days"])
    assert 1000 * step["total"] == pytest.approx(86400 * run["days"] * (1 - run["validation_share"]))
    # keep_last=3, the one being written, no multiple of keep_every=10000
    assert storage["kept"] == 4
    assert storage["checkpoint"] == 4 * (182_589_697 + 2 * 142_410_241 + 32 * 64 * 768)
    # 382 new tokens of a segment, two bytes each
    assert storage["read_bandwidth"] * step["total"] == 32 * 6 * 382 * 2
    assert set(found["memory"]) == {"zero0", "zero1", "zero2", "zero3"}
    assert found["fits"]
    assert found["changes"] is None


@pytest.mark.parametrize(
    ("words", "settings"),
    [
        (["membart_base", "--gpus-per-node", "1", "data.lanes=512"], 1),
        (["membart_large", "--memory", "6"], 2),
        (["membart_large", "--memory", "12", "--zero", "0"], 1),
    ],
)
def test_what_does_not_fit_is_said_with_a_change_that_does(words: list[str], settings: int) -> None:
    recipe_name, *more = words
    found = planned(recipe_name, *more)
    assert not found["fits"]
    assert len(found["changes"]) == settings
    overrides = [word for word in more if "=" in word]
    options = [word for word in more if word not in overrides]
    if any(change.startswith("train.deepspeed=") for change in found["changes"]) and "--zero" in options:
        options = options[: options.index("--zero")]
    again = planned(recipe_name, *overrides, *found["changes"], *options)
    assert again["fits"]
    text = CliRunner().invoke(app, ["plan", *words]).output
    assert "does not fit" in text
    assert f"the smallest change that fits: {' '.join(found['changes'])}" in text


def test_more_nodes_where_no_setting_is_enough() -> None:
    words = ["membart_base", "data.lanes=4096", "--gpus-per-node", "1", "--memory", "30"]
    nodes, *settings = planned(*words)["changes"]
    assert nodes.startswith("--nodes ")
    assert planned(*words, *nodes.split(), *settings)["fits"]
    hopeless = planned("membart_large", "--memory", "0.1")
    assert hopeless["changes"] is None
    assert not hopeless["fits"]


def test_shards_on_this_machine_are_asked_and_others_are_assumed(tmp_path: Path) -> None:
    shards = tiny.shard_set(tmp_path)
    machines = cluster("h100", 1, 2)
    known = case.subject(recipe.parse(tiny.recipe(shards, tmp_path), "test"), machines)
    assert known.notes == ()
    assert known.case.rank.source == 32
    assert known.case.rank.config.vocab_size == ShardSet.open(shards).vocab_size
    assert known.token_bytes > 2  # the tar around the tokens
    elsewhere = case.subject(recipe.parse(tiny.recipe(tmp_path / "far", tmp_path), "test"), machines)
    assert f"{tmp_path / 'far'} is not on this machine" in elsewhere.notes
    assert elsewhere.case.rank.source == 512


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["membart_base", "--gpu", "h1000"], "--gpu h1000 is unknown"),
        (["membart_base", "--nodes", "3"], "24 ranks do not divide data.lanes=32"),
        (["membart_basis"], "did you mean 'membart_base'"),
        (["membart_base", "train.deepspeed=zero7"], "no such DeepSpeed configuration"),
        (["membart_base", "data.window=2000"], "segments of 2000 tokens do not fit 1024 positions"),
        (
            ["membart_base", "model.config.d_model=770"],
            "model.config: embed_dim must be divisible by num_heads",
        ),
        (["membart_base", "model.config.d_modell=768"], "model.config has no field d_modell"),
    ],
)
def test_mistakes(words: list[str], expected: str) -> None:
    made = CliRunner().invoke(app, ["plan", *words])
    assert isinstance(made.exception, UserError)
    assert expected in str(made.exception)
