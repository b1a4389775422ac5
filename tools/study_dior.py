"""`membart study dior-...`: the analyses of the Dior-CVAE paper on models of any size.

`dior-ablation` and `dior-dropout` train what they compare, each variant a run of its own that goes on where
it was; `dior-steps` and `dior-references` look at trained models.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pretrain.errors import UserError
from tools.figures import blank, save
from tools.models import check_folder, quiet_transformers
from tools.study_runs import (
    Changes,
    Data,
    Dialogues,
    Out,
    Split,
    Start,
    Variant,
    as_json,
    figures,
    sweep,
    write,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FAMILY = "dior_cvae"
ABLATIONS: Mapping[str, tuple[str, ...]] = {
    "Dior-CVAE": (),
    "w/o diffusion": ("model.prior=standard",),
    "w/o memory dropout": ("model.cross_memory_dropout=0",),
    "w/o self-attention infusion": ("model.self_infusion=false",),
    "w/o cross-attention infusion": ("model.cross_infusion=false",),
    "w/o PLM": ("model.pretrained=false",),
}
"""Table 3: the paper's names, and our switches."""
ABLATION_METRICS = ("bleu_1_method7", "bleu_2_method7", "distinct_1", "distinct_2")
DROPOUT_METRICS = ("similarity", "similarity_mean", "self_bleu", "distinct_2")
ENOUGH = 5
"""Replies of each context in the human evaluation and in Table 9; references in Figure 3."""


def dior_ablation(
    start: Start,
    data: Data,
    changes: Changes = None,
    out: Out = Path("study/dior-ablation"),
    split: Split = "valid",
    dialogues: Dialogues = None,
) -> None:
    """Table 3: train every variant of Dior-CVAE on the same data and score its replies."""
    from finetune.metrics import papers, table

    found = sweep(_runs(ABLATIONS, start), data, changes or [], out, split, dialogues, ABLATION_METRICS)
    printed = papers.tables(FAMILY, part="validation")[0]
    for name, one in found.items():
        ours = {**one.metrics.values, **figures(one, "perplexity", "perplexity_prior", "elbo_token")}
        typer.echo(f"\n{name}\n{table({'ours': ours, 'paper': printed.figures(name)})}")
    write(out / "ablation.json", {name: as_json(one) for name, one in found.items()})


def dior_dropout(
    start: Start,
    data: Data,
    changes: Changes = None,
    out: Out = Path("study/dior-dropout"),
    rates: Annotated[str, typer.Option(help="Rates of the cross-memory dropout.")] = "0.1,0.4,0.7,1.0",
    split: Split = "test",
    dialogues: Dialogues = None,
) -> None:
    """Table 9: how alike five replies to one context are, by the dropout that the model was trained with."""
    from finetune.metrics import papers, table
    from finetune.studies.dior_cvae import equal_pairs

    each = _numbers(rates, "--rates", 0, 1)
    variants = {f"memory dropout {rate}": (f"model.cross_memory_dropout={rate}",) for rate in each}
    five = [*(changes or []), f"generation.replies={ENOUGH}"]
    found = sweep(_runs(variants, start), data, five, out, split, dialogues, DROPOUT_METRICS)
    (printed,) = (one for one in papers.tables(FAMILY) if one.number == "Table 9")
    columns, content = {}, {}
    for row, one in found.items():
        rate = row.split()[-1]
        groups = [prediction.replies for prediction in one.predictions]
        own = {
            **one.metrics.values,
            "equal_pairs": equal_pairs(groups),
            **figures(one, "nll_swapped_excess", "perplexity_prior", "active_units"),
        }
        columns[rate] = own
        if row in printed.rows:
            columns[f"{rate}, paper"] = printed.figures(row)
        content[rate] = {**as_json(one), "equal_pairs": own["equal_pairs"]}
    typer.echo(table(columns))
    for metric, reason in next(iter(found.values())).metrics.unavailable.items():
        typer.echo(f"{metric}: {reason}")
    write(out / "dropout.json", content)
    save(draw_dropout(columns), out / "dropout.png")


