"""Memory replay: back-propagation through a rollout with one timestep's activations alive (Algorithm 1).

Two things are saved against the algorithm as printed: the first, gradient-free roll runs the encoder only,
since the decoder does not feed the memory, and the last timestep is not rolled, since its first run is
already the one with gradient. A rollout of T timesteps costs T gradient steps and T-1 encoder forwards.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from pretrain.dispatch.batch import Batch

Mode = Literal["replay", "checkpoint", "bptt"]
Key = tuple[int | str, ...]


class RecurrentModel(Protocol):
    """What replay asks of a model; every variant of `pretrain.model` has it."""

    def encode(self, input_ids: Tensor, attention_mask: Tensor, memory: Tensor, resets: Tensor) -> Any:
        """An output with `memory_states` `[A, slots, d_model]` and `gate`, which `token_loss` takes."""

    def token_loss(self, encoded: Any, decoder_input_ids: Tensor, labels: Tensor, per_row: bool) -> Tensor:
        """Summed cross-entropy, 0-d or `[A]`."""


class Cell(nn.Module):
    """One timestep of a recurrent model as one module call.

    ZeRO-3 gathers parameters around the forward of the outermost module, so everything that training
    computes goes through this forward.
    """

    model: RecurrentModel

    def __init__(self, model: RecurrentModel) -> None:
        super().__init__()
        self.model = model

    def forward(
        self, batch: Batch, memory: Tensor, key: Key, *, loss: bool = True, per_row: bool = False
    ) -> tuple[Tensor | None, Tensor, Tensor]:
        """Advance every agent one segment.

        Args:
            batch: the timestep of A agents.
            memory: `[A, slots, d_model]` float32, as it left the timestep before.
            key: what dropout is drawn from; equal keys draw equal masks.
            loss: also run the decoder.
            per_row: sum the loss of each agent alone.

        Returns:
            summed cross-entropy over the target tokens (float32, 0-d or `[A]`; None without `loss`);
            memory `[A, slots, d_model]` float32; mean gate (0-d, detached).
        """
        seed(*key, 0)
        encoded = self.model.encode(batch.input_ids, batch.attention_mask, memory, batch.memory_resets)
        gate = encoded.gate.detach().float().mean()
        if not loss:
            return None, encoded.memory_states, gate
        seed(*key, 1)
        nll = self.model.token_loss(encoded, batch.decoder_input_ids, batch.labels, per_row)
        return nll, encoded.memory_states, gate


class Backward(Protocol):
    """Back-propagates a scalar; `last` marks the final call of an optimizer step."""

    def __call__(self, scalar: Tensor, *, last: bool) -> None: ...


@dataclass(frozen=True)
class RolloutResult:
    """What one rollout of A agents over T timesteps left behind."""

    nll: Tensor
    """`[T]` float32: summed cross-entropy of each timestep; `[T, K]` for a cell with K loss parts."""
    memory: Tensor
    """`[A, slots, d_model]` float32, detached: where the next rollout starts."""
    memories: list[Tensor]
    """The T memories that entered the timesteps, detached."""
    memory_gradient: Tensor | None
    """`[A, slots, d_model]`: gradient with respect to the memory that entered the second timestep, the first
    one that the horizon reaches; None for a horizon of one."""
    gate: Tensor
    """0-d: mean gate over the timesteps."""

    def carried(self, overlap: int) -> Tensor:
        """Memory that the next rollout starts from when it repeats the last `overlap` timesteps."""
        return self.memories[-overlap] if overlap else self.memory


def seed(*key: int | str) -> None:
    """Seed torch's generators from a tuple of integers and words: equal keys, equal draws, on any machine."""
    digest = hashlib.blake2b(repr(key).encode(), digest_size=8).digest()
    torch.manual_seed(int.from_bytes(digest, "little") >> 1)


def loss_coefficients(target_tokens: Tensor, weights: Literal["uniform", "geometric"]) -> Tensor:
    """Factor of each timestep's summed cross-entropy, `[T]` float32 on the counts' device.

    Args:
        target_tokens: `[T]`, the global batch's number of targets at each timestep; `[T, K]`, and the factors
            too, for K loss parts that are each summed over things of their own.
        weights: `uniform` is the mean over all target tokens of the rollout; `geometric` weighs the
            timesteps' means by 2^t, normalized (the authors' code). A timestep without targets counts 0.
    """
    counts = target_tokens.to(torch.float32)
    if weights == "uniform":
        return (1.0 / counts.sum(dim=0).clamp(min=1)).expand(counts.shape)
    shares = torch.pow(2.0, torch.arange(1, len(counts) + 1, device=counts.device))
    shares = (shares / shares.sum()).view(-1, *[1] * (counts.dim() - 1))
    return shares / counts.clamp(min=1)


