"""Commonsense Reddit in the layout of CCM: `trainset.txt`, `validset.txt`, `testset.txt` and `resource.txt`.

JSON lines of tokens; a post retrieves graphs of ConceptNet triples, numbers that `resource.txt` spells out.
The reply has as `knowledge` the triples of all graphs ("head, relation, tail"), as `chosen` the first that
it uses, and as `entities` the entities of the graphs.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial

from pydantic import Field

from finetune.dialogue.dialogue import Dialogue, Turn
from finetune.dialogue.files import File, Part, by_split
from finetune.dialogue.records import Item, Line, Record, bad, from_json, from_lines, lines
from pretrain.corpus.documents import BadRecordError
from pretrain.errors import UserError

LAYOUT = "trainset.txt, validset.txt, testset.txt with resource.txt"
RESOURCE = "resource.txt"


class Resource(Record):
    """`resource.txt`, as far as we need it."""

    csk_triples: tuple[str, ...]
    csk_entities: tuple[str, ...]


class Pair(Record):
    """A line: a post and a response."""

    post: tuple[str, ...] = Field(min_length=1)
    response: tuple[str, ...] = Field(min_length=1)
    all_triples: tuple[tuple[int, ...], ...] = ()
    all_entities: tuple[tuple[int, ...], ...] = ()
    response_triples: tuple[int, ...] = ()


def parts(files: Sequence[File]) -> list[Part]:
    """The file of each split; the resource is looked for beside it."""
    return by_split(files, r"(train|valid|test)(set)?\w*\.txt")


def read(part: Part) -> Iterator[Item]:
    """Pairs in the order of the lines."""
    for file in part.files:
        yield from from_lines(file, partial(_dialogue, part.label, _resource(file)))


def _resource(file: File) -> Resource:
    found = file.beside(RESOURCE)
    if not found:
        raise UserError(f"no {RESOURCE} beside it", where=file.label, mend=f"expected {LAYOUT}")
    try:
        return from_json(Resource, b"\n".join(line.raw for line in lines(found)))
    except BadRecordError as error:
        raise UserError(f"{error.reason.replace('_', ' ')}: {error.detail}", where=found.label) from None


def _dialogue(label: str, resource: Resource, line: Line) -> Dialogue:
    pair = from_json(Pair, line.text())
    triples = _spelled(resource.csk_triples, (number for graph in pair.all_triples for number in graph))
    entities = _spelled(resource.csk_entities, (number for graph in pair.all_entities for number in graph))
    used = _spelled(resource.csk_triples, (number for number in pair.response_triples if number >= 0))
    chosen = next((triples.index(triple) for triple in used if triple in triples), None)
    reply = Turn(1, " ".join(pair.response), knowledge=triples, chosen=chosen, entities=entities)
    return Dialogue(f"{label}_{line.number - 1}", (Turn(0, " ".join(pair.post)), reply))


def _spelled(names: Sequence[str], numbers: Iterator[int]) -> tuple[str, ...]:
    """The names of `numbers`, each once."""
    wanted = dict.fromkeys(numbers)
    wrong = [number for number in wanted if not 0 <= number < len(names)]
    if wrong:
        raise bad("bad_record", f"{RESOURCE} has no number {wrong[0]}")
    return tuple(dict.fromkeys(names[number] for number in wanted))
