"""`membart shards`: raw corpora to shard sets, and what is inside them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer
from tqdm import tqdm

from pretrain.corpus.build import build as build_shards
from pretrain.corpus.shardset import ShardInfo, ShardSet, Window
from pretrain.corpus.stats import SetStats, plot_lengths, set_stats
from pretrain.corpus.texts import source_texts
from pretrain.corpus.tokenizer import train_tokenizer
from pretrain.corpus.verify import verify as verify_shards
from pretrain.corpus.workshop import disk_errors
from pretrain.errors import EXIT_REQUEUE, ShardError, UserError
from tools import source_groups as group
from tools.peek import segment_views
from tools.progress import BuildConsole

app = typer.Typer(no_args_is_help=True, help="Raw corpora to shard sets: build, verify, stats, peek.")


@app.command(cls=group.SourceGroups)
def build(
    ctx: typer.Context,
    source: group.Source,
    tokenizer: Annotated[
        Path, typer.Option(help="Tokenizer folder: BART's, or one made by `shards tokenizer`.")
    ],
    out: Annotated[Path, typer.Option(help="Folder of the shard set.")],
    input: group.Input = None,
    format: group.Format = None,
    text_field: group.TextField = None,
    document_tokens: group.DocumentTokens = None,
    max_document_bytes: group.MaxDocumentBytes = None,
    max_documents: group.MaxDocuments = None,
    max_tokens: group.MaxTokens = None,
    window: Annotated[int, typer.Option(help="Tokens of a segment, <s> and </s> included.")] = 512,
    overlap: Annotated[int, typer.Option(help="Tokens that neighbouring segments share.")] = 128,
    min_tokens: Annotated[int, typer.Option(help="Shorter documents are dropped.")] = 512,
    held_out: Annotated[float, typer.Option(help="Share of documents for validation, taken by hash.")] = 0.01,
    shard_tokens: Annotated[int, typer.Option(help="Tokens after which a shard is closed.")] = 1 << 24,
    workers: Annotated[int | None, typer.Option(help="Processes.", show_default="one per core")] = None,
    max_reject_rate: Annotated[float, typer.Option(help="Share of bad records that fails the build.")] = 0.01,
    restart: Annotated[bool, typer.Option(help="Throw away an unfinished build first.")] = False,
) -> None:
    """Turn raw corpora into a shard set. After a crash, the same command goes on where it was."""
    sources = group.sources_of(ctx)
    with BuildConsole() as console:
        try:
            report = build_shards(
                sources,
                tokenizer,
                out,
                window=Window(window, overlap),
                min_tokens=min_tokens,
                held_out=held_out,
                shard_tokens=shard_tokens,
                workers=workers,
                max_reject_rate=max_reject_rate,
                restart=restart,
                progress=console.update,
            )
        except KeyboardInterrupt:
            console.message("stopped; the same command goes on from the last saved point")
            raise typer.Exit(EXIT_REQUEUE) from None
    if not report.built:
        typer.echo(f"{out} holds this set already")
    for name, counts in report.manifest["sources"].items():
        typer.echo(_summary(name, counts))
    totals = f"{report.documents:,} documents, {report.tokens:,} tokens"
    typer.echo(f"{out}: {totals}, hash {report.manifest['hash'][:16]}")


@app.command(cls=group.SourceGroups)
def tokenizer(
    ctx: typer.Context,
    source: group.Source,
    out: Annotated[Path, typer.Option(help="Tokenizer folder to make.")],
    vocab_size: Annotated[int, typer.Option(help="Tokens, specials included.")] = 50265,
    characters: Annotated[int, typer.Option(help="Text to learn from.")] = 50_000_000,
    input: group.Input = None,
    format: group.Format = None,
    text_field: group.TextField = None,
    document_tokens: group.DocumentTokens = None,
    max_document_bytes: group.MaxDocumentBytes = None,
) -> None:
    """Train a byte-level BPE tokenizer with BART's special tokens on the same kind of sources."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError("exists and is not empty", where=str(out), mend="choose another --out")
    made = train_tokenizer(source_texts(group.sources_of(ctx), max_characters=characters), vocab_size)
    with disk_errors(out):
        made.save(out)
    typer.echo(f"{out}: {made.vocab_size:,} tokens, hash {made.fingerprint[:16]}")


