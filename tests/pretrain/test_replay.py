"""Memory replay gives the gradients of plain back-propagation through time."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from pretrain.dispatch.batch import Batch
from pretrain.replay import Cell, Mode, RolloutResult, back_propagate, loss_coefficients
from tests.support import tiny


class Counted(Cell):
    """A cell that counts its calls."""

    def __init__(self, *arguments: object) -> None:
        super().__init__(*arguments)  # type: ignore[arg-type]
        self.encoded = self.decoded = 0

    def forward(self, *arguments: object, loss: bool = True, **options: object) -> tuple:  # type: ignore[override,type-arg]
        self.encoded += 1
        self.decoded += loss
        return super().forward(*arguments, loss=loss, **options)  # type: ignore[arg-type]


def gradients(
    rollout: list[Batch],
    mode: Mode,
    weights: str = "geometric",
    chunks: int = 1,
    detached: bool = False,
    **config: object,
) -> tuple[dict[str, Tensor], list[RolloutResult], Counted]:
    """All parameter gradients in float64, dropout on, in a fixed random state."""
    cell = Counted(tiny.model(**config).double().train())
    memory = torch.randn(
        len(rollout[0].agent), 4, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(1)
    )
    counts = torch.tensor([batch.target_tokens for batch in rollout])
    coefficients = loss_coefficients(counts, weights).double()  # type: ignore[arg-type]
    size = len(memory) // chunks
    results = [
        back_propagate(
            cell,
            [batch.rows(slice(i * size, (i + 1) * size)) for batch in rollout],
            memory[i * size : (i + 1) * size],
            coefficients,
            [("seed", i, t) for t in range(len(rollout))],
            lambda scalar, last: scalar.backward(),
            mode=mode,
        )
        for i in range(chunks)
    ]
    return {name: p.grad.clone() for name, p in cell.named_parameters() if p.grad is not None}, results, cell


def worst(found: dict[str, Tensor], expected: dict[str, Tensor]) -> float:
    """Largest difference, relative to the largest gradient of its parameter.

    Key biases, whose gradient is zero but for rounding, are measured against 1e-6 of the largest of all.
    """
    assert found.keys() == expected.keys()
    floor = 1e-6 * max(float(e.abs().max()) for e in expected.values())
    return max(
        float((found[n] - e).abs().max() / e.abs().max().clamp(min=floor)) for n, e in expected.items()
    )


@pytest.mark.parametrize(
    ("horizon", "weights"), [(1, "uniform"), (2, "geometric"), (7, "uniform"), (7, "geometric")]
)
def test_replay_equals_bptt_with_dropout_resets_padding_and_a_dry_agent(horizon: int, weights: str) -> None:
    rollout = tiny.rollout(horizon, agents=4)
    expected, (plain,), _ = gradients(rollout, "bptt", weights, dropout=0.1)
    for mode in ("replay", "checkpoint"):
        found, (result,), _ = gradients(rollout, mode, weights, dropout=0.1)  # type: ignore[arg-type]
        assert worst(found, expected) < 1e-10
        assert torch.allclose(result.memory, plain.memory, rtol=1e-10)
        assert torch.allclose(result.nll, plain.nll, rtol=1e-12)
        if horizon > 1:
            assert result.memory_gradient is not None
            assert plain.memory_gradient is not None
            assert torch.allclose(result.memory_gradient, plain.memory_gradient, atol=1e-10)


@pytest.mark.parametrize("variant", ["shared", "memformer", "memformer_rezero"])
def test_replay_serves_every_model_of_the_protocol(variant: str) -> None:
    rollout = tiny.rollout(3, agents=2)
    expected, _, _ = gradients(rollout, "bptt", variant=variant, dropout=0.1)
    found, _, _ = gradients(rollout, "replay", variant=variant, dropout=0.1)
    assert worst(found, expected) < 1e-10


def test_decoder_runs_once_per_timestep_and_the_last_timestep_is_not_rolled() -> None:
    _, _, cell = gradients(tiny.rollout(6, agents=2), "replay")
    assert (cell.decoded, cell.encoded) == (6, 11)


def test_agent_chunks_add_up_to_the_whole_batch() -> None:
    rollout = tiny.rollout(4, agents=4)
    whole, _, _ = gradients(rollout, "replay")
    chunked, results, _ = gradients(rollout, "replay", chunks=2)
    assert worst(chunked, whole) < 1e-10
    assert len(results) == 2


def test_a_reset_cuts_the_gradient_of_its_agent_alone() -> None:
    rollout = tiny.rollout(2, agents=3)
    rollout[1].memory_resets[:] = torch.tensor([0, 1, 0])
    _, (result,), _ = gradients(rollout, "replay")
    assert result.memory_gradient is not None
    norms = result.memory_gradient.flatten(1).norm(dim=1)
    assert norms[1] == 0
    assert norms[0] > 0


def test_gradient_through_memory_is_part_of_the_sum() -> None:
    """Cutting the chain must be seen: the same timesteps as rollouts of one give other gradients."""
    rollout = tiny.rollout(3, agents=2)
    for batch in rollout:
        batch.memory_resets.zero_()
    joined, (result,), _ = gradients(rollout, "replay", "uniform")
    cell = Counted(tiny.model().double().train())
    coefficients = loss_coefficients(torch.tensor([b.target_tokens for b in rollout]), "uniform").double()
    for t, batch in enumerate(rollout):
        back_propagate(
            cell, [batch], result.memories[t], coefficients[t : t + 1], [("x",)], lambda s, last: s.backward()
        )
    cut = {name: p.grad for name, p in cell.named_parameters() if p.grad is not None}
    assert worst(cut, joined) > 1e-3  # type: ignore[arg-type]


def test_a_rollout_without_targets_gives_zero_gradients_and_no_nan() -> None:
    rollout = tiny.rollout(2, agents=2)
    for batch in rollout:
        batch.labels.fill_(-100)
    empty = [batch.rows(slice(None)) for batch in rollout]
    found, (result,), _ = gradients(empty, "replay")
    assert all(torch.equal(g, torch.zeros_like(g)) for g in found.values())
    assert torch.isfinite(result.memory).all()


def test_overlapping_rollouts_start_from_the_memory_that_entered_the_repeated_timestep() -> None:
    _, (result,), _ = gradients(tiny.rollout(4, agents=2), "replay")
    assert torch.equal(result.carried(0), result.memory)
    assert torch.equal(result.carried(1), result.memories[3])


def test_loss_coefficients() -> None:
    counts = torch.tensor([0, 10, 30])
    assert loss_coefficients(counts, "uniform").tolist() == pytest.approx([1 / 40] * 3)
    assert loss_coefficients(counts, "geometric").tolist() == pytest.approx(
        [2 / 14, 4 / 14 / 10, 8 / 14 / 30]
    )
