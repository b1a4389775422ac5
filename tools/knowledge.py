"""`membart ki`: knowledge base, retriever, index, annotations, and what they look like."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Literal

import typer
from tqdm import tqdm

from tools.models import Device, check_file, find_device, quiet_transformers

app = typer.Typer(
    no_args_is_help=True,
    help="Word knowledge for the family ki: base, train-retriever, index, annotate, inspect, picture.",
)

Out = Annotated[Path, typer.Option(help="Folder to make.", show_default=False)]
Data = Annotated[
    list[str],
    typer.Option(metavar="NAME:PATH", help="Dialogues; all splits. Repeatable.", show_default=False),
]
Restart = Annotated[bool, typer.Option("--restart", help="Begin anew what an interrupted call left.")]
Workers = Annotated[int, typer.Option(min=1, help="Processes on the CPU; all cores unless given.")]
CORES = os.cpu_count() or 1


@app.command()
def base(
    inputs: Annotated[
        list[str],
        typer.Argument(
            metavar="INPUT...",
            help="Encyclopedias: a Wikipedia dump (.xml.bz2), title TAB sentence (.tsv), or title and text "
            "(.jsonl, .parquet, hf://NAME[:config]); files, folders or quoted globs, packed or not.",
            show_default=False,
        ),
    ],
    out: Out,
    sentences: Annotated[int, typer.Option(min=1, help="Of an article; the paper takes one.")] = 1,
    min_words: Annotated[int, typer.Option(min=1, help="Shorter sentences are dropped.")] = 5,
    workers: Workers = CORES,
) -> None:
    """Make a knowledge base: the first sentence of every article."""
    from finetune.knowledge.base import BaseOptions, build

    with tqdm(unit=" articles", disable=not sys.stderr.isatty()) as bar:
        made = build(
            inputs,
            out,
            BaseOptions(sentences, min_words),
            workers=workers,
            told=lambda read, kept: _moved(bar, read, f"{kept:,} items"),
        )
    dropped = ", ".join(f"{count:,} {reason}" for reason, count in made.manifest["dropped"].items())
    typer.echo(f"{out}: {len(made):,} items of {made.manifest['articles']:,} articles")
    typer.echo(f"  dropped: {dropped or 'none'}; malformed: {made.manifest['rejected']:,}")


@app.command("train-retriever")
def train_retriever(
    base: Annotated[Path, typer.Option(help="Folder of `membart ki base`.", show_default=False)],
    out: Out,
    start: Annotated[
        str,
        typer.Option(
            "--from",
            help="What both encoders start as: the paper's BERT, or a run, checkpoint or folder of a MemBART "
            "or BART.",
        ),
    ] = "hf:bert-base-uncased",
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Settings, e.g. batch=128 epochs=2.")
    ] = None,
    device: Device = "",
    restart: Restart = False,
) -> None:
    """Train the token-level retriever on the sentences of a knowledge base.

    Each token of a sentence is pulled to that sentence and pushed from another of its batch. Call it again to
    go on after an interruption.
    """
    from finetune.knowledge.base import KnowledgeBase
    from finetune.knowledge.retriever.settings import RetrieverSettings
    from finetune.knowledge.retriever.train import Progress, train

    quiet_transformers()
    settings = RetrieverSettings.of(overrides or [])
    found = KnowledgeBase.open(base)
    with tqdm(unit=" steps", disable=not sys.stderr.isatty()) as bar:

        def told(progress: Progress) -> None:
            bar.total = progress.steps
            figures = f"loss {progress.loss:.3f}, recall@1 {progress.recall:.3f}"
            _moved(bar, progress.step, f"{figures}, {progress.sentences_per_second:.0f} sentences/s")
            if progress.validated:
                bar.write(
                    f"step {progress.step:,} of {progress.steps:,}: held out {figures}", file=sys.stderr
                )

        train(found, start, out, settings, device=find_device(device), restart=restart, told=told)
    typer.echo(f"{out}: retriever trained; membart ki index --base {base} --retriever {out} --out INDEX")


@app.command()
def index(
    base: Annotated[Path, typer.Option(help="Folder of `membart ki base`.", show_default=False)],
    retriever: Annotated[Path, typer.Option(help="Folder of `train-retriever`.", show_default=False)],
    out: Out,
    factory: Annotated[
        str, typer.Option(help="Factory string of FAISS; auto: exact up to 200,000 items, then IVF.")
    ] = "auto",
    probes: Annotated[int, typer.Option(min=1, help="Cells of an IVF that a search looks into.")] = 32,
    workers: Workers = CORES,
    device: Device = "",
    restart: Restart = False,
) -> None:
    """Encode every sentence and index the vectors; says what it takes and what it misses."""
    from finetune.knowledge.index import LEAST_RECALL, IndexOptions, build

    with tqdm(unit=" sentences", disable=not sys.stderr.isatty()) as bar:
        made = build(
            base,
            retriever,
            out,
            IndexOptions(factory, probes),
            workers=workers,
            device=find_device(device),
            restart=restart,
            told=_shown(bar),
        )
    about = made.manifest["about"]
    size = ", ".join(f"{name} {count / 2**20:,.1f} MiB" for name, count in about["bytes"].items())
    typer.echo(f"{out}: {len(made.base):,} items, {made.manifest['factory']}, memory-mapped: {size}")
    typer.echo(
        f"  recall@1 {made.recall:.4f} against exact search, {about['queries_per_second']:,.0f} queries/s"
    )
    typer.echo(
        f"  the retriever finds {made.manifest['titles_found']:.1%} of the articles by their title alone"
    )
    if made.recall < LEAST_RECALL:
        typer.echo(f"  below {LEAST_RECALL}: `membart ki annotate` will refuse it; more --probes, or Flat")


@app.command()
def annotate(
    data: Data,
    out: Out,
    index: Annotated[Path | None, typer.Option(help="Folder of `membart ki index`.")] = None,
    released: Annotated[
        bool, typer.Option("--released", help="Published items of wow_ki, with random keys; needs no index.")
    ] = False,
    base: Annotated[Path | None, typer.Option(help="The knowledge base, if it was moved.")] = None,
    retriever: Annotated[Path | None, typer.Option(help="The retriever, if it was moved.")] = None,
    context_turns: Annotated[int, typer.Option(min=0, help="Turns read before an utterance.")] = 2,
    unit: Annotated[
        Literal["word", "piece"],
        typer.Option(help="What gets an item; piece: a token of the retriever, as in the released files."),
    ] = "word",
    stop_words: Annotated[Path | None, typer.Option(help="A file with a word a line; else our list.")] = None,
    mask_stop_words: Annotated[bool, typer.Option(help="Whether stop words get nothing.")] = True,
    match_titles: Annotated[bool, typer.Option(help="Whether titles are found without search.")] = True,
    max_title_words: Annotated[int, typer.Option(min=1, help="Longest title looked for.")] = 1,
    pos: Annotated[
        bool, typer.Option("--pos", help="Mark nouns: for factual and linguistic controls.")
    ] = False,
    seed: Annotated[int, typer.Option(help="Of random keys.")] = 1,
    max_rejected: Annotated[float, typer.Option(min=0, max=1, help="Share that may be malformed.")] = 0.05,
    workers: Workers = CORES,
    device: Device = "",
    restart: Restart = False,
) -> None:
    """Find knowledge for each word of dialogues: the folder that `model.knowledge` of family ki names.

    Call it again to go on after an interruption.
    """
    from finetune.knowledge.annotate import annotate as find
    from finetune.knowledge.annotate import annotate_released, load_all
    from finetune.knowledge.artifact import require_free
    from finetune.knowledge.index import KnowledgeIndex
    from finetune.knowledge.retrieval import RetrievalOptions
    from finetune.knowledge.words import StopWords
    from pretrain.errors import UserError

    if released == (index is not None):
        raise UserError("give either --index or --released", mend="--index FOLDER of `membart ki index`")
    require_free(out)
    if released:
        made = annotate_released(load_all(data, max_rejected), out, seed=seed, sources=data)
        typer.echo(
            "keys are random unit vectors: the items are the published ones, what they say is not known"
        )
    else:
        assert index is not None
        opened = KnowledgeIndex.open(index, base, retriever)
        options = RetrievalOptions(
            context_turns=context_turns,
            unit=unit,
            stop_words=mask_stop_words,
            titles=match_titles,
            max_title_words=max_title_words,
            pos=pos,
        )
        with tqdm(unit=" utterances", disable=not sys.stderr.isatty()) as bar:
            made = find(
                opened,
                load_all(data, max_rejected),
                out,
                options,
                stop=StopWords(stop_words),
                sources=data,
                workers=workers,
                device=find_device(device),
                restart=restart,
                told=_shown(bar),
            )
    facts = made.manifest
    typer.echo(
        f"{out}: {facts.utterances:,} utterances, {facts.spans:,} of {facts.words:,} words "
        f"({facts.coverage:.1%}) with one of {facts.items:,} items, {facts.exact:,} by title"
    )


@app.command()
def inspect(
    folder: Annotated[Path, typer.Argument(help="Folder of `membart ki annotate`.", show_default=False)],
    data: Data,
    show: Annotated[int, typer.Option(min=0, help="Dialogues to print.")] = 1,
    control: Annotated[
        str, typer.Option(help="none, random, sentence, factual or linguistic; or all.")
    ] = "none",
    seed: Annotated[int, typer.Option(help="Of the control `random`.")] = 1,
) -> None:
    """Print what words got, and count it; `--control all` shows every control of the paper."""
    from finetune.knowledge.annotate import load_all
    from finetune.knowledge.annotations import Annotations
    from finetune.knowledge.controls import CONTROLS, controlled
    from finetune.knowledge.inspection import counts, sample
    from pretrain.errors import UserError

    found, dialogues = Annotations.open(folder), load_all(data, 1.0)
    names = [name for name in CONTROLS if control in (name, "all")]
    if not names:
        raise UserError(f"no control '{control}'", mend=f"one of: {', '.join(CONTROLS)}, all")
    if control == "all" and found.table.spans.nouns is None:
        names = [name for name in names if name not in ("factual", "linguistic")]
    all_counts = [counts(controlled(found, name, seed), dialogues) for name in names]
    typer.echo("control       words   items  by title  items/form  items/utterance  coverage of replies")
    for name, each in zip(names, all_counts, strict=True):
        typer.echo(
            f"{name:<11} {each.words:>7,} {each.items:>7,} {each.exact:>9.1%} {each.items_per_type:>11.1f} "
            f"{each.items_per_utterance:>16.1f} {each.coverage:>19.1f}%"
        )
    for dialogue in dialogues[:show]:
        typer.echo(f"\n{dialogue.id}")
        typer.echo("\n".join(sample(controlled(found, names[0], seed), dialogue)))


@app.command()
def picture(
    models: Annotated[
        list[str], typer.Argument(help="Runs, checkpoints or folders, e.g. without and with knowledge.")
    ],
    annotations: Annotated[Path, typer.Option(help="Folder of `membart ki annotate`.", show_default=False)],
    data: Data,
    word: Annotated[str, typer.Option(help="The word in the middle.", show_default=False)],
    out: Annotated[Path, typer.Option(help="The .png file to write.", show_default=False)],
) -> None:
    """Draw where models put a word among its knowledge and its company (Figure 2)."""
    from finetune.knowledge.annotate import load_all
    from finetune.knowledge.annotations import Annotations
    from finetune.knowledge.picture import Map, distances, draw, neighbourhood, word_vectors

    quiet_transformers()
    check_file(out)
    around = neighbourhood(word, Annotations.open(annotations), load_all(data, 1.0))
    maps = [Map(Path(place).name or place, word_vectors(place, around.all)) for place in models]
    typer.echo(f"{around.word}: {around.sentence}")
    for each in maps:
        far = "  ".join(f"{other} {value:.3f}" for other, value in distances(around, each).items())
        typer.echo(f"  {each.name}: distance to what it is never said with: {far or 'nothing'}")
    typer.echo(f"{draw(around, maps, out)}")


def _shown(bar: tqdm) -> Callable[[int, int], None]:
    def told(done: int, total: int) -> None:
        bar.total = total
        _moved(bar, done, "")

    return told


def _moved(bar: tqdm, done: int, figures: str) -> None:
    bar.set_postfix_str(figures, refresh=False)
    bar.update(done - bar.n)
