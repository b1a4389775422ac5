"""Which item a word of an utterance gets (section 4.3): stop words none, titles theirs, else the nearest."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np

from finetune.dialogue.dialogue import Dialogue
from finetune.knowledge import queries, speech
from finetune.knowledge.annotations import Spans, context_of
from finetune.knowledge.index import KnowledgeIndex
from finetune.knowledge.queries import Query
from finetune.knowledge.titles import Titles
from finetune.knowledge.words import StopWords, Word, pieces, words
from pretrain.recipe import Section


class RetrievalOptions(Section):
    """What is looked up and how; part of every annotation."""

    context_turns: int = 2
    """So many turns before an utterance are read with it: about the 40 word pieces of the released files."""
    unit: Literal["word", "piece"] = "word"
    """What gets an item: a word, or each token of the retriever for itself, as in the released files. A model
    with another tokenizer takes for a token the piece that it shares most characters with."""
    stop_words: bool = True
    """Whether stop words get nothing (Table 9, row 2)."""
    titles: bool = True
    """Whether a word that is a title gets that article without a search (Table 9, row 3)."""
    max_title_words: int = 1
    """Longest title that is looked for; the paper has one token."""
    pos: bool = False
    """Whether nouns are marked, for the controls `factual` and `linguistic`."""


@dataclass(frozen=True)
class Utterance:
    """A text and what was said before it."""

    text: str
    context: tuple[str, ...] = ()

    @classmethod
    def of(cls, dialogue: Dialogue, turn: int, context_turns: int) -> Utterance:
        """A turn of a dialogue."""
        return cls(dialogue.turns[turn].text, context_of(dialogue, turn, context_turns))

    def read(self) -> tuple[str, int]:
        """All of it as one text, without borders as in the released files, and where its own text begins."""
        before = "".join(f"{text} " for text in self.context)
        return before + self.text, len(before)


@dataclass
class Retrieval:
    """Retrieves for lists of utterances."""

    index: KnowledgeIndex
    options: RetrievalOptions = field(default_factory=RetrievalOptions)
    stop: StopWords = field(default_factory=StopWords)

    def __call__(self, utterances: Sequence[Utterance]) -> tuple[list[Spans], int]:
        """The spans of each utterance, items as rows of the knowledge base, and how many words there were.

        With `options.unit` "piece" all of it is about pieces of words.
        """
        found = [self._units(each.text) for each in utterances]
        content = [[word for word in row if not self._stopped(word)] for row in found]
        titled = [self._titled(each.text, row) for each, row in zip(utterances, found, strict=True)]
        wanted = [
            [word for word in row if word not in known] for row, known in zip(content, titled, strict=True)
        ]
        searched = self._searched(utterances, wanted)
        spans = []
        for row, known, near in zip(content, titled, searched, strict=True):
            rows = [
                (word.start, word.end, *((known[word], True, 1.0) if word in known else (*near[word],)))
                for word in row
                if word in known or word in near
            ]
            spans.append(Spans.of(rows))
        if self.options.pos:
            spans = [
                replace(each, nouns=_marked(utterance.text, each))
                for utterance, each in zip(utterances, spans, strict=True)
            ]
        return spans, sum(map(len, found))

    def _units(self, text: str) -> list[Word]:
        if self.options.unit == "word":
            return words(text)
        return pieces(text, self.index.retriever.offsets(text))

    def _stopped(self, word: Word) -> bool:
        return self.options.stop_words and not word.inside and word.text in self.stop

    def _titled(self, text: str, row: Sequence[Word]) -> dict[Word, int]:
        return (
            titled(text, row, self.index.base.titles, self.options.max_title_words)
            if self.options.titles
            else {}
        )

    def _searched(
        self, utterances: Sequence[Utterance], wanted: Sequence[Sequence[Word]]
    ) -> list[dict[Word, tuple[int, bool, float]]]:
        """(item, False, score) of every word that has a vector."""
        asked = []
        for utterance, row in zip(utterances, wanted, strict=True):
            text, begin = utterance.read()
            asked.append(Query(text, [Word(w.text, w.start + begin, w.end + begin) for w in row]))
        some = [number for number, query in enumerate(asked) if query.words]
        vectors = queries.vectors(self.index.retriever, [asked[number] for number in some])
        flat = np.concatenate([np.empty((0, self.index.keys.shape[1]), np.float32), *vectors])
        usable = np.linalg.norm(flat, axis=1) > 0
        items, scores = np.full(len(flat), -1, np.int64), np.zeros(len(flat), np.float32)
        items[usable], scores[usable] = self.index.search(flat[usable])
        found: list[dict[Word, tuple[int, bool, float]]] = [{} for _ in utterances]
        results = zip(items.tolist(), scores.tolist(), strict=True)
        for number in some:
            for word in wanted[number]:
                item, score = next(results)
                if item >= 0:
                    found[number][word] = (item, False, score)
        return found


def titled(text: str, row: Sequence[Word], titles: Titles, longest: int) -> dict[Word, int]:
    """The words of a text that are, alone or with their neighbours, the title of an article.

    Longer titles go first; a title of several words gives its item to each of them. None begins inside a
    word.
    """
    found: dict[Word, int] = {}
    for length in range(longest, 0, -1):
        for first in range(len(row) - length + 1):
            inside = row[first : first + length]
            if inside[0].inside or any(word in found for word in inside):
                continue
            item = titles.find(text[inside[0].start : inside[-1].end])
            if item is not None:
                found.update(dict.fromkeys(inside, item))
    return found


def _marked(text: str, spans: Spans) -> np.ndarray:
    """Whether each span is, or is within, a noun."""
    row = words(text)
    marks = np.array(speech.nouns(text, row), np.bool_)
    return marks[np.searchsorted([word.start for word in row], spans.starts, side="right") - 1]
