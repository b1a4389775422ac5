"""The machines a plan is made for: figures of the makers' data sheets, and the assumptions beside them."""

from __future__ import annotations

from dataclasses import dataclass, replace

from pretrain import flops
from pretrain.errors import UserError

GIGA = 1e9


@dataclass(frozen=True)
class Gpu:
    """One device and its place in the maker's own eight-GPU node; bytes, bytes a second one way, FLOP/s."""

    name: str
    half: float
    """Dense bfloat16."""
    single: float
    """float32 outside the tensor cores, which is what torch uses unless told otherwise."""
    memory: float
    memory_bandwidth: float
    link: float
    """NVLink to the other devices of the node."""
    adapter: float
    """The network adapter that the node has for this device."""
    host_link: float
    """PCI Express to the host."""
    host_bandwidth: float
    """An eighth of the host's memory bandwidth."""


GPUS: dict[str, Gpu] = {
    "h100": Gpu(
        "H100 SXM 80 GB",
        half=flops.peak_of("NVIDIA H100 80GB HBM3"),
        single=67e12,
        memory=80e9,
        memory_bandwidth=3.35e12,
        link=450e9,
        adapter=50e9,
        host_link=64e9,
        host_bandwidth=76.8e9,
    ),
    "h200": Gpu(
        "H200 SXM 141 GB",
        half=flops.peak_of("NVIDIA H200"),
        single=67e12,
        memory=141e9,
        memory_bandwidth=4.8e12,
        link=450e9,
        adapter=50e9,
        host_link=64e9,
        host_bandwidth=76.8e9,
    ),
    "a100-80": Gpu(
        "A100 SXM 80 GB",
        half=flops.peak_of("NVIDIA A100-SXM4-80GB"),
        single=19.5e12,
        memory=80e9,
        memory_bandwidth=2.039e12,
        link=300e9,
        adapter=25e9,
        host_link=32e9,
        host_bandwidth=51.2e9,
    ),
}


@dataclass(frozen=True)
class Cluster:
    """Nodes of one kind."""

    gpu: Gpu
    nodes: int
    gpus_per_node: int
    network: float
    """Bytes a second into a node, all its adapters together, and as many out of it."""
    storage: float
    """Bytes a second that the shared storage writes for the whole job."""
    utilization: float
    """Share of the peak that matrix products reach in training, recomputation counted."""
    link_utilization: float
    """Share of the links' data sheet that collectives reach."""
    launch: float
    """Seconds between two kernels that the host starts."""
    headroom: float
    """Share of device memory kept free: CUDA context, libraries, fragmentation."""

    @property
    def world(self) -> int:
        """Ranks, one a device."""
        return self.nodes * self.gpus_per_node

    @property
    def room(self) -> float:
        """Bytes of a device that tensors may take."""
        return self.gpu.memory * (1 - self.headroom)

    @property
    def wire(self) -> float:
        """Bytes a second at which one rank's data pass a ring over all ranks.

        Between nodes as many rings run side by side as a node has adapters: its ranks share all of them.
        """
        slowest = self.gpu.link if self.nodes == 1 else min(self.gpu.link, self.network)
        return slowest * self.link_utilization

    @property
    def title(self) -> str:
        """For people: `8 x 4 H100 SXM 80 GB`."""
        return f"{self.nodes} x {self.gpus_per_node} {self.gpu.name}"


def cluster(
    gpu: str,
    nodes: int,
    gpus_per_node: int,
    *,
    peak: float | None = None,
    memory: float | None = None,
    link: float | None = None,
    network: float | None = None,
    storage: float = 1.25e9,
    utilization: float = 0.35,
    link_utilization: float = 0.8,
    launch: float = 6e-6,
    headroom: float = 0.1,
) -> Cluster:
    """The named devices, with figures of one's own where given (bytes, bytes a second, FLOP/s).

    Raises:
        UserError: an unknown name.
    """
    if gpu not in GPUS:
        raise UserError(f"--gpu {gpu} is unknown", mend=f"one of: {', '.join(GPUS)}")
    known = GPUS[gpu]
    return Cluster(
        gpu=replace(
            known,
            half=peak or known.half,
            single=peak or known.single,
            memory=memory or known.memory,
            link=link or known.link,
        ),
        nodes=nodes,
        gpus_per_node=gpus_per_node,
        network=network or gpus_per_node * known.adapter,
        storage=storage,
        utilization=utilization,
        link_utilization=link_utilization,
        launch=launch,
        headroom=headroom,
    )
