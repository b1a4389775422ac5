"""What words got: counts of an annotation (Table 7), knowledge coverage (Figure 3 c), and samples to read."""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from finetune.dialogue.dialogue import Dialogue
from finetune.knowledge.annotations import Annotations, annotated_turns
from finetune.metrics.knowledge import coverage


@dataclass(frozen=True)
class Counts:
    """Of the annotated turns of some dialogues."""

    utterances: int
    words: int
    """With knowledge."""
    items: int
    """Different ones."""
    exact: float
    """Share of the words whose item was found by title."""
    items_per_type: float
    """Different items of a word form, mean over the forms that occur twice or more (Table 7, "per token")."""
    items_per_utterance: float
    """Different items of an utterance, mean (Table 7, "per sentence")."""
    coverage: float
    """Percent of the next reply's words that occur in the sentences of an utterance, mean (Figure 3 c)."""


def counts(annotations: Annotations, dialogues: Sequence[Dialogue]) -> Counts:
    """Count what the dialogues got."""
    forms: dict[str, list[int]] = defaultdict(list)
    distinct, told = [], []
    used: set[int] = set()
    exact = 0
    for dialogue in dialogues:
        for turn in annotated_turns(dialogue):
            spans = annotations.of(dialogue, turn)
            text = dialogue.turns[turn].text
            items = spans.items.tolist()
            for start, end, item in zip(spans.starts, spans.ends, items, strict=True):
                forms[text[start:end].lower()].append(item)
            distinct.append(len(set(items)))
            used.update(items)
            exact += int(spans.exact.sum())
            if turn + 1 < len(dialogue.turns) and items:
                sentences = [annotations.sentences[item] for item in set(items)]
                told.append(coverage(dialogue.turns[turn + 1].text, sentences))
    total = sum(map(len, forms.values()))
    repeated = [len(set(items)) for items in forms.values() if len(items) > 1]
    return Counts(
        utterances=len(distinct),
        words=total,
        items=len(used),
        exact=exact / max(total, 1),
        items_per_type=statistics.fmean(repeated) if repeated else 0.0,
        items_per_utterance=statistics.fmean(distinct) if distinct else 0.0,
        coverage=statistics.fmean(told) if told else 0.0,
    )


def sample(annotations: Annotations, dialogue: Dialogue) -> list[str]:
    """Lines for a person: every annotated turn, and under it each word with its item."""
    lines = []
    for turn in annotated_turns(dialogue):
        text = dialogue.turns[turn].text
        lines.append(f"{turn:>3}  {text}")
        spans = annotations.of(dialogue, turn)
        for start, end, item, exact, score in zip(
            spans.starts, spans.ends, spans.items, spans.exact, np.round(spans.scores, 2), strict=True
        ):
            how = "title" if exact else f"{score:.2f}"
            title, sentence = annotations.titles[item], annotations.sentences[item]
            lines.append(f"       {text[start:end]:<14} {how:>5}  {title}: {sentence[:90]}")
    return lines
