"""Persona dialogues out of a grammar: facts told early and asked for late, answers that can be checked
exactly.

A dialogue is a row of exchanges: speaker 0 says something, speaker 1 answers. The grammar, one line an
exchange:

    greeting    hello !                             hi , nice to see you !
    telling     my name is emma .                   i will remember that .
    asking      do you remember my name ?           your name is emma .
    persona     what do you do for a living ?       i work as a baker .
    knowledge   what does the otter eat ?           the otter eats fish .
    small talk  how are you today ?                 i am a little tired .

    dialogue := greeting telling{facts} (persona | knowledge | small talk | asking)*

It begins with the greeting and the tellings, and ends with the last asking. Each fact is told once, is not
repeated by the answer, and is asked for once: between `near` and `far` turns lie from the turn that tells
it to the turn that answers, an odd number. So every window of fewer turns has lost the fact, and only a
memory can know it: by chance an answer is right once in `values` times. What fills the time between is
drawn at random:

- persona: speaker 1 has `persona` sentences about itself (kinds of which speaker 0 tells others in the same
  words, so that whose fact it is matters); speaker 0's persona is its facts.
- knowledge: the animals are the same in every dialogue, so what is known of them can be learned; the reply's
  `knowledge` is the three sentences about the animal, `chosen` the one it was made from.
- small talk: no right answer, several that are accepted.

Every reply of speaker 1 has all accepted wordings as `references`. Tags: `recall` (the word that must be
there), `kind`, `distance` (in turns) and `told` (index of the telling turn) on an answer from memory;
`tells` and `kind` on a telling; `persona` or `animal` on the other answers. Dialogue number n of a split
depends on seed, split and n alone, so a larger set begins with a smaller one. All words are lower-case,
with spaces around punctuation: about 250 in all.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from pydantic import Field, ValidationError, model_validator

from finetune.dialogue import jsonl
from finetune.dialogue.dialogue import Dialogue, Turn
from finetune.dialogue.records import refused
from finetune.dialogue.wordings import ANIMALS, FACTS, GREETINGS, HEARD, KINDS, SMALL_TALK, VALUES
from pretrain.errors import UserError
from pretrain.recipe import Section

SPLITS = ("train", "valid", "test")
OTHER_SHARE = 10
"""One valid and one test dialogue for so many train dialogues."""
ASKER, ANSWERER = 0, 1


class Grammar(Section):
    """How dialogues are made."""

    dialogues: int = Field(default=2000, ge=1)
    """Of the train split; valid and test have a tenth each."""
    seed: int = 1
    facts: int = Field(default=3, ge=1, le=len(KINDS))
    """Told and asked for in each dialogue, of different kinds."""
    near: int = Field(default=9, ge=3)
    """Fewest turns from telling to answering."""
    far: int = Field(default=21, ge=3)
    """Most turns from telling to answering."""
    values: int = Field(default=8, ge=2, le=VALUES)
    """How many words a kind of fact has."""
    persona: int = Field(default=3, ge=0, le=len(KINDS))
    """Sentences in the persona of the one who answers."""
    wordings: int = Field(default=4, ge=1)
    """Most ways to say a thing. With 1 nothing but the facts is left to chance: what a reply costs beyond the
    greeting and the small talk is what was forgotten."""

    @model_validator(mode="after")
    def _room(self) -> Grammar:
        if self.far < self.near or self._gaps[0] > self._gaps[1]:
            raise ValueError(f"no odd number of turns from near={self.near} to far={self.far}")
        if self._gaps[1] < self.facts:
            raise ValueError(f"far must be at least {2 * self.facts + 1} to tell {self.facts} facts first")
        return self

    @property
    def _gaps(self) -> tuple[int, int]:
        """`near` and `far` in exchanges."""
        return math.ceil((self.near - 1) / 2), (self.far - 1) // 2

    @classmethod
    def parse(cls, text: str) -> Grammar:
        """From `dialogues=500,seed=3`; a folder before it, put there to make a path absolute, counts for
        nothing.

        Raises:
            UserError: no such option, or a value that does not fit.
        """
        words = [word for word in text.rpartition("/")[2].split(",") if word]
        pairs = [word.partition("=") for word in words]
        if not all(sign for _, sign, _ in pairs):
            raise UserError(
                f"neither a path nor options: {text!r}",
                where="synthetic",
                mend="e.g. synthetic:dialogues=500,seed=3",
            )
        return cls.make({key: value for key, _, value in pairs})

    @classmethod
    def make(cls, options: Mapping[str, object]) -> Grammar:
        """From options by name.

        Raises:
            UserError: no such option, or a value that does not fit.
        """
        try:
            return cls.model_validate(options)
        except ValidationError as error:
            mend = f"options: {', '.join(cls.model_fields)}"
            raise UserError(
                refused(error).detail.removeprefix("Value error, "), where="synthetic", mend=mend
            ) from None

    def size(self, split: str) -> int:
        """Number of dialogues of a split."""
        return self.dialogues if split == "train" else max(1, self.dialogues // OTHER_SHARE)


def generate(grammar: Grammar, split: str) -> tuple[Dialogue, ...]:
    """The dialogues of a split."""
    return tuple(_dialogue(grammar, f"{split}_{number}") for number in range(grammar.size(split)))


def write(folder: Path, grammar: Grammar) -> dict[str, int]:
    """Write the splits as our JSON lines into `folder`; dialogues by split.

    Raises:
        UserError: it cannot be written.
    """
    return {split: jsonl.write(folder / f"{split}.jsonl", generate(grammar, split)) for split in SPLITS}


def answered(turn: Turn, reply: str) -> bool:
    """Whether `reply` names the fact that `turn`, one with a `recall` tag, should, and no other of its
    kind.
    """
    said = set(reply.split()) & set(KINDS[turn.tags["kind"]].values)
    return said == {turn.tags["recall"]}


def _dialogue(grammar: Grammar, name: str) -> Dialogue:
    dice = random.Random(f"{grammar.seed}/{name}")
    kinds = dice.sample(sorted(KINDS), grammar.facts)
    facts = {kind: dice.choice(KINDS[kind].values[: grammar.values]) for kind in kinds}
    own = {
        kind: dice.choice(
            [value for value in KINDS[kind].values[: grammar.values] if value != facts.get(kind)]
        )
        for kind in dice.sample(sorted(KINDS), grammar.persona)
    }
    asked = _places(dice, grammar)
    fillers = _fillers(dice, own)
    most = grammar.wordings
    greetings, welcomes, heard = (ways[:most] for ways in (*GREETINGS, HEARD))
    turns = list(_exchange(dice.choice(greetings), dice.choice(welcomes), welcomes))
    for kind, value in facts.items():
        told = dice.choice(KINDS[kind].tells[:most]).format(value)
        turns += _exchange(told, dice.choice(heard), heard, tells={"tells": value, "kind": kind})
    for exchange in range(1 + grammar.facts, max(asked) + 1):
        if exchange in asked:
            at = asked.index(exchange)
            fact = (kinds[at], facts[kinds[at]])
            turns += _asking(dice, *fact, told=2 * (1 + at), answer=2 * exchange + 1, most=most)
        else:
            turns += next(fillers)
    personas = tuple(
        tuple(KINDS[kind].tells[0].format(value) for kind, value in known.items()) for known in (facts, own)
    )
    return Dialogue(name, tuple(turns), personas=personas)


def _places(dice: random.Random, grammar: Grammar) -> list[int]:
    """The exchange in which each fact is asked for; the greeting is exchange 0, fact i is told in exchange
    1 + i.
    """
    first, last = grammar._gaps
    taken = set(range(1 + grammar.facts))
    found: list[int] = []
    for fact in range(grammar.facts):
        free = [place for gap in range(first, last + 1) if (place := 1 + fact + gap) not in taken]
        if not free:  # the same distance for all always fits
            return [1 + each + last for each in range(grammar.facts)]
        found.append(dice.choice(free))
        taken.add(found[-1])
    return found


def _fillers(dice: random.Random, own: Mapping[str, str]) -> Iterator[tuple[Turn, Turn]]:
    """Exchanges without end: again and again the persona, some animals and all small talk, shuffled."""
    questions = [(animal, fact) for animal in ANIMALS for fact in range(len(FACTS))]
    while True:
        bag = [_persona(dice, kind, value) for kind, value in own.items()]
        bag += [_knowledge(dice, *question) for question in dice.sample(questions, len(SMALL_TALK))]
        bag += [_exchange(said, dice.choice(replies), replies) for said, replies in SMALL_TALK]
        dice.shuffle(bag)
        yield from bag


def _asking(
    dice: random.Random, kind: str, value: str, *, told: int, answer: int, most: int
) -> tuple[Turn, Turn]:
    accepted = tuple(wording.format(value) for wording in KINDS[kind].answers[:most])
    tags = {"recall": value, "kind": kind, "distance": str(answer - told), "told": str(told)}
    return _exchange(dice.choice(KINDS[kind].asks[:most]), dice.choice(accepted), accepted, tags)


def _persona(dice: random.Random, kind: str, value: str) -> tuple[Turn, Turn]:
    accepted = tuple(wording.format(value) for wording in KINDS[kind].tells)
    return _exchange(dice.choice(KINDS[kind].self_asks), dice.choice(accepted), accepted, {"persona": value})


def _knowledge(dice: random.Random, animal: str, fact: int) -> tuple[Turn, Turn]:
    known = tuple(
        sentence.format(animal=animal, value=value)
        for (sentence, _, _), value in zip(FACTS, ANIMALS[animal], strict=True)
    )
    _, question, wordings = FACTS[fact]
    accepted = tuple(wording.format(animal=animal, value=ANIMALS[animal][fact]) for wording in wordings)
    asks, answers = _exchange(
        question.format(animal=animal), dice.choice(accepted), accepted, {"animal": animal}
    )
    return asks, Turn(
        ANSWERER, answers.text, references=accepted, knowledge=known, chosen=fact, tags=answers.tags
    )


def _exchange(
    said: str,
    reply: str,
    accepted: Sequence[str],
    tags: Mapping[str, str] | None = None,
    *,
    tells: Mapping[str, str] | None = None,
) -> tuple[Turn, Turn]:
    return Turn(ASKER, said, tags=tells or {}), Turn(
        ANSWERER, reply, references=tuple(accepted), tags=tags or {}
    )
