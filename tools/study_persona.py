"""`membart study posterior-collapse|persona-fader|persona-map`: analyses of the implicit-persona paper."""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated, Any

import typer

from pretrain.errors import UserError
from pretrain.files import write_atomically
from tools.figures import blank, save
from tools.study_runs import write


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
        paper = study.printed(method)
        typer.echo(
            f"{method.label:>12} {found.ppl_rec:9.2f} {found.ppl_elbo:9.2f} {found.active_units:4d} "
            f"{found.kl:8.3f} {found.mutual_information:7.3f}   "
            f"{paper['perplexity']:.3f}, {paper['active_units']:.0f}, {paper['kl']:.3f}"
        )
        where = data or [str(one) for one in text or ()]
        content = {"data": where, **facts, "sizes": asdict(sizes), "results": results}
        out.mkdir(parents=True, exist_ok=True)
        write_atomically(out / "results.json", json.dumps(content, indent=1) + "\n")
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


def persona_fader(
    run: Annotated[Path, typer.Argument(help="A fine-tuned persona_cvae: run, checkpoint or export.")],
    data: Annotated[
        list[str] | None, typer.Option(help="Dialogues as NAME:PATH; the recipe's unless given.")
    ] = None,
    split: Annotated[str, typer.Option(help="train, valid or test.")] = "valid",
    contexts: Annotated[int, typer.Option(min=1, help="Most contexts; the paper's code has 1000.")] = 1000,
    steps: Annotated[int, typer.Option(min=1, help="Steps from 0 to 1.")] = 10,
    agents: Annotated[int, typer.Option(min=1, help="Dialogues side by side.")] = 16,
    word_vectors: Annotated[Path | None, typer.Option(help="For P.Distance, as in docs/metrics.md.")] = None,
    changes: Annotated[
        list[str] | None, typer.Option("--set", help="KEY=VALUE changes, e.g. generation.replies=1.")
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder for results and figure.")] = Path("study/persona-fader"),
) -> None:
    """Figure 6: replies at levels of the fader from 0 to 1, their length and nearness to the profile."""
    from finetune.metrics import Resources

    study = _study(run, changes)
    swept = study.swept(
        [step / steps for step in range(steps + 1)],
        sources=tuple(data or ()),
        split=split,
        agents=agents,
        most=contexts,
        resources=Resources(word_vectors=word_vectors) if word_vectors else Resources(),
    )
    names = sorted({name for one in swept for name in one.values})
    typer.echo(f"{swept[0].contexts} contexts\n{'level':>6} " + " ".join(f"{name:>10}" for name in names))
    for one in swept:
        typer.echo(f"{one.level:6.2f} " + " ".join(f"{one.values[name]:10.4f}" for name in names))
    slopes = {name: _slope([(one.level, one.values[name]) for one in swept]) for name in names}
    typer.echo(f"{'slope':>6} " + " ".join(f"{slopes[name]:10.4f}" for name in names))
    for name, why in swept[0].unavailable.items():
        typer.echo(f"{name}: {why}")
    content = {"run": str(run), "split": split, "levels": [asdict(one) for one in swept], "slopes": slopes}
    write(out / "fader.json", content)
    draw_fader({name: [(one.level, one.values[name]) for one in swept] for name in names}, out / "fader.png")


def persona_map(
    run: Annotated[Path, typer.Argument(help="A fine-tuned persona_cvae: run, checkpoint or export.")],
    data: Annotated[
        list[str] | None, typer.Option(help="Dialogues as NAME:PATH; the recipe's unless given.")
    ] = None,
    split: Annotated[str, typer.Option(help="train, valid or test.")] = "train",
    profiles: Annotated[int, typer.Option(min=3, help="Most profiles.")] = 1155,
    seed: Annotated[int, typer.Option(help="Of t-SNE.")] = 1,
    out: Annotated[Path, typer.Option(help="Folder for results and figure.")] = Path("study/persona-map"),
) -> None:
    """Figure 5: profiles as the recognition network sees them, in two dimensions, coloured by what they tell.

    Nearest neighbours in all dimensions say whether the categories lie together: the share that is of a
    profile's own category, beside the share that chance would give.
    """
    from finetune.dialogue.load import load

    study = _study(run, ())
    sources = data or study.fitted.recipe.data.sources
    if not sources:
        raise UserError("no dialogues", where="--data", mend="--data NAME:PATH")
    found = study.perceived([one for source in sources for one in load(source, split)], profiles)
    same, chance = found.purity()
    typer.echo(
        f"{len(found.categories)} profiles; of the nearest neighbours {same:.1%} share the category, "
        f"{chance:.1%} would by chance"
    )
    content = {
        "run": str(run),
        "profiles": len(found.categories),
        "categories": {name: found.categories.count(name) for name in sorted(set(found.categories))},
        "same_category": same,
        "by_chance": chance,
    }
    write(out / "map.json", content)
    draw_map(found.flat(seed), found.categories, out / "map.png")


def _study(run: Path, changes: Sequence[str] | None) -> Any:
    from finetune.fitted import load
    from finetune.studies.persona_cvae import Study

    return Study(load(run, list(changes or ())))


def _slope(points: Sequence[tuple[float, float]]) -> float:
    """Least squares, per unit of the level."""
    levels, values = zip(*points, strict=True)
    return statistics.linear_regression(levels, values).slope


def draw_fader(curves: Mapping[str, Sequence[tuple[float, float]]], path: Path) -> None:
    """Our Figure 6: length on the left, nearness to the profile on the right."""
    from pretrain.plots import BLUE, GREY, VERMILION

    figure, axes = blank("level of the fader", "words of a reply")
    axes.plot(*zip(*curves["length"], strict=True), "o-", color=BLUE, label="length")
    others = axes.twinx()
    others.set_ylabel("nearness to the profile")
    for name, colour in (("p_distance", VERMILION), ("shown", GREY)):
        if name in curves:
            others.plot(*zip(*curves[name], strict=True), "s--", color=colour, label=name)
    figure.legend(loc="outside upper right", frameon=False, fontsize=9, ncols=3)
    save(figure, path)


def draw_map(places: Any, categories: Sequence[str], path: Path) -> None:
    """Our Figure 5."""
    from matplotlib import colormaps

    from finetune.studies.persona_cvae import CATEGORIES, OTHER

    figure, axes = blank("", "")
    names = [OTHER, *CATEGORIES]
    for number, name in enumerate(names):
        rows = [row for row, other in enumerate(categories) if other == name]
        if rows:
            colour = "#D1D5DB" if name == OTHER else colormaps["tab10"](number)
            axes.scatter(places[rows, 0], places[rows, 1], s=9, color=colour, label=name)
    axes.set(xticks=[], yticks=[])
    figure.legend(loc="outside right center", frameon=False, fontsize=9)
    save(figure, path)


def draw_curves(curves: Mapping[str, Sequence[tuple[int, float]]], path: Path) -> None:
    """Our Figure 7: KL in training, a line for each row."""
    from matplotlib import colormaps

    figure, axes = blank("update", "KL in nats")
    for number, (name, curve) in enumerate(curves.items()):
        axes.plot(*zip(*curve, strict=True), color=colormaps["tab10"](number), label=name, linewidth=1.4)
    axes.set_ylim(bottom=0)
    figure.legend(loc="outside right center", frameon=False, fontsize=9)
    save(figure, path)


COMMANDS = (posterior_collapse, persona_fader, persona_map)
