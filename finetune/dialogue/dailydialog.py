"""DailyDialog: one dialogue a line, `utterance __eou__ utterance __eou__`, beside parallel files of labels.

Three layouts: the official one (`train.zip` with `train/dialogues_train.txt`, `dialogues_act_train.txt`,
`dialogues_emotion_train.txt`, zipped or unpacked; `dialogues_text.txt` is the whole, with topics), the same
with other suffixes, and one file with tabs: text, topic, acts, emotions. The `__eou__` at the end may be
missing.

Tags of a turn: `act`, `emotion`; the dialogue's `topic`. Speakers take turns.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence

from finetune.dialogue.dialogue import Dialogue, Turn
from finetune.dialogue.files import File, Part, by_split
from finetune.dialogue.records import Item, Line, Note, bad, checked, lines, rejected
from pretrain.corpus.documents import BadRecordError
from pretrain.errors import UserError

LAYOUT = (
    "train.zip or train/dialogues_train.txt, dialogues_text.txt, or lines of text, topic, acts and emotions"
)
END = "__eou__"
ACTS = ("no_act", "inform", "question", "directive", "commissive")
EMOTIONS = ("no_emotion", "anger", "disgust", "fear", "happiness", "sadness", "surprise")
TOPICS = (
    "",
    "ordinary_life",
    "school_life",
    "culture_and_education",
    "attitude_and_emotion",
    "relationship",
    "tourism",
    "health",
    "work",
    "politics",
    "finance",
)
LABELS = {"topic": ("topic",), "act": ("act", "action"), "emotion": ("emotion",)}
"""What the parallel files are called."""


def parts(files: Sequence[File]) -> list[Part]:
    """The files of text; labels are looked for beside them."""
    main = r"dialogues_(train|validation|test|text(_\w+)?)\.txt|[a-z]+_(train|dev|test)(_\w+)?\.(txt|tsv)"
    return by_split(files, main)


def read(part: Part) -> Iterator[Item]:
    """Dialogues in the order of the lines. One whose labels do not fit its utterances comes without them."""
    for file in part.files:
        parallel = {kind: found for kind in LABELS if (found := _labels(file, kind)) is not None}
        text = list(_full_lines(file))
        for kind, labels in parallel.items():
            if len(labels) != len(text):
                raise UserError(
                    f"{len(text)} lines, but {len(labels)} of {kind}",
                    where=file.label,
                    mend="get the files again",
                )
        for number, line in enumerate(text):
            labels_here = {kind: labels[number] for kind, labels in parallel.items()}
            try:
                yield from _dialogue(f"{part.label}_{number}", file, line, labels_here)
            except BadRecordError as error:
                yield rejected(file, error, line.number)


def _full_lines(file: File) -> Iterator[Line]:
    """All lines but the blank ones at the end."""
    waiting: list[Line] = []
    for line in lines(file):
        waiting.append(line)
        if not line.blank:
            yield from waiting
            waiting = []


def _labels(file: File, kind: str) -> list[str] | None:
    """Lines of the parallel file of `kind`; None where there is none."""
    match = re.fullmatch(r"dialogues_(text)?_?(\w*)", file.path.stem)
    if not match:
        return None
    ends = [f"_{match[2]}"] * bool(match[2]) + [""] * bool(
        match[1]
    )  # a label file of the whole fits no split
    found = file.beside(*(f"dialogues_{word}{end}.txt" for end in ends for word in LABELS[kind]))
    try:
        return [line.text() for line in _full_lines(found)] if found else None
    except BadRecordError as error:
        raise UserError(f"no UTF-8: {error.detail}", where=found.label if found else "") from None


def _dialogue(name: str, file: File, line: Line, labels: Mapping[str, str]) -> Iterator[Item]:
    text, *columns = line.text().split("\t")
    if columns:
        labels = dict(zip(LABELS, columns, strict=False))
    utterances = [utterance.strip() for utterance in text.split(END)]
    if not utterances[-1]:
        utterances.pop()
    if len(utterances) < 2:
        raise bad("no_dialogue", f"{len(utterances)} utterances between {END} marks")
    acts, emotions = (_numbers(labels.get(kind), len(utterances)) for kind in ("act", "emotion"))
    if acts is None or emotions is None:
        count = len((labels.get("act", "")).split())
        yield Note(
            file.label, line.number, f"{len(utterances)} utterances but {count} labels: labels left out"
        )
        acts, emotions = [], []
    turns = []
    for at, utterance in enumerate(utterances):
        tags = {"act": _name(ACTS, acts, at), "emotion": _name(EMOTIONS, emotions, at)}
        turns.append(Turn(at % 2, utterance, tags={key: value for key, value in tags.items() if value}))
    topic = _numbers(labels.get("topic"), 1) or []
    yield checked(Dialogue(name, tuple(turns), topic=_name(TOPICS, topic, 0)))


def _numbers(text: str | None, count: int) -> list[int] | None:
    """The labels of `text`: [] if there are none, None if they are no numbers or not `count`."""
    if text is None:
        return []
    words = text.split()
    return [int(word) for word in words] if len(words) == count and all(map(str.isdecimal, words)) else None


def _name(names: Sequence[str], numbers: Sequence[int], at: int) -> str:
    return names[numbers[at]] if at < len(numbers) and numbers[at] < len(names) else ""
