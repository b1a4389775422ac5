"""`membart evaluate` and `membart generate`: what a fine-tuned model is worth, and what it says."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pretrain.files import write_atomically
from tools import models

if TYPE_CHECKING:
    from finetune.chat import Chat
    from finetune.fitted import Fitted

_HELP = "/reset forgets everything, /memory shows the state of the slots, /quit ends."


def evaluate(
    model: models.Model,
    overrides: models.Overrides = None,
    data: Annotated[
        list[str] | None, typer.Option(help="Dialogues as NAME:PATH; the fine-tune's own unless given.")
    ] = None,
    split: Annotated[str, typer.Option(help="train, valid or test.")] = "test",
    out: Annotated[
        Path | None, typer.Option(help="Folder for the results; RUN/evaluation/SPLIT unless given.")
    ] = None,
    dialogues: Annotated[int | None, typer.Option(min=1, help="Only so many of each source.")] = None,
    agents: Annotated[int, typer.Option(min=1, help="Dialogues that run side by side.")] = 16,
    metrics: Annotated[str, typer.Option(help="Names, with commas; the family's unless given.")] = "",
    replies: Annotated[bool, typer.Option(help="Generate replies; without them only perplexities.")] = True,
    device: models.Device = "",
) -> None:
    """Score a fine-tuned model: perplexities, generated replies, its family's metrics beside the paper's.

    Writes evaluation.json, evaluation.md, predictions.jsonl and pictures of figures by layer, adds the table
    to the run's report, and logs the figures to the run's MLflow run.
    """
    from tqdm import tqdm

    from finetune.evaluate import evaluate as score
    from finetune.results import draw, folder_for, publish, table

    if out is not None:
        models.check_folder(out)
    fitted = load_fitted(model, overrides, device)
    bar = tqdm(unit="reply", disable=not sys.stderr.isatty())

    def progress(done: int, total: int) -> None:
        bar.total = total
        bar.update(done - bar.n)

    found = score(
        fitted,
        split,
        sources=data or (),
        agents=agents,
        max_dialogues=dialogues,
        generate=replies,
        metrics=[name.strip() for name in metrics.split(",") if name.strip()],
        progress=progress,
    )
    bar.close()
    text = table(fitted.recipe.family, found)
    folder = out or folder_for(fitted, split)
    found.write(folder, text)
    pictures = [path.name for path in draw(found, folder)]
    if out is None:
        publish(fitted, split, found, text, folder)
    print(text)
    print(f"{folder}: {', '.join(['evaluation.json', 'evaluation.md', 'predictions.jsonl', *pictures])}")


def generate(
    model: models.Model,
    overrides: models.Overrides = None,
    source: Annotated[
        str | None, typer.Option("--input", help="Dialogues as NAME:PATH; each gets the next reply.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="JSON lines of dialogue id and replies.")] = None,
    persona: Annotated[
        list[str] | None, typer.Option(help="A sentence about the model; may be given more than once.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of everything that is drawn.")] = 1,
    device: models.Device = "",
) -> None:
    """Answer dialogues from a file, or talk: a conversation that keeps its memory from turn to turn."""
    if out is not None:
        models.check_file(out)
    fitted = load_fitted(model, overrides, device)
    if source is None:
        from finetune.chat import Chat

        _talk(Chat(fitted, tuple(persona or ()), seed))
        return
    from finetune.chat import continue_dialogue
    from finetune.dialogue.load import load

    lines = (
        json.dumps(
            {"dialogue": dialogue.id, "replies": continue_dialogue(fitted, dialogue, seed)},
            ensure_ascii=False,
        )
        for dialogue in load(source, None)
        if dialogue.turns
    )
    if out is None:
        for line in lines:
            print(line, flush=True)
        return
    text = "".join(f"{line}\n" for line in lines)
    out.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(out, text)
    print(out)


def load_fitted(model: Path, overrides: list[str] | None, device: str) -> Fitted:
    """A fine-tuned model on a device; without a name for one, on a GPU where there is one.

    Raises:
        UserError, CheckpointError: nothing fine-tuned there, it is damaged, or there is no such device.
    """
    wanted = models.find_device(device)
    from finetune.fitted import load

    fitted = load(model, overrides or [])
    fitted.model.to(wanted)
    return fitted


def _talk(chat: Chat) -> None:
    print(f"{chat.fitted.place}: {_HELP}")
    while True:
        try:
            said = input("you> ").strip()
        except (EOFError, KeyboardInterrupt):
            print()
            return
        if said == "/quit":
            return
        if said == "/reset":
            chat.reset()
            print("forgotten")
        elif said == "/memory":
            print(describe_memory(chat))
        elif said.startswith("/"):
            print(_HELP)
        elif said:
            replies = chat.say(said)
            print("\n".join(f"bot> {reply}" for reply in replies) or "bot>")


def describe_memory(chat: Chat) -> str:
    """How full the slots are, and how far the context window reaches back."""
    data, slots = chat.fitted.recipe.data, chat.memory.shape[1]
    if not slots or data.memory != "carry":
        return f"no memory is carried (data.memory={data.memory})"
    norms = chat.memory[0].norm(dim=-1)
    spread = f"norms {float(norms.min()):.2f} to {float(norms.max()):.2f}"
    gone = chat.window().turns.count("none") if chat.turns else 0
    return (
        f"{len(chat.turns)} turns, {gone} of them outside the context window of {data.context_tokens} "
        f"tokens; {slots} slots, {spread}"
    )