@app.command()
def verify(paths: Annotated[list[Path], typer.Argument(help="Shard set folders.")]) -> None:
    """Compare every byte with the manifest; names each broken shard and document. Exit code 2 on damage."""
    shards = ShardSet.open(*paths)
    problems = 0
    with tqdm(total=len(shards.shards), unit="shard", disable=None) as bar:
        for finding in verify_shards(shards):
            if isinstance(finding, ShardInfo):
                bar.update()
            else:
                problems += 1
                bar.write(str(finding))
    if problems:
        mend = "restore these files from a copy, or build the set again"
        raise ShardError(f"{problems} problems", where=", ".join(map(str, paths)), mend=mend)
    documents = sum(info.documents for info in shards.shards)
    tokens = sum(info.tokens for info in shards.shards)
    typer.echo(f"{len(shards.shards)} shards, {documents:,} documents, {tokens:,} tokens: as in the manifest")


@app.command()
def stats(
    paths: Annotated[list[Path], typer.Argument(help="Shard set folders.")],
    batch: Annotated[int, typer.Option(min=1, help="Agents of the global batch.")] = 32,
    horizon: Annotated[int, typer.Option(min=1, help="Timesteps of one optimizer step.")] = 6,
    plot: Annotated[Path | None, typer.Option(help="Write the length histogram to this PNG.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Machine-readable.")] = False,
) -> None:
    """Documents, tokens, segments and lengths of each source; padding and steps of an epoch."""
    shards = ShardSet.open(*paths)
    found = set_stats(shards, batch=batch, horizon=horizon)
    typer.echo(json.dumps(found.as_json(), indent=1) if as_json else _table(found, shards))
    if plot is not None:
        try:
            plot_lengths(shards, plot)
        except OSError as error:
            raise UserError(f"cannot be written ({error.strerror})", where=str(plot)) from None


@app.command()
def peek(
    paths: Annotated[list[Path], typer.Argument(help="Shard set folders.")],
    document: Annotated[int, typer.Option(min=0, help="Number of the document in its split.")] = 0,
    segment: Annotated[int, typer.Option(min=0, help="First segment to print.")] = 0,
    count: Annotated[int, typer.Option(min=1, help="Segments to print.")] = 2,
    split: Annotated[str, typer.Option(help="train or validation.")] = "train",
    seed: Annotated[int, typer.Option(help="Seed of the noise.")] = 0,
    epoch: Annotated[int, typer.Option(min=0, help="Epoch of the noise.")] = 0,
    clean: Annotated[bool, typer.Option(help="Print the clean text of each segment too.")] = True,
) -> None:
    """Print segments of a document as the model meets them: clean, and with their noise."""
    shards = ShardSet.open(*paths)
    for view in segment_views(
        shards, split, document, range(segment, segment + count), seed=seed, epoch=epoch
    ):
        typer.secho(view.title, bold=True)
        if clean:
            typer.echo(f"clean  {view.clean!r}")
        typer.echo(f"noised {view.noised!r}\n")


def _summary(name: str, counts: dict[str, Any]) -> str:
    losses = {**counts["dropped"], **counts["rejected"]}
    lost = ", ".join(f"{number:,} {reason}" for reason, number in losses.items()) or "nothing dropped"
    over = f"; {counts['passed_over']} files passed over by name" if counts["passed_over"] else ""
    return (
        f"{name}: {counts['documents']:,} documents ({counts['share_of_documents']:.1%}), "
        f"{counts['tokens']:,} tokens ({counts['share_of_tokens']:.1%}); {lost}{over}"
    )


def _table(found: SetStats, shards: ShardSet) -> str:
    columns = f"{'split':<11}{'source':<16}{'documents':>12}{'tokens':>16}{'segments':>12}{'share':>8}"
    lines = [f"{columns}  shortest/median/longest"]
    for row in found.sources:
        lines.append(
            f"{row.split:<11}{row.source:<16}{row.documents:>12,}{row.tokens:>16,}{row.segments:>12,}"
            f"{row.share_of_tokens:>8.1%}  {row.shortest:,}/{row.median:,.0f}/{row.longest:,}"
        )
    lines.append("\ndocument lengths (tokens)")
    bins: dict[int, int] = {}
    for row in found.sources:
        for low, number in row.histogram.items():
            bins[low] = bins.get(low, 0) + number
    most = max(bins.values())
    for low in range(min(bins), max(bins) + 1):
        number = bins.get(low, 0)
        lines.append(
            f"{1 << low:>10,} - {(2 << low) - 1:>11,}  {number:>10,}  {'#' * round(40 * number / most)}"
        )
    cost = found.epoch
    if cost:
        lines.append(
            f"\nan epoch of train, {cost.batch} agents, horizon {cost.horizon}, window {shards.window.size}: "
            f"{cost.segments:,} segments, {cost.timesteps:,} timesteps, {cost.optimizer_steps:,} optimizer "
            f"steps of about {cost.tokens_per_step:,} tokens; padding about {cost.padding_share:.1%}"
        )
    return "\n".join(lines)
