"""Wizard of Wikipedia, the raw JSON: dialogues whose wizard answers with sentences of Wikipedia at hand.

`train.json`, `{valid,test}_{random,topic}_split.json`; random is "seen", topic is "unseen": `valid` is both.

A wizard's turn has as `knowledge` what lay before the wizard (ParlAI's rule): the passage of the chosen
topic, what was retrieved for the apprentice's last turn, and for the wizard's own turn before; `chosen` is
the checked sentence. Roles are in the order of who opens. Tags: `title` of a turn, `persona` and
`wizard_eval` of a dialogue.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

from pydantic import Field

from finetune.dialogue.dialogue import Dialogue, Turn
from finetune.dialogue.files import File, Part, by_split
from finetune.dialogue.jsonarray import elements
from finetune.dialogue.records import Item, Record, bad, checked, from_python, rejected
from pretrain.corpus.documents import BadRecordError

LAYOUT = "train.json, valid_random_split.json, valid_topic_split.json, test_random_split.json, ..."
NOT_USED = "no_passages_used"
SUBSETS = {"random": "_seen", "topic": "_unseen"}


class Entry(Record):
    """One turn."""

    speaker: str
    text: str
    retrieved_passages: tuple[Mapping[str, tuple[str, ...]], ...] = ()
    checked_sentence: Mapping[str, str] | None = None
    checked_passage: Mapping[str, str] | str | None = None
    candidate_responses: tuple[str, ...] = ()


class Talk(Record):
    """One dialogue."""

    chosen_topic: str
    chosen_topic_passage: tuple[str, ...] = ()
    dialog: tuple[Entry, ...] = Field(min_length=1)
    persona: str = ""
    wizard_eval: int | None = None


def parts(files: Sequence[File]) -> list[Part]:
    """One file a split, seen and unseen topics apart."""
    return by_split(files, r"train\.json|(valid|test)_(random|topic)_split\.json", split=_split)


def read(part: Part) -> Iterator[Item]:
    """Dialogues in the order of the file."""
    known: dict[str, str] = {}  # passages repeat across dialogues: one string each
    for file in part.files:
        for number, (line, value) in enumerate(elements(file)):
            try:
                yield checked(_dialogue(f"{part.label}_{number}", from_python(Talk, value), known))
            except BadRecordError as error:
                yield rejected(file, bad(error.reason, f"dialogue {number}: {error.detail}"), line)


def _split(file: File) -> str:
    subset = next((found for word, found in SUBSETS.items() if f"_{word}_" in file.name), "")
    return file.split + subset if file.split in ("valid", "test") else file.split


def _dialogue(name: str, talk: Talk, known: dict[str, str]) -> Dialogue:
    opener = _role(talk.dialog[0])
    roles = (opener, "apprentice" if opener == "wizard" else "wizard")
    turns = []
    for at, entry in enumerate(talk.dialog):
        turn = Turn(roles.index(_role(entry)), entry.text, candidates=entry.candidate_responses)
        turns.append(_grounded(turn, talk, at, known) if _role(entry) == "wizard" else turn)
    told = {"persona": talk.persona, "wizard_eval": "" if talk.wizard_eval is None else str(talk.wizard_eval)}
    tags = {key: value for key, value in told.items() if value}
    return Dialogue(name, tuple(turns), roles=roles, topic=talk.chosen_topic, tags=tags)


def _role(entry: Entry) -> str:
    return "wizard" if "wizard" in entry.speaker.lower() else "apprentice"


def _grounded(turn: Turn, talk: Talk, at: int, known: dict[str, str]) -> Turn:
    """The wizard's turn `at` with what the wizard could read."""
    passages = {talk.chosen_topic: talk.chosen_topic_passage}
    for earlier in (at - 1, at - 2):
        if earlier >= 0:
            for retrieved in talk.dialog[earlier].retrieved_passages:
                for title, passage in retrieved.items():
                    passages.setdefault(title, passage)
    knowledge = [(title, sentence) for title, passage in passages.items() for sentence in passage]
    entry = talk.dialog[at]
    picked = next(iter((entry.checked_sentence or {}).values()), NOT_USED)
    titles = list(entry.checked_passage.values()) if isinstance(entry.checked_passage, Mapping) else []
    places = [place for place, (_, sentence) in enumerate(knowledge) if sentence == picked]
    chosen = next((place for place in places if knowledge[place][0] in titles), places[0] if places else None)
    if chosen is None and picked != NOT_USED:  # from a passage that is not in the file
        chosen, knowledge = 0, [("", picked), *knowledge]
    title = knowledge[chosen][0] if chosen is not None else ""
    sentences = tuple(known.setdefault(sentence, sentence) for _, sentence in knowledge)
    return replace(turn, knowledge=sentences, chosen=chosen, tags={"title": title} if title else {})
