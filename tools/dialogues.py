"""`membart data`: look into dialogues, make them up, turn them into our own format."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from finetune.dialogue.dialogue import Dialogue, Turn
    from finetune.dialogue.load import Dialogues
    from pretrain.corpus.documents import Reject

app = typer.Typer(no_args_is_help=True, help="Dialogues: inspect, convert, make-synthetic.")

TOLD = 20
"""So many rejects and notes are listed."""
WIDTH, LONGEST = 100, 600
"""Columns of a sample, and characters of a turn."""
Spec = Annotated[
    str,
    typer.Argument(
        metavar="NAME:PATH",
        help="A data set in its native layout: convai2, dailydialog, dailydialog_plusplus, msc, persuasion, "
        "wow, wow_ki, crd, ptb, long, jsonl; or synthetic:OPTIONS.",
        show_default=False,
    ),
]
Split = Annotated[str | None, typer.Option(help="train, valid or test; all that are there unless given.")]


@app.command()
def inspect(
    data: Spec,
    split: Split = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Counts and rejects as JSON, without samples.")
    ] = False,
    show: Annotated[int, typer.Option(min=0, help="Dialogues to print.")] = 1,
    turns: Annotated[int, typer.Option(min=1, help="Turns to print of each.")] = 12,
    tokenizer: Annotated[
        Path | None, typer.Option(help="Count tokens too, with this tokenizer folder.")
    ] = None,
    max_rejected: Annotated[
        float, typer.Option(min=0, max=1, help="Share of malformed records at which to give up.")
    ] = 1.0,
) -> None:
    """Count what is there, say what was refused, print a sample."""
    from finetune.dialogue.load import load
    from finetune.dialogue.stats import stats

    found = load(data, split, max_rejected=max_rejected)
    counts = stats(found, _token_counter(tokenizer) if tokenizer else None).as_json()
    if as_json:
        typer.echo(
            json.dumps(_account(found, split) | counts | _refused(found), ensure_ascii=False, indent=1)
        )
        return
    typer.echo("\n".join(_report(found, counts)))
    for dialogue in found[:show]:
        typer.echo("\n" + "\n".join(_sample(dialogue, turns)))


@app.command()
def convert(
    data: Spec,
    out: Annotated[Path, typer.Argument(help="The .jsonl file to write.", show_default=False)],
    split: Split = None,
    max_rejected: Annotated[float, typer.Option(min=0, max=1, help="Share that may be malformed.")] = 0.05,
) -> None:
    """Write dialogues of any data set in our own format, JSON lines."""
    from finetune.dialogue import jsonl
    from finetune.dialogue.load import load

    found = load(data, split, max_rejected=max_rejected)
    count = jsonl.write(out, found)
    typer.echo(f"{out}: {count:,} dialogues, {len(found.rejected):,} malformed records left out")
    for reject in found.rejected[:TOLD]:
        typer.echo(_refusal(reject))


@app.command("make-synthetic")
def make_synthetic(
    out: Annotated[Path, typer.Argument(help="Folder for train, valid and test.jsonl.", show_default=False)],
    dialogues: Annotated[
        int, typer.Option(help="Of the train split; valid and test have a tenth each.")
    ] = 2000,
    seed: Annotated[int, typer.Option(help="Same seed, same dialogues.")] = 1,
    facts: Annotated[int, typer.Option(help="Facts told and asked for in each dialogue.")] = 3,
    near: Annotated[int, typer.Option(help="Fewest turns from telling to answering.")] = 9,
    far: Annotated[int, typer.Option(help="Most turns from telling to answering.")] = 21,
    values: Annotated[int, typer.Option(help="Words that a kind of fact has: chance is one in so many.")] = 8,
    persona: Annotated[int, typer.Option(help="Persona sentences of the one who answers.")] = 3,
    wordings: Annotated[int, typer.Option(help="Most ways to say a thing; 1: only facts vary.")] = 4,
) -> None:
    """Make up dialogues with facts told early and asked for late; see docs/dialogues.md."""
    from finetune.dialogue import synthetic

    options = {"dialogues": dialogues, "seed": seed, "facts": facts, "near": near, "far": far}
    grammar = synthetic.Grammar.make(options | {"values": values, "persona": persona, "wordings": wordings})
    counts = synthetic.write(out, grammar)
    typer.echo(f"{out}: " + ", ".join(f"{count:,} {split}" for split, count in counts.items()) + " dialogues")


def _token_counter(folder: Path) -> Callable[[Sequence[str]], list[int]]:
    from pretrain.corpus.tokenizer import load_tokenizer

    tokenizer = load_tokenizer(folder)
    return lambda texts: [len(ids) for ids in tokenizer.encode_batch(texts)]


def _account(found: Dialogues, split: str | None) -> dict[str, Any]:
    splits = {name or "all": count for name, count in found.splits.items()}
    return {"source": found.source, "split": split, "splits": splits}


def _refused(found: Dialogues) -> dict[str, Any]:
    rejects = [
        {"file": each.file, "line": each.line, "reason": each.reason, "detail": each.detail}
        for each in found.rejected
    ]
    notes = [{"file": each.file, "line": each.line, "what": each.what} for each in found.notes]
    return {
        "rejected": len(rejects),
        "rejects": rejects[:TOLD],
        "notes": notes[:TOLD],
        "files": found.files,
        "passed_over": found.passed_over,
    }


def _report(found: Dialogues, counts: dict[str, int | float]) -> Iterator[str]:
    yield f"{found.source}"
    for split, count in found.splits.items():
        yield f"  {split or 'all'}: {count:,} dialogues"
    for file in found.files[:TOLD]:
        yield f"  read {file}"
    for file in found.passed_over[:TOLD]:
        yield f"  not read: {file}"
    for key, value in (counts | {"rejected": len(found.rejected)}).items():
        if value or key in ("dialogues", "utterances", "rejected"):
            yield f"{value:>14,}  {key.replace('_', ' ')}"
    yield from map(_refusal, found.rejected[:TOLD])
    for note in found.notes[:TOLD]:
        yield f"  {note.file}:{note.line}: {note.what}"


def _refusal(reject: Reject) -> str:
    return f"  refused {reject.place}: {reject.why}"


def _sample(dialogue: Dialogue, turns: int) -> Iterator[str]:
    topic = f", {dialogue.topic}" if dialogue.topic else ""
    yield typer.style(f"{dialogue.id}{topic}", bold=True)
    for speaker, persona in enumerate(dialogue.personas):
        for sentence in persona:
            yield f"  persona of {_name(dialogue, speaker)}: {sentence}"
    session = 0
    for number, turn in enumerate(dialogue.turns[:turns]):
        if turn.session != session:
            session = turn.session
            gap = dialogue.sessions[session].gap if dialogue.sessions else ""
            yield f"  -- session {session + 1}{', after ' + gap if gap else ''} --"
        yield _turn(dialogue, number, turn)
    if len(dialogue.turns) > turns:
        yield f"  ... {len(dialogue.turns) - turns:,} more turns"


def _turn(dialogue: Dialogue, number: int, turn: Turn) -> str:
    head = f"{number:>4} {_name(dialogue, turn.speaker)}: "
    text = turn.text if len(turn.text) <= LONGEST else f"{turn.text[:LONGEST]} ..."
    return textwrap.fill(text, WIDTH, initial_indent=head, subsequent_indent=" " * len(head))


def _name(dialogue: Dialogue, speaker: int) -> str:
    return dialogue.roles[speaker] if speaker < len(dialogue.roles) else f"speaker {speaker}"
