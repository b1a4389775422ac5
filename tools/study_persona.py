"""`membart study posterior-collapse`: Table 3 of the implicit-persona paper on any text."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated

import typer

from pretrain.errors import UserError


def posterior_collapse(
    data: Annotated[str, typer.Option(help="Text or dialogues as NAME:PATH, e.g. ptb:FOLDER.")],
    out: Annotated[Path, typer.Option(help="Folder for results.json.")] = Path("posterior-collapse"),
    updates: Annotated[int, typer.Option(min=1, help="Joint updates of each VAE.")] = 2000,
    latent: Annotated[int, typer.Option(min=1, help="Dimensions of z.")] = 32,
    kla: Annotated[int, typer.Option(min=1, help="Updates of KL annealing.")] = 5000,
    inner: Annotated[int, typer.Option(min=1, help="Most encoder updates of aggressive training.")] = 100,
    only: Annotated[list[str] | None, typer.Option(help="Rows to train, by their names.")] = None,
    threads: Annotated[int, typer.Option(min=1, help="Threads of torch.")] = 1,
    seed: Annotated[int, typer.Option()] = 1,
) -> None:
    """Sentence VAEs under each remedy against collapse, beside the paper's Table 3.

    Learns from the training split, or from the validation split where there is no other, and reports the test
    split. Perplexity of reconstruction and of the bound are different things: the paper gives one of them.
    """
    import torch

    from finetune.dialogue.load import load
    from finetune.studies import posterior_collapse as study

    names = [method.label for method in study.METHODS]
    unknown = next((name for name in only or () if name not in names), None)
    if unknown is not None:
        raise UserError(f"no row '{unknown}'", where="--only", mend=f"one of: {', '.join(names)}")
    torch.set_num_threads(threads)
    sizes = replace(study.Sizes(), updates=updates, latent=latent, kla=kla, at_inner=inner, seed=seed)

    def sentences(split: str) -> list[str]:
        return [turn.text for dialogue in load(data, split) for turn in dialogue.turns]

    try:
        learnt, split = sentences("train"), "train"
    except UserError:
        learnt, split = sentences("valid"), "valid"
    held_out = sentences("test")
    words = study.vocabulary(learnt, sizes.vocabulary)
    typer.echo(f"{len(learnt):,} sentences of {split}, {len(held_out):,} of test, {len(words) + 4:,} words")
    typer.echo(f"{'':>12} {'PPL rec':>9} {'PPL ELBO':>9} {'AU':>4} {'KL':>8}   paper: PPL, AU, KL")
    results = {}
    for method in study.METHODS:
        if only and method.label not in only:
            continue
        found = study.evaluate(study.train(learnt, words, method, sizes), held_out, words, sizes)
        results[method.label] = asdict(found)
        paper = study.PAPER[method.label]
        typer.echo(
            f"{method.label:>12} {found.ppl_rec:9.2f} {found.ppl_elbo:9.2f} {found.active_units:4d} "
            f"{found.kl:8.3f}   {paper[0]:.3f}, {paper[1]}, {paper[2]:.3f}"
        )
        out.mkdir(parents=True, exist_ok=True)
        content = {"data": data, "split": split, "sizes": asdict(sizes), "results": results}
        (out / "results.json").write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


COMMANDS = (posterior_collapse,)
