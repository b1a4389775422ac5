"""The plan in figures, and as a page to read."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

from pretrain import preflight
from pretrain.planning import Memory
from tools.plan import costs
from tools.plan.case import Case, Subject, remedy, stages
from tools.plan.cluster import GIGA

GIBI = 2**30
DAY, HOUR = 86400, 3600


@dataclass(frozen=True)
class Run:
    """The whole training."""

    tokens_per_second: float
    """Target tokens of all ranks, if every segment is full."""
    model_flops_utilization: float
    """Useful FLOPs as a share of the peak."""
    steps: int
    validation_share: float
    """Of the time."""
    days: float
    gpu_hours: float


@dataclass(frozen=True)
class Storage:
    """What the run asks of the shared storage, in bytes."""

    checkpoint: int
    kept: int
    """Most checkpoints at a time: at the end of the run, the one being written included."""
    total: int
    write_seconds: float
    interval_seconds: float
    """Between two checkpoints."""
    read_bandwidth: float
    """Bytes of tokens a second, all ranks together."""
    host_per_node: int
    """Memory of a machine that offloading takes, and the copy of the state that a save writes from."""


@dataclass(frozen=True)
class Plan:
    """All that `membart plan` tells."""

    subject: Subject
    cases: list[Case]
    """At every ZeRO stage."""
    traffic: costs.Traffic
    run: Run
    storage: Storage
    remedy: Case | None
    """Where the chosen case does not fit: the smallest change that does."""

    @property
    def case(self) -> Case:
        """The one that was asked for."""
        return self.subject.case

    @property
    def step(self) -> costs.Step:
        """Its step."""
        return self.case.step

    def as_dict(self) -> dict[str, Any]:
        """For machines: bytes, seconds, FLOP/s."""
        case = self.case
        return {
            "recipe": self.subject.recipe.name,
            "cluster": asdict(case.cluster),
            "deepspeed": case.deepspeed,
            "fits": case.fits,
            "room": case.cluster.room,
            "changes": None if self.remedy is None else list(self.remedy.changes),
            "memory": {other.deepspeed: _memory(other.memory) for other in self.cases},
            "step": {
                **asdict(self.step),
                "exposed": self.step.exposed,
                "hides": self.step.overlapping <= self.step.compute,
                "total": self.step.total,
            },
            "traffic": asdict(self.traffic),
            "run": asdict(self.run),
            "storage": asdict(self.storage),
            "assumed": list(self.subject.notes),
        }

    @property
    def text(self) -> str:
        """For people: a page of lines."""
        return "\n".join(_lines(self))


def plan(subject: Subject) -> Plan:
    """Work out everything about `subject`."""
    case = subject.case
    step = case.step
    return Plan(
        subject=subject,
        cases=stages(case),
        traffic=costs.traffic(case.rank),
        run=_run(subject, step.total),
        storage=_storage(subject, step.total),
        remedy=None if case.fits else remedy(case, subject.recipe.lanes),
    )


def _run(subject: Subject, seconds: float) -> Run:
    recipe, rank, cluster = subject.recipe, subject.case.rank, subject.case.cluster
    steps, every = recipe.train.steps, recipe.validation.every
    # One at the end, and those before it.
    validations = 1 + ((steps - 1) // every if every else 0)
    validating = validations * costs.validation_seconds(
        rank, subject.case.operations, cluster, recipe.validation.max_timesteps
    )
    total = steps * seconds + validating
    peak = cluster.gpu.half if rank.half else cluster.gpu.single
    return Run(
        tokens_per_second=recipe.agents * rank.horizon * rank.target / seconds,
        model_flops_utilization=costs.useful(rank) / seconds / peak,
        steps=steps,
        validation_share=validating / total,
        days=total / DAY,
        gpu_hours=total / HOUR * cluster.world,
    )


def _storage(subject: Subject, seconds: float) -> Storage:
    recipe, rank, cluster = subject.recipe, subject.case.rank, subject.case.cluster
    policy, checkpoint = recipe.checkpoint, preflight.checkpoint_bytes(subject.outline)
    landmarks = recipe.train.steps // policy.keep_every if policy.keep_every else 0
    kept = policy.keep_last + landmarks + bool(recipe.validation.keep_best) + 1
    segments = recipe.agents * (rank.horizon - recipe.replay.time_overlap)
    return Storage(
        checkpoint=checkpoint,
        kept=kept,
        total=kept * checkpoint,
        write_seconds=checkpoint / cluster.storage,
        interval_seconds=policy.every * seconds,
        read_bandwidth=segments * subject.outline.window.step * subject.token_bytes / seconds,
        host_per_node=cluster.gpus_per_node * subject.case.memory.host + checkpoint // cluster.nodes,
    )


def _memory(memory: Memory) -> dict[str, Any]:
    return {**asdict(memory), "moments": memory.moments, "peak": memory.peak}


def _lines(plan: Plan) -> Iterator[str]:
    case, recipe, cluster = plan.case, plan.subject.recipe, plan.case.cluster
    rank = case.rank
    chunks = f" in {rank.chunks} chunks" if rank.chunks > 1 else ""
    layout = f"{_count(cluster.world, 'rank')}, {_count(rank.agents, 'agent')} each{chunks}"
    yield f"{recipe.name} on {cluster.title}: {layout}"
    if plan.subject.notes:
        yield f"assumed: {'; '.join(plan.subject.notes)}"
    yield ""
    yield from _memory_lines(plan)
    yield ""
    yield from _fit_lines(plan)
    yield ""
    yield from _time_lines(plan)
    yield ""
    yield from _storage_lines(plan)
    yield ""
    yield from _assumption_lines(plan)


def _memory_lines(plan: Plan) -> Iterator[str]:
    cases = plan.cases
    names = [
        f"*{case.deepspeed}" if case.deepspeed == plan.case.deepspeed else case.deepspeed for case in cases
    ]
    widths = [max(8, len(name) + 2) for name in names]

    def row(label: str, cells: list[str]) -> str:
        return f"{label:<22}" + "".join(f"{cell:>{width}}" for cell, width in zip(cells, widths, strict=True))

    yield row("GiB of a GPU", names)
    held = [case.memory for case in cases]
    for part in held[0].parts:
        if any(memory.parts[part] for memory in held):
            yield row(part, [f"{memory.parts[part] / GIBI:.2f}" for memory in held])
    for moment in held[0].moments:
        label = "a timestep, together" if moment == "timestep" else f"while {_DOING[moment]}"
        yield row(label, [f"{memory.moments[moment] / GIBI:.2f}" for memory in held])
    yield row("fullest", [f"{memory.peak / GIBI:.2f}" for memory in held])
    yield row("fits", ["yes" if case.fits else "no" for case in cases])
    yield row("GB sent in a step", [f"{costs.traffic(case.rank).network / GIGA:.2f}" for case in cases])
    yield row("ms of a step", [f"{1e3 * case.step.total:,.0f}" for case in cases])


_DOING = {"reduction": "reducing", "update": "updating", "validation": "validating"}


def _fit_lines(plan: Plan) -> Iterator[str]:
    case, room = plan.case, plan.case.cluster.room / GIBI
    needed = case.memory.peak / GIBI
    verb, left = ("fits", room - needed) if case.fits else ("does not fit", needed - room)
    more = "left" if case.fits else "too much"
    yield f"{case.deepspeed} {verb}: {needed:.2f} of {room:.2f} GiB, {left:.2f} {more}"
    if case.fits:
        return
    if plan.remedy is None:
        yield "no change of settings or number of nodes makes it fit: take a smaller model or window"
        return
    slower = plan.remedy.step.total / plan.step.total - 1
    yield f"the smallest change that fits: {' '.join(plan.remedy.changes)}"
    yield f"    {plan.remedy.memory.peak / GIBI:.2f} GiB, a step takes {_signed(slower)} time"


def _signed(share: float) -> str:
    return "the same" if abs(share) < 0.005 else f"{abs(share):.0%} {'more' if share > 0 else 'less'}"


def _time_lines(plan: Plan) -> Iterator[str]:
    step, sent, run, cluster = plan.step, plan.traffic, plan.run, plan.case.cluster
    yield _row("a step", f"{_seconds(step.total)}: {_seconds(step.compute)} of computation")
    if step.launching > step.computing:
        working = _seconds(step.computing)
        yield _row("", f"the GPU works {working} of it, else it waits for the host to start kernels:")
        yield _row("", "more agents a GPU, fewer GPUs or train.compile=true use it better")
    if cluster.world > 1:
        yield _row("network", f"{_bytes(sent.network)} out of each GPU at {cluster.wire / GIGA:.0f} GB/s")
    if sent.gathered:
        fate = "hides" if step.overlapping <= step.compute else "does not hide"
        yield _row("", f"weights, {_bytes(sent.gathered)}: {_seconds(step.overlapping)}, {fate} behind it")
    if step.waiting:
        share = step.waiting / step.total
        yield _row(
            "", f"{_waiting(plan)}: {_seconds(step.waiting)}, hides behind nothing, {share:.1%} of a step"
        )
    yield _row(
        "speed", f"{run.tokens_per_second:,.0f} target tokens/s, MFU {run.model_flops_utilization:.1%}"
    )
    yield _row(
        "the run",
        f"{run.steps:,} steps in {_seconds(run.days * DAY)}, {run.gpu_hours:,.1f} GPU-hours, "
        f"{run.validation_share:.1%} of it validation",
    )


def _waiting(plan: Plan) -> str:
    sent = plan.traffic
    parts = {"gradients": sent.gradients, "new weights": sent.weights, "to the host and back": sent.offloaded}
    return ", ".join(f"{name} {_bytes(size)}" for name, size in parts.items() if size)


def _storage_lines(plan: Plan) -> Iterator[str]:
    storage = plan.storage
    yield _row(
        "checkpoints",
        f"{_bytes(storage.checkpoint)} each, {storage.kept} at the end: {_bytes(storage.total)}",
    )
    share = storage.write_seconds / storage.interval_seconds
    verdict = "beside training" if share < 1 else "too slow: saves come sooner than they are written"
    yield _row(
        "",
        f"written in {_seconds(storage.write_seconds)} every {_seconds(storage.interval_seconds)}, {verdict}",
    )
    yield _row("reading", f"{_bytes(storage.read_bandwidth)}/s of tokens, all nodes together")
    yield _row(
        "host memory", f"{_bytes(storage.host_per_node)} of a node, the copy that a save writes from included"
    )


def _assumption_lines(plan: Plan) -> Iterator[str]:
    cluster, rank = plan.case.cluster, plan.case.rank
    gpu, peak = cluster.gpu, cluster.gpu.half if rank.half else cluster.gpu.single
    links = f"{gpu.link / GIGA:.0f} GB/s NVLink"
    if cluster.nodes > 1:
        links += f" and {cluster.network / GIGA:.4g} GB/s a node"
    yield f"Times are estimates from {cluster.utilization:.0%} of {peak / 1e12:.0f} TFLOP/s,"
    yield f"{cluster.link_utilization:.0%} of {links}, {1e6 * cluster.launch:.1f} us a kernel,"
    yield f"{cluster.storage / GIGA:.2f} GB/s storage, and segments that are all full."
    free = f"{cluster.headroom:.0%} of {gpu.memory / GIGA:,.4g} GB"
    yield f"{free} are left to context, libraries and fragmentation."


def _count(number: int, thing: str) -> str:
    return f"{number:,} {thing}" + ("" if number == 1 else "s")


def _row(label: str, text: str) -> str:
    return f"{label:<14}{text}"


def _bytes(size: float) -> str:
    for unit, scale in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6)):
        if size >= scale:
            return f"{size / scale:.2f} {unit}"
    return f"{size / 1e3:.1f} kB"


def _seconds(seconds: float) -> str:
    if seconds >= 2 * DAY:
        return f"{seconds / DAY:.1f} days"
    if seconds >= 2 * HOUR:
        return f"{seconds / HOUR:.1f} h"
    if seconds >= 120:
        return f"{seconds / 60:.1f} min"
    if seconds >= 1:
        return f"{seconds:.2f} s"
    return f"{1e3 * seconds:.1f} ms" if seconds >= 1e-3 else f"{1e3 * seconds:.2g} ms"
