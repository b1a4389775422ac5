"""Time and traffic of a step: FLOPs at an assumed share of the peak, bytes over links (docs/planning.md)."""

from __future__ import annotations

from dataclasses import dataclass

from pretrain import flops
from pretrain.planning import WIDE, Rank
from tools.plan.cluster import Cluster
from tools.plan.operations import Operations

_ADAM = 7 * WIDE
"""AdamW reads weight, gradient and two moments of an element, and writes all but the gradient."""


@dataclass(frozen=True)
class Traffic:
    """Bytes that one rank sends in a step; each way, in rings."""

    gradients: float
    """Reduced once, after the last backward pass."""
    weights: float
    """Gathered after the update (stages 1 and 2)."""
    gathered: float
    """Gathered while the layers before are computed (stage 3)."""
    fetched: float
    """Over PCI Express, from parameters in the host's memory, while layers are computed."""
    offloaded: float
    """Over PCI Express: gradients to the host, weights back."""

    @property
    def network(self) -> float:
        """All that leaves the device for other ranks."""
        return self.gradients + self.weights + self.gathered


@dataclass(frozen=True)
class Step:
    """Seconds of one optimizer step."""

    computing: float
    """On the device, if it never waited for the host."""
    launching: float
    """On the host, starting kernels."""
    update: float
    overlapping: float
    """Transfers that run beside the computation."""
    waiting: float
    """Transfers that nothing runs beside."""

    @property
    def compute(self) -> float:
        """Host and device work side by side; the slower one counts."""
        return max(self.computing, self.launching)

    @property
    def exposed(self) -> float:
        """Transfers that the step waits for."""
        return self.waiting + max(0.0, self.overlapping - self.compute)

    @property
    def total(self) -> float:
        """The whole step."""
        return self.compute + self.update + self.exposed


def traffic(rank: Rank) -> Traffic:
    """What a step of `rank` sends: 2 (N-1)/N of what rings reduce and (N-1)/N of what they gather."""
    sizes, zero = rank.sizes, rank.zero
    once = (zero.world - 1) / zero.world
    # DeepSpeed sends gradients of `nn.Linear` in autocast's dtype, at stage 0 all in float32.
    narrow = rank.narrow if zero.stage else WIDE
    reduced = narrow * sizes.trainable_linear + WIDE * (sizes.trainable - sizes.trainable_linear)
    own = WIDE * zero.share(sizes.trainable)
    offloaded = 2 * own if zero.offload_optimizer else 0
    if zero.stage < 3:
        weights = once * WIDE * sizes.trainable if zero.stage else 0
        return Traffic(2 * once * reduced, weights, 0, 0, offloaded)
    whole = rank.narrow * sizes.linear + WIDE * (sizes.parameters - sizes.linear)
    passes = rank.chunks * weight_passes(rank)
    fetched = passes * WIDE * zero.share(sizes.parameters) if zero.offload_parameters else 0
    return Traffic(once * reduced, 0, passes * once * whole, fetched, offloaded)


def weight_passes(rank: Rank) -> int:
    """How often a chunk's rollout reads all weights: forward, backward, and the roll or the recomputation."""
    again = {"replay": rank.horizon - 1, "checkpoint": rank.horizon, "bptt": 0}[rank.mode]
    return 2 * rank.horizon + again


def executed(rank: Rank) -> float:
    """FLOPs of one rank's step, recomputation included."""
    config, source, target = rank.config, rank.source, rank.target
    segment = flops.executed(
        config,
        source,
        target,
        mode=rank.mode,
        horizon=rank.horizon,
        embedding_trains=rank.sizes.embedding_trains,
    )
    if rank.checkpointing:
        forward = flops.forward(config, source, target)
        segment += forward.encoder + forward.decoder
    return rank.agents * rank.horizon * segment


def useful(rank: Rank) -> float:
    """FLOPs of one rank's step without recomputation."""
    segment = flops.training(
        rank.config, rank.source, rank.target, embedding_trains=rank.sizes.embedding_trains
    )
    return rank.agents * rank.horizon * segment


def speed(rank: Rank, cluster: Cluster) -> float:
    """FLOP/s of a device: the assumed share of its peak, or what its memory can feed, whichever is less."""
    gpu, config = cluster.gpu, rank.config
    peak = gpu.half if rank.half else gpu.single
    tokens, width, inner = rank.rows * rank.source, config.d_model, config.encoder_ffn_dim
    moved = rank.narrow * (tokens * width + width * inner + tokens * inner)
    return min(cluster.utilization * peak, 2 * tokens * width * inner / moved * gpu.memory_bandwidth)


def step(rank: Rank, operations: Operations, cluster: Cluster) -> Step:
    """Seconds of one step, each part on its own link."""
    gpu, zero, sent = cluster.gpu, rank.zero, traffic(rank)
    moved = _ADAM * (zero.share(rank.sizes.trainable) if zero.stage else rank.sizes.trainable)
    return Step(
        computing=executed(rank) / speed(rank, cluster),
        launching=operations.of_step(rank) * cluster.launch,
        update=moved / (gpu.host_bandwidth if zero.offload_optimizer else gpu.memory_bandwidth),
        overlapping=sent.gathered / cluster.wire + sent.fetched / gpu.host_link,
        waiting=(sent.gradients + sent.weights) / cluster.wire + sent.offloaded / gpu.host_link,
    )


def validation_seconds(rank: Rank, operations: Operations, cluster: Cluster, timesteps: int) -> float:
    """One validation: every segment forward with memory, and again with memory reset."""
    forward = flops.forward(rank.config, rank.source, rank.target).total
    timestep = rank.agents * forward / speed(rank, cluster)
    return 2 * timesteps * max(timestep, operations.forward * cluster.launch)