def dior_steps(
    model: Annotated[Path, typer.Argument(help="A run of dior_cvae, one of its checkpoints, or its export.")],
    overrides: Changes = None,
    data: Annotated[str, typer.Option(help="Dialogues as NAME:PATH.")] = "",
    split: Split = "test",
    contexts: Annotated[int, typer.Option(min=1, help="How many are shown.")] = 3,
    steps: Annotated[
        str | None, typer.Option(help="Reverse steps done; 1 and every fifth part of them unless given.")
    ] = None,
    estimate: Annotated[
        bool, typer.Option(help="Decode the denoiser's estimate, not the noisy latents as they stand.")
    ] = False,
) -> None:
    """Table 8: what the model says from latents that were denoised for fewer steps."""
    study = _open(model, overrides)
    most = study.model.config.diffusion_steps
    wanted = ",".join(str(max(most * part // 5, 1)) for part in range(6)) if steps is None else steps
    numbers = sorted({int(number) for number in _numbers(wanted, "--steps", 1, most, 1)})
    for asked in study.last_turns(data or study.fitted.recipe.data.sources[0], split, contexts):
        replies = study.denoised(asked, numbers, not estimate)
        typer.echo("\n".join(f"context   {text}" for text in asked.context[-3:]))
        for number, said in zip(numbers, replies, strict=True):
            typer.echo(f"step {number:>4} {said}")
        typer.echo("")


def dior_references(
    models: Annotated[list[Path], typer.Argument(help="Runs, checkpoints or exports; one curve each.")],
    data: Annotated[str, typer.Option(help="Dialogues with several references, as NAME:PATH.")],
    split: Split = "test",
    contexts: Annotated[int, typer.Option(min=1, help="The paper: 100.")] = 100,
    most: Annotated[int, typer.Option(min=1, help="References of each context.")] = ENOUGH,
    samples: Annotated[int, typer.Option(min=1, help="Latents that a likelihood is the mean over.")] = 10,
    seed: Annotated[int, typer.Option(help="Of latents and of the choice of references.")] = 1234,
    out: Out = Path("study/dior-references"),
) -> None:
    """Figure 3: perplexity of one to five human replies to the same context, latents from the prior."""
    from finetune.studies.dior_cvae import drawn_references, reference_curve

    check_folder(out)
    curves: dict[str, list[float]] = {}
    texts: list[list[tuple[str, ...]]] = []
    for place in models:
        study = _open(place, None)
        asked = study.last_turns(data, split, contexts, most)
        found = [study.reference_losses(one, samples, seed) for one in asked]
        losses, tokens = zip(*found, strict=True)
        name = str(place) if place.name in curves else place.name
        curves[name] = reference_curve(losses, tokens, most, seed)
        texts = [drawn_references(asked, count, seed) for count in range(1, most + 1)]
    alike = similarities(texts)
    rows = [("references", *map(str, range(1, most + 1)))]
    rows += [(name, *(f"{value:.2f}" for value in curve)) for name, curve in curves.items()]
    rows += [("cosine of the references", *(f"{value:.3f}" for value in alike))] if alike else []
    for name, *cells in rows:
        typer.echo(f"{name:<28}" + "".join(f"{cell:>10}" for cell in cells))
    write(out / "references.json", {"perplexity": curves, "similarity": alike, "contexts": len(texts[0])})
    save(draw_references(curves, alike), out / "references.png")


def _runs(variants: Mapping[str, Sequence[str]], start: str) -> dict[str, Variant]:
    return {name: Variant(FAMILY, start, tuple(switches)) for name, switches in variants.items()}


def similarities(texts: Sequence[Sequence[tuple[str, ...]]]) -> list[float]:
    """Mean cosine of the references for each number of them, 1 for one; empty without a BERT."""
    from finetune.metrics import Resources
    from finetune.metrics.encoder import load, similarity
    from finetune.metrics.resources import UnavailableError

    resources = Resources()
    try:
        judge = load(resources.place("bert", "a BERT's folder"), resources.run_on())
    except UnavailableError as error:
        typer.echo(f"no cosines: {error}", err=True)
        return []
    return [1.0 if len(groups[0]) == 1 else similarity(groups, judge) for groups in texts]


def draw_dropout(columns: Mapping[str, Mapping[str, float]]) -> Figure:
    """Similarity, and equal pairs, over the dropout rate."""
    from pretrain.plots import BLUE, GREY, VERMILION

    figure, axes = blank("memory dropout", "share of equal pairs, %", 6.0, 3.8)
    ours = {float(name): column for name, column in columns.items() if "," not in name}
    axes.plot(
        list(ours), [column["equal_pairs"] for column in ours.values()], "o-", color=BLUE, label="equal pairs"
    )
    others = axes.twinx()
    others.set_ylabel("cosine")
    for label, colour, picked in (
        ("similarity", VERMILION, ours),
        ("similarity, paper", GREY, {float(n.split(",")[0]): c for n, c in columns.items() if "," in n}),
    ):
        points = [(rate, column["similarity"]) for rate, column in picked.items() if "similarity" in column]
        if points:
            others.plot(*zip(*points, strict=True), "s--", color=colour, label=label)
    figure.legend(loc="outside upper right", frameon=False, fontsize=9, ncols=3)
    return figure


def draw_references(curves: Mapping[str, Sequence[float]], alike: Sequence[float]) -> Figure:
    """Our Figure 3: perplexities on the left, cosine of the references on the right."""
    figure, axes = blank("human references of a context", "perplexity", 6.0, 3.8)
    for name, curve in curves.items():
        axes.plot(range(1, len(curve) + 1), curve, "o-", label=name)
    axes.set_xticks(range(1, max(map(len, curves.values())) + 1))
    if alike:
        others = axes.twinx()
        others.plot(range(1, len(alike) + 1), alike, "s--", color="#6B7280", label="cosine of the references")
        others.set_ylabel("cosine")
    figure.legend(loc="outside upper right", frameon=False, fontsize=9, ncols=3)
    return figure


def _open(place: Path, overrides: Sequence[str] | None) -> Any:
    from finetune.fitted import load
    from finetune.studies.dior_cvae import Study

    quiet_transformers()
    return Study(load(place, list(overrides or ())))


def _numbers(text: str, option: str, least: float, most: float, unit: float = 0) -> list[float]:
    """Numbers with commas between, from `least` to `most`; whole ones for a `unit` of 1.

    Raises:
        UserError: something else, or none.
    """
    try:
        found = [float(word) for word in text.split(",") if word.strip()]
    except ValueError:
        found = []
    if not found or not all(least <= number <= most and not (unit and number % unit) for number in found):
        kind = "whole numbers" if unit else "numbers"
        raise UserError(
            f"'{text}' is no list of {kind} from {least:g} to {most:g}",
            where=option,
            mend=f"for example {least:g},{most:g}",
        )
    return found


COMMANDS = (dior_ablation, dior_dropout, dior_steps, dior_references)
