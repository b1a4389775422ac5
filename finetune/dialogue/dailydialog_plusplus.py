"""DailyDialog++: contexts with five replies that fit, five that only seem to, and five random ones; JSON
lines.

The last turn is the reply: its text the first that fits, `references` all of them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial

from pydantic import Field

from finetune.dialogue.dialogue import Dialogue, Turn
from finetune.dialogue.files import File, Part, by_split
from finetune.dialogue.records import Item, Line, Record, from_json, from_lines

LAYOUT = "train.json, dev.json, test.json"


class Context(Record):
    """One line."""

    id: int
    context: tuple[str, ...] = Field(min_length=1)
    positive_responses: tuple[str, ...] = Field(min_length=1)
    adversarial_negative_responses: tuple[str, ...] = ()
    random_negative_responses: tuple[str, ...] = ()


def parts(files: Sequence[File]) -> list[Part]:
    """One file a split."""
    return by_split(files, r"(train|dev|test)\.jsonl?")


def read(part: Part) -> Iterator[Item]:
    """Contexts in the order of the lines."""
    for file in part.files:
        yield from from_lines(file, partial(_dialogue, part.label))


def _dialogue(label: str, line: Line) -> Dialogue:
    found = from_json(Context, line.text())
    before = [Turn(at % 2, text) for at, text in enumerate(found.context)]
    reply = Turn(
        len(before) % 2,
        found.positive_responses[0],
        references=found.positive_responses,
        negatives=found.random_negative_responses,
        adversarial=found.adversarial_negative_responses,
    )
    return Dialogue(f"{label}_{found.id}", (*before, reply))
