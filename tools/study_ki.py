"""`membart study ki-...`: the comparisons of the knowledge internalization paper on models of any size.

Each row of a table is a run of its own that goes on where it was.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from pretrain.errors import UserError
from tools.models import check_folder
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
    from finetune.evaluate import Evaluation
    from finetune.knowledge.controls import Control

FAMILY = "ki"
CONTROLS: Mapping[str, Control | None] = {
    "Base": None,
    "Token-level": "none",
    "Random": "random",
    "Sentence-level": "sentence",
    "Factual": "factual",
    "Linguistic": "linguistic",
}
"""Table 5 and Figure 3: the paper's names, and our `knowledge_control`; None: no knowledge."""
SCRATCH = "scratch"
BODIES: Mapping[str, tuple[str, str, bool]] = {
    "membart": ("MemBART", "ki", True),
    "bart": ("BART", "ki", True),
    "transformer": ("Transformer", "ki_transformer", False),
    "lstm": ("Seq2Seq", "ki_transformer", False),
    "diffks": ("DiffKS", "ki_diffks", False),
}
"""Table 1 and what we add to it: the row's name, its recipe, and whether it starts from the backbone."""
METRICS = (
    *("wiki_f1", "wiki_f1_selected", "knowledge_accuracy", "f1", "bleu_4", "rouge_l_recall"),
    *("distinct_1_normalized", "distinct_2_normalized", "safe", "length"),
)

Knowledge = Annotated[Path, typer.Option(help="Folder of membart ki annotate.", show_default=False)]


def ki_controls(
    start: Start,
    data: Data,
    knowledge: Knowledge,
    changes: Changes = None,
    recipe: Annotated[str, typer.Option(help="ki, or another recipe of the family.")] = FAMILY,
    out: Out = Path("study/ki-controls"),
    rows: Annotated[str, typer.Option(help="Which to train, by their names.")] = ",".join(CONTROLS),
    split: Split = "test",
    dialogues: Dialogues = None,
) -> None:
    """Table 5 and Figure 3: right, random, sentence-level knowledge; of nouns, of other words; and none."""
    from finetune.metrics import papers

    wanted = _chosen(rows, CONTROLS, "--rows")
    told = knowledge_coverage(knowledge, [CONTROLS[name] for name in wanted], data, split, dialogues)
    variants = {name: Variant(recipe, start, _switches(knowledge, CONTROLS[name])) for name in wanted}
    found = sweep(variants, data, changes or [], out, split, dialogues, METRICS)
    more = {name: told[control] for name in wanted if (control := CONTROLS[name]) in told}
    beside = papers.beside(FAMILY, rows=[name for name in wanted if name != "Base"], dataset="wow")
    _report(found, more, beside, out / "controls.json")


def ki_bodies(
    start: Start,
    data: Data,
    knowledge: Knowledge,
    changes: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[[BODY:]KEY=VALUE]...",
            help="Changes to every run's recipe, or to one body's: transformer:model.config.width=128.",
        ),
    ] = None,
    bodies: Annotated[str, typer.Option(help="Which to train; diffks needs dialogues with candidates.")] = (
        "membart,bart,transformer,lstm"
    ),
    out: Out = Path("study/ki-bodies"),
    paper: Annotated[
        Literal["dailydialog", "wow"], typer.Option(help="Data of the paper whose figures stand beside.")
    ] = "dailydialog",
    split: Split = "test",
    dialogues: Dialogues = None,
) -> None:
    """Table 1: every body without and with knowledge internalization.

    Those of the paper start from scratch, with the tokenizer of the backbone.
    """
    from finetune import backbone
    from finetune.metrics import papers

    wanted = _chosen(bodies, BODIES, "--bodies")
    check_folder(out)
    knowledge_coverage(knowledge, ["none"], data, split, dialogues)  # refused before anything is trained
    tokenizer = out / "tokenizer"
    backbone.find(start).tokenizer.save_pretrained(tokenizer)
    found: dict[str, Evaluation] = {}
    for body in wanted:
        variants = pair(body, start, tokenizer, knowledge)
        found |= sweep(variants, data, changes_of(changes or [], body), out, split, dialogues, METRICS)
    names = [*found, *(["BART-base"] if "bart" in wanted else [])]
    _report(found, {}, papers.beside(FAMILY, paper, rows=names), out / "bodies.json")


def pair(body: str, start: str, tokenizer: Path, knowledge: Path) -> dict[str, Variant]:
    """A body without and with knowledge internalization, by the names of the paper's rows."""
    name, recipe, taken = BODIES[body]
    own = (f"model.body={body}", *(() if taken else (f"tokenizer={tokenizer}",)))
    place = start if taken else SCRATCH
    return {
        name: Variant(recipe, place, own),
        f"{name}+KI": Variant(recipe, place, (*own, *_switches(knowledge, "none"))),
    }


def changes_of(changes: Sequence[str], body: str) -> list[str]:
    """The changes for all bodies and those for this one."""
    found = []
    for change in changes:
        of, colon, rest = change.partition(":")
        if not colon or of not in BODIES:
            found.append(change)
        elif of == body:
            found.append(rest)
    return found


def knowledge_coverage(
    knowledge: Path,
    controls: Sequence[Control | None],
    data: Sequence[str],
    split: str,
    dialogues: int | None,
) -> dict[Control, dict[str, float]]:
    """Figure 3 c by control: the share of a reply's words that the sentences before it hold, in percent.

    Raises:
        UserError: no annotations there, or words without the parts of speech that a control needs.
    """
    from finetune.dialogue.load import load
    from finetune.knowledge.annotations import Annotations
    from finetune.knowledge.controls import controlled
    from finetune.knowledge.inspection import counts

    annotations = Annotations.open(knowledge)
    some = [dialogue for source in data for dialogue in list(load(source, split))[:dialogues]]
    return {
        control: {"knowledge_coverage": counts(controlled(annotations, control), some).coverage}
        for control in controls
        if control is not None
    }


def _switches(knowledge: Path, control: Control | None) -> tuple[str, ...]:
    if control is None:
        return ()
    return (f"model.knowledge={knowledge}", f"model.knowledge_control={control}")


def _chosen(names: str, known: Mapping[str, Any], option: str) -> list[str]:
    found = [name.strip() for name in names.split(",") if name.strip()]
    unknown = next((name for name in found if name not in known), None)
    if unknown is not None or not found:
        problem = "nothing to train" if unknown is None else f"no '{unknown}'"
        raise UserError(problem, where=option, mend=f"some of: {', '.join(known)}")
    return found


def _report(
    found: Mapping[str, Evaluation],
    more: Mapping[str, Mapping[str, float]],
    beside: Mapping[str, Mapping[str, float]],
    path: Path,
) -> None:
    """Print the table with the paper's columns beside, and write what was found."""
    from finetune.metrics import table

    columns = {
        name: {**figures(one, "perplexity", "perplexity_reset"), **one.metrics.values, **more.get(name, {})}
        for name, one in found.items()
    }
    typer.echo(table({**columns, **beside}))
    for metric, reason in next(iter(found.values())).metrics.unavailable.items():
        typer.echo(f"{metric}: {reason}")
    typer.echo("The paper's models are far larger, and trained on whole data sets.")
    write(path, {name: {**as_json(one), "figures": columns[name]} for name, one in found.items()})


COMMANDS = (ki_controls, ki_bodies)
