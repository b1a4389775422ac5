"""`membart study posterior-collapse`: Table 3 and Figure 7 of the implicit-persona paper on any text."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated, Any

import typer

from pretrain.errors import UserError


def posterior_collapse(
    data: Annotated[str | None, typer.Option(help="Sentences as NAME:PATH, e.g. ptb:FOLDER.")] = None,
    text: Annotated[
        list[Path] | None, typer.Option(help="Any text instead, as `membart shards build` reads it.")
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder for results and figure.")] = Path(
        "study/posterior-collapse"
    ),
    updates: Annotated[int, typer.Option(min=1, help="Joint updates of each VAE.")] = 2000,
    latent: Annotated[int, typer.Option(min=1, help="Dimensions of z.")] = 32,
    kla: Annotated[int, typer.Option(min=1, help="Updates of KL annealing.")] = 5000,
    inner: Annotated[int, typer.Option(min=1, help="Most encoder updates of aggressive training.")] = 100,
    share: Annotated[
        float, typer.Option(min=0, max=1, help="Most of the updates that are aggressive, as a share.")
    ] = 0.25,
    vocabulary: Annotated[int, typer.Option(min=5, help="Most words.")] = 10_000,
    width: Annotated[int, typer.Option(min=0, help="Of embeddings and GRUs; 0: 300 and 256.")] = 0,
    only: Annotated[list[str] | None, typer.Option(help="Rows to train, by their names.")] = None,
    threads: Annotated[int, typer.Option(min=1, help="Threads of torch.")] = 1,
    seed: Annotated[int, typer.Option()] = 1,
) -> None:
    """Sentence VAEs under each remedy against collapse, beside the paper's Table 3.

    Learns from the training split and reports the test split; of --text the last tenths are held out. Data
    without a training split are split anew by `#carve=0.1` after their path. Perplexity of reconstruction and
    of the bound are different things: the paper gives one of them.
    """
    import torch

    from finetune.studies import posterior_collapse as study

    names = [method.label for method in study.METHODS]
    unknown = next((name for name in only or () if name not in names), None)
    if unknown is not None:
        raise UserError(f"no row '{unknown}'", where="--only", mend=f"one of: {', '.join(names)}")
    torch.set_num_threads(threads)
    learnt, validation, held_out = _sentences(data, text)
    sizes = replace(
        study.Sizes(),
        updates=updates,
        latent=latent,
        kla=kla,
        at_inner=inner,
        at_share=share,
        vocabulary=vocabulary,
        seed=seed,
    )
    if width:
        sizes = replace(sizes, embedding=width, hidden=width)
    words = study.vocabulary(learnt, sizes.vocabulary)
    facts = {"sentences": len(learnt), "test": len(held_out), "words": len(words) + 4}
    typer.echo(", ".join(f"{value:,} {name}" for name, value in facts.items()))
    typer.echo(f"{'':>12} {'PPL rec':>9} {'PPL ELBO':>9} {'AU':>4} {'KL':>8} {'MI':>7}   paper: PPL, AU, KL")
    results: dict[str, Any] = {}
    for method in study.METHODS:
        if only and method.label not in only:
            continue
        began = time.perf_counter()
        trained = study.train(learnt, words, method, sizes, validation)
        found = study.evaluate(trained.model, held_out, words, sizes)
        results[method.label] = {
            **asdict(found),
            "seconds": round(time.perf_counter() - began, 1),
            "aggressive": trained.aggressive,
            "curve": trained.curve,
        }
        paper = study.PAPER[method.label]
        typer.echo(
            f"{method.label:>12} {found.ppl_rec:9.2f} {found.ppl_elbo:9.2f} {found.active_units:4d} "
            f"{found.kl:8.3f} {found.mutual_information:7.3f}   {paper[0]:.3f}, {paper[1]}, {paper[2]:.3f}"
        )
        where = data or [str(one) for one in text or ()]
        content = {"data": where, **facts, "sizes": asdict(sizes), "results": results}
        _replace(out / "results.json", json.dumps(content, indent=1) + "\n")
    draw_curves({name: one["curve"] for name, one in results.items()}, out / "kl.png")


def _sentences(data: str | None, text: Sequence[Path] | None) -> tuple[list[str], list[str], list[str]]:
    """Of training, validation and test."""
    from finetune.dialogue.load import load
    from finetune.studies import posterior_collapse as study
    from pretrain.corpus.sources import SourceSpec
    from pretrain.corpus.texts import source_texts

    if (data is None) == (not text):
        raise UserError("what to learn from?", mend="either --data NAME:PATH or --text FILE")
    if text:
        source = SourceSpec("text", tuple(str(path) for path in text))
        return study.held_out(study.sentences_of(source_texts([source])))
    assert data is not None
    learnt, validation, test = (
        [turn.text for dialogue in load(data, split) for turn in dialogue.turns]
        for split in ("train", "valid", "test")
    )
    return learnt, validation, test


def draw_curves(curves: Mapping[str, Sequence[tuple[int, float]]], path: Path) -> None:
    """Our Figure 7: KL in training, a line for each row."""
    from matplotlib import colormaps
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.2, 4.4), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for colour, (name, curve) in zip(colormaps["tab10"].colors, curves.items(), strict=False):
        axes.plot(*zip(*curve, strict=True), color=colour, label=name, linewidth=1.4)
    axes.set(xlabel="update", ylabel="KL in nats")
    axes.set_ylim(bottom=0)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=9)
    _save(figure, path)


def _save(figure: Any, path: Path) -> None:
    aside = path.with_name(f"{path.name}.new")
    figure.savefig(aside, format="png", dpi=150)
    os.replace(aside, path)
    typer.echo(str(path))


def _replace(path: Path, content: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f"{path.name}.new")
    aside.write_text(content, encoding="utf-8")
    os.replace(aside, path)


COMMANDS = (posterior_collapse,)
