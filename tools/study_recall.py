"""`membart study text-recall`: the model-selection study of the MemBART paper on models that fit a CPU.

The library's own parts (`Dispatcher`, `Cell`, `back_propagate`) in one process with torch's AdamW, not the
trainer: the controls cut gradients or forget inside a rollout, which no run should be able to ask for.
"""

from __future__ import annotations

import itertools
import json
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pretrain.corpus.build import build
from pretrain.corpus.shardset import ShardSet, Window
from pretrain.corpus.sources import SourceSpec
from pretrain.corpus.texts import source_texts
from pretrain.corpus.tokenizer import load_tokenizer, train_tokenizer
from pretrain.files import write_atomically
from tools.figures import blank, save

if TYPE_CHECKING:
    from pretrain.dispatch import Batch

VOCABULARY = 384
DOCUMENTS = 1500
HORIZON = 2
POINTS = 100
"""Most points of a curve; each is the mean over an equal number of updates."""
FEWEST_UPDATES = 20


@dataclass(frozen=True)
class Trial:
    """One curve of the study."""

    label: str
    variant: str
    cut: bool = False
    """No gradient through memory: each timestep is a rollout of its own."""
    forget: bool = False
    """Memory is reset at every timestep."""


TRIALS = {
    "memformer": Trial("Memformer", "memformer"),
    "memformer_rezero": Trial("Memformer + ReZero", "memformer_rezero"),
    "shared": Trial("MemBART, shared weights", "shared"),
    "membart": Trial("MemBART", "membart"),
    "cut": Trial("MemBART, gradients cut at the memory", "membart", cut=True),
    "forget": Trial("MemBART, memory reset at every step", "membart", forget=True),
}
STRUCTURES = ("memformer", "memformer_rezero", "shared", "membart")


@dataclass(frozen=True)
class Settings:
    """Sizes and optimizer that all trials have in common."""

    updates: int = 1500
    seed: int = 1
    agents: int = 32
    window: int = 10
    """Tokens of a segment, `<s>` and `</s>` included."""
    d_model: int = 64
    layers: int = 2
    """Of the encoder, and as many of the decoder."""
    heads: int = 4
    memory_len: int = 8
    lr: float = 2e-3
    warmup: int = 50
    clipping: float = 1.0

    def shape(self, vocab_size: int) -> dict[str, Any]:
        """Fields of `MemBartConfig`. The weights' spread is that at which attention from scratch learns."""
        return {
            "vocab_size": vocab_size,
            "d_model": self.d_model,
            "encoder_layers": self.layers,
            "decoder_layers": self.layers,
            "encoder_attention_heads": self.heads,
            "decoder_attention_heads": self.heads,
            "encoder_ffn_dim": 4 * self.d_model,
            "decoder_ffn_dim": 4 * self.d_model,
            "max_position_embeddings": self.window,
            "memory_len": self.memory_len,
            "init_std": self.d_model**-0.5,
            "dropout": 0.0,
        }


def text_recall(
    out: Annotated[Path, typer.Option(help="Folder for data, figure and JSON.")] = Path("study/text-recall"),
    shards: Annotated[
        list[Path] | None, typer.Option(help="Shard sets to read.", show_default="made from the docs source")
    ] = None,
    updates: Annotated[int, typer.Option(min=FEWEST_UPDATES, help="Optimizer steps of each trial.")] = (
        Settings.updates
    ),
    seed: Annotated[int, typer.Option(help="Of weights and order of the data.")] = Settings.seed,
    threads: Annotated[
        int, typer.Option(min=1, help="Of torch; more than one only pays with larger sizes.")
    ] = 1,
) -> None:
    """Which structure learns to carry a segment over: four variants and two controls, as Figure 3."""
    import torch

    torch.set_num_threads(threads)
    settings = Settings(updates=updates, seed=seed)
    shard_set = ShardSet.open(*(shards or [docs_shards(out, settings)]))
    curves: dict[str, list[float]] = {}
    seconds: dict[str, float] = {}
    for name, trial in TRIALS.items():
        began = time.perf_counter()
        losses = learn(trial, settings, shard_set.vocab_size, recall_batches(shard_set, settings))
        curves[name] = smooth(list(losses))
        seconds[name] = round(time.perf_counter() - began, 1)
        typer.echo(f"{trial.label:<38} {curves[name][-1]:.3f} nats a token, {seconds[name]:.0f} s")
    findings = judge(curves)
    typer.echo(table(curves, findings))
    write_result(out, settings, shard_set, curves, seconds, findings)
    draw(curves, settings, out / "text-recall.png")
    typer.echo(str(out / "text-recall.json"))


def docs_shards(out: Path, settings: Settings) -> Path:
    """A shard set of docstrings of the installed packages under `out`, made on the first call."""
    sources = [SourceSpec("docs", max_documents=DOCUMENTS)]
    folder = out / "tokenizer"
    if folder.is_dir():
        tokenizer = load_tokenizer(folder)
    else:
        tokenizer = train_tokenizer(source_texts(sources, max_characters=1_000_000), VOCABULARY)
        tokenizer.save(folder)
    return build(
        sources, tokenizer, out / "shards", window=Window(settings.window, 0), min_tokens=256, workers=1
    ).out


def recall_batches(shard_set: ShardSet, settings: Settings) -> Iterator[Batch]:
    """Timesteps of text recall without end, the same for every trial of a seed."""
    from pretrain.dispatch import Dispatcher

    return iter(
        Dispatcher(
            shard_set,
            lanes=settings.agents,
            agents_per_lane=1,
            seed=settings.seed,
            window=Window(settings.window, 0),
            objective="recall",
            static_shapes=True,
        )
    )


