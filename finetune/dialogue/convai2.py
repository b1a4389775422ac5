"""PersonaChat as of ConvAI2 (ParlAI's text): numbered lines, `1 ` begins a dialogue, personas come first.

    1 your persona: i have two dogs.
    2 partner's persona: i am a baker.
    3 hello !<TAB>hi , do you have pets ?<TAB><TAB>candidate|candidate|hi , do you have pets ?

The partner speaks first: speaker 0; "you" is speaker 1. A folder holds the same dialogues several times
(self, other, both, none; original, revised; with and without candidates): the one that tells most is read.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from finetune.dialogue.dialogue import Dialogue, Turn
from finetune.dialogue.files import File, Part, by_split, singly
from finetune.dialogue.records import Item, Line, bad, checked, lines, rejected
from pretrain.corpus.documents import BadRecordError

LAYOUT = "train_both_original.txt, valid_self_original_no_cands.txt and the like"
ROLES = ("partner", "you")
PERSONAS = {"your persona:": 1, "partner's persona:": 0}
NUMBERED = re.compile(r"(\d+) (.*)", re.DOTALL)


def parts(files: Sequence[File]) -> list[Part]:
    """One file a split: both personas before one, original before revised, with candidates before without."""
    return singly(by_split(files, r".*(self|both|other|none)_(original|revised).*\.txt"), _rank)


def read(part: Part) -> Iterator[Item]:
    """Dialogues in the order of the file, `valid_0` the first of its valid split."""
    known: dict[str, str] = {}  # candidates repeat hundreds of times: one string each
    for file in part.files:
        for number, block in enumerate(_blocks(file)):
            try:
                yield checked(_dialogue(f"{part.label}_{number}", block, known))
            except BadRecordError as error:
                yield rejected(file, error, block[0].number)


def _rank(file: File) -> tuple[int, bool, bool, str]:
    kinds = ("none", "other", "self", "both")
    kind = next((at for at, word in enumerate(kinds) if f"_{word}_" in f"_{file.name.lower()}"), -1)
    return kind, "original" in file.name, "no_cands" not in file.name, file.name


def _blocks(file: File) -> Iterator[list[Line]]:
    """Lines of one dialogue after the other; blank lines are nothing."""
    block: list[Line] = []
    for line in lines(file):
        if line.raw.startswith(b"1 ") and block:
            yield block
            block = []
        if not line.blank:
            block.append(line)
    if block:
        yield block


def _dialogue(name: str, block: list[Line], known: dict[str, str]) -> Dialogue:
    personas: tuple[list[str], list[str]] = ([], [])
    turns: list[Turn] = []
    for count, line in enumerate(block, start=1):
        match = NUMBERED.fullmatch(line.text())
        if not match or int(match[1]) != count:
            raise bad("bad_number", f"expected line {count} of the dialogue", line.number)
        whose = next((mark for mark in PERSONAS if match[2].startswith(mark)), None)
        if whose:
            personas[PERSONAS[whose]].append(match[2].removeprefix(whose).strip())
        else:
            turns += _exchange(match[2], line.number, known)
    told = tuple(map(tuple, personas)) if any(personas) else ()
    return Dialogue(name, tuple(turns), personas=told, roles=ROLES)


def _exchange(text: str, line: int, known: dict[str, str]) -> Iterator[Turn]:
    said, tab, rest = text.partition("\t")
    if not tab:
        raise bad("no_reply", "no tab after what the partner says", line)
    reply, *more = rest.split("\t")
    candidates = more[-1].split("|") if more and more[-1] else []
    yield Turn(0, said)
    yield Turn(1, reply, candidates=tuple(known.setdefault(text, text) for text in candidates))