def back_propagate(
    cell: Callable[..., tuple[Tensor | None, Tensor, Tensor]],
    rollout: Sequence[Any],
    memory: Tensor,
    coefficients: Tensor,
    keys: Sequence[Key],
    backward: Backward,
    *,
    mode: Mode = "replay",
    last: bool = True,
) -> RolloutResult:
    """Accumulate the gradients of `sum_t coefficients[t] * nll_t` through all timesteps.

    Args:
        cell: a `Cell`, or a module with its forward whose loss may be `[K]`; or an engine around one.
        rollout: T batches of the same A agents.
        memory: `[A, slots, d_model]` float32, entering the first timestep; not back-propagated beyond.
        coefficients: `[T]` or `[T, K]` factors, see `loss_coefficients`.
        keys: T dropout keys.
        backward: called once per timestep (`replay`) or once (`checkpoint`, `bptt`).
        last: whether this rollout ends the optimizer step (agent chunks: only the last one does).
    """
    if mode == "replay":
        return _replay(cell, rollout, memory, coefficients, keys, backward, last)
    return _unroll(cell, rollout, memory, coefficients, keys, backward, last, recompute=mode == "checkpoint")


def _replay(
    cell: Callable[..., tuple[Tensor | None, Tensor, Tensor]],
    rollout: Sequence[Any],
    memory: Tensor,
    coefficients: Tensor,
    keys: Sequence[Key],
    backward: Backward,
    last: bool,
) -> RolloutResult:
    memories = [memory.detach()]
    with torch.no_grad():
        for batch, key in zip(rollout[:-1], keys[:-1], strict=True):
            memories.append(cell(batch, memories[-1], key, loss=False)[1])

    steps = len(rollout)
    nlls: list[Tensor] = [memory] * steps
    gates: list[Tensor] = []
    final = memory
    # Zeros, not nothing: a parameter that only feeds the outgoing memory must take part in every step, or
    # ZeRO would apply its last gradient again.
    gradient = torch.zeros_like(memory)
    second: Tensor | None = None
    for t in reversed(range(steps)):
        entering = memories[t].detach().requires_grad_()
        nll, leaving, gate = cell(rollout[t], entering, keys[t])
        assert nll is not None
        if t == steps - 1:
            final = leaving.detach()
        # One graph for both seeds: the decoder read the very memory that left this timestep.
        backward((coefficients[t] * nll).sum() + (leaving * gradient).sum(), last=last and t == 0)
        assert entering.grad is not None
        gradient = entering.grad
        if t == 1:
            second = gradient
        nlls[t] = nll.detach()
        gates.append(gate)
    return RolloutResult(torch.stack(nlls), final, memories, second, torch.stack(gates).mean())


def _unroll(
    cell: Callable[..., tuple[Tensor | None, Tensor, Tensor]],
    rollout: Sequence[Any],
    memory: Tensor,
    coefficients: Tensor,
    keys: Sequence[Key],
    backward: Backward,
    last: bool,
    recompute: bool,
) -> RolloutResult:
    memories = [memory.detach().requires_grad_()]
    nlls: list[Tensor] = []
    gates: list[Tensor] = []
    for batch, key in zip(rollout, keys, strict=True):
        if recompute:
            nll, leaving, gate = checkpoint(cell, batch, memories[-1], key, use_reentrant=False)
        else:
            nll, leaving, gate = cell(batch, memories[-1], key)
        nlls.append(nll)
        # A tensor of its own: the gradient kept on it is that of later timesteps, as in replay, without the
        # share of this timestep's decoder.
        memories.append(leaving.view_as(leaving))
        gates.append(gate)
    if len(rollout) > 1:
        memories[1].retain_grad()
    backward(
        sum(((c * nll).sum() for c, nll in zip(coefficients, nlls, strict=True)), memory.new_zeros(())),
        last=last,
    )
    return RolloutResult(
        torch.stack(nlls).detach(),
        memories[-1].detach(),
        [m.detach() for m in memories[:-1]],
        memories[1].grad if len(rollout) > 1 else None,
        torch.stack(gates).mean(),
    )
