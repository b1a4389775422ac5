"""Penn Treebank as language modelling has it: `ptb.{train,valid,test}.txt`, a sentence a line, tokens with
spaces.

Each sentence is a dialogue of one turn.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial

from finetune.dialogue.dialogue import Dialogue, Turn
from finetune.dialogue.files import File, Part, by_split
from finetune.dialogue.records import Item, Line, from_lines

LAYOUT = "ptb.train.txt, ptb.valid.txt, ptb.test.txt"


def parts(files: Sequence[File]) -> list[Part]:
    """One file a split."""
    return by_split(files, r"(ptb\.)?(train|valid|test)\.txt")


def read(part: Part) -> Iterator[Item]:
    """Sentences in the order of the lines."""
    for file in part.files:
        yield from from_lines(file, partial(_sentence, part.label))


def _sentence(label: str, line: Line) -> Dialogue:
    return Dialogue(f"{label}_{line.number - 1}", (Turn(0, line.text().strip()),))