def learn(trial: Trial, settings: Settings, vocab_size: int, batches: Iterator[Batch]) -> Iterator[float]:
    """Train a fresh model; yields the loss of each update in nats per target token, before the update.

    All trials of a seed start from equal draws, and each update reads `HORIZON` timesteps whatever it cuts.
    """
    import torch

    from pretrain.model import MemBartConfig, MemBartForConditionalGeneration
    from pretrain.replay import Cell, back_propagate, loss_coefficients
    from pretrain.replay import seed as seed_torch

    seed_torch(settings.seed, "study")
    model = MemBartForConditionalGeneration.from_scratch(
        MemBartConfig(**settings.shape(vocab_size), variant=trial.variant)
    )
    cell = Cell(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=settings.lr, weight_decay=0.01)
    warmup = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda n: min(1.0, (n + 1) / settings.warmup))
    memory = model.construct_memory(settings.agents)
    span = 1 if trial.cut else HORIZON
    for update in range(settings.updates):
        rollout = [next(batches) for _ in range(HORIZON)]
        if trial.forget:
            rollout = [replace(b, memory_resets=torch.ones_like(b.memory_resets)) for b in rollout]
        counts = torch.stack([(batch.labels != -100).sum() for batch in rollout])
        coefficients = loss_coefficients(counts, "uniform")
        loss = 0.0
        for start in range(0, HORIZON, span):
            part = slice(start, start + span)
            result = back_propagate(
                cell,
                rollout[part],
                memory,
                coefficients[part],
                [(update, t) for t in range(HORIZON)[part]],
                lambda scalar, last: scalar.backward(),
                mode="bptt",
            )
            memory = result.memory
            loss += float((coefficients[part] * result.nll).sum())
        torch.nn.utils.clip_grad_norm_(model.parameters(), settings.clipping)
        optimizer.step()
        warmup.step()
        optimizer.zero_grad()
        yield loss


def smooth(losses: list[float]) -> list[float]:
    """Means over equal numbers of updates, at most `POINTS` of them."""
    points = min(POINTS, len(losses))
    edges = [len(losses) * i // points for i in range(points + 1)]
    return [sum(losses[a:b]) / (b - a) for a, b in itertools.pairwise(edges)]


def judge(curves: dict[str, list[float]]) -> dict[str, Any]:
    """The paper's claims against the curves; the floor is what is reached without memory.

    `updates_share` is the share of Memformer + ReZero's updates after which MemBART is at or below the loss
    that ReZero ends with; None if it never is.
    """
    final = {name: final_loss(curve) for name, curve in curves.items()}
    rezero = final["memformer_rezero"]
    reached = (i + 1 for i, loss in enumerate(curves["membart"]) if loss <= rezero)
    first = next(reached, None)
    return {
        "final": final,
        "ranking": sorted(STRUCTURES, key=final.__getitem__),
        "gain": {name: final["forget"] - loss for name, loss in final.items()},
        "updates_share": None if first is None else first / len(curves["membart"]),
    }


def final_loss(curve: list[float]) -> float:
    """Mean of the last twentieth of a curve."""
    last = curve[-(len(curve) // 20) :]
    return sum(last) / len(last)


def table(curves: dict[str, list[float]], findings: dict[str, Any]) -> str:
    """Ranking and controls for the terminal."""
    lines = [f"{'':>2} {'':<38} {'final loss':>10} {'below the floor by':>19}"]
    for place, name in enumerate([*findings["ranking"], "cut", "forget"], start=1):
        number = f"{place}." if name in STRUCTURES else ""
        lines.append(
            f"{number:>2} {TRIALS[name].label:<38} {findings['final'][name]:>10.3f} "
            f"{findings['gain'][name]:>19.3f}"
        )
    share = findings["updates_share"]
    lines.append(
        "MemBART does not reach the loss that Memformer + ReZero ends with"
        if share is None
        else f"MemBART reaches the loss that Memformer + ReZero ends with after {share:.0%} of the updates"
    )
    return "\n".join(lines)


def write_result(
    out: Path,
    settings: Settings,
    shard_set: ShardSet,
    curves: dict[str, list[float]],
    seconds: dict[str, float],
    findings: dict[str, Any],
) -> None:
    """Everything that the figure and the table were made from, as `text-recall.json`."""
    from pretrain import provenance

    content = {
        "settings": asdict(settings),
        "shard_set": shard_set.hash,
        "versions": provenance.versions(),
        "findings": findings,
        "seconds": seconds,
        "curves": curves,
    }
    out.mkdir(parents=True, exist_ok=True)
    write_atomically(out / "text-recall.json", json.dumps(content, indent=1))


def draw(curves: dict[str, list[float]], settings: Settings, path: Path) -> None:
    """Our Figure 3: the variants as lines, the controls dashed."""
    from pretrain.plots import BLUE, GREEN, GREY, VERMILION

    colours = {
        "memformer": VERMILION, "memformer_rezero": GREEN, "shared": "#CC79A7", "membart": BLUE,
        "cut": BLUE, "forget": GREY,
    }  # fmt: skip
    figure, axes = blank("update", "nats per token")
    for name, curve in curves.items():
        steps = [settings.updates * (i + 0.5) / len(curve) for i in range(len(curve))]
        style = "-" if name in STRUCTURES else "--"
        axes.plot(steps, curve, style, color=colours[name], label=TRIALS[name].label, linewidth=1.5)
    axes.set(xlim=(0, settings.updates))
    axes.set_ylim(bottom=0)
    axes.set_title("Text recall", loc="left", fontsize=11, fontweight="bold")
    axes.grid(True, color="#E5E7EB", linewidth=0.6)
    axes.spines[["right"]].set_visible(False)
    axes.legend(edgecolor="none", fontsize=9)
    save(figure, path)


COMMANDS = (text_recall,)
