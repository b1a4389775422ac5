"""Words of a text, or pieces of them, with character offsets, and which of them never get knowledge."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import regex

from finetune.metrics.stopwords import FUNCTION_WORDS, read_words

_WORD = regex.compile(r"[\p{L}\p{N}][\p{L}\p{N}\p{M}]*")
"""Letters and digits; punctuation, apostrophes and symbols end a word, as in BERT's basic tokenizer."""


@dataclass(frozen=True)
class Word:
    """A word as it stands in its text."""

    text: str
    start: int
    end: int
    """Character offsets; `text` is that slice."""
    inside: bool = False
    """A piece of a word, and not its first: it is neither a stop word nor a title, whatever it reads."""


def words(text: str) -> list[Word]:
    """The words of a text in order; what has neither letter nor digit is none."""
    return [Word(found.group(), found.start(), found.end()) for found in _WORD.finditer(text)]


def pieces(text: str, tokens: Sequence[tuple[int, int]]) -> list[Word]:
    """The letters and digits of each token of a text, in order; tokens without any are none.

    Args:
        tokens: character offsets. Where several stand for the same characters, as bytes of one do, the first
            counts.
    """
    begins = {word.start for word in words(text)}
    found: dict[tuple[int, int], Word] = {}
    for start, end in tokens:
        inner = words(text[start:end])
        if inner:
            first, last = start + inner[0].start, start + inner[-1].end
            piece = Word(text[first:last], first, last, inside=first not in begins)
            found.setdefault((first, last), piece)
    return list(found.values())


@dataclass(frozen=True)
class StopWords:
    """Which words are discarded before retrieval (section 4.3, "stopword masking")."""

    place: Path | None = None
    """A file with a word a line; else English function words."""

    @cached_property
    def listed(self) -> frozenset[str]:
        """The words, lower-cased.

        Raises:
            UserError: the file cannot be read.
        """
        return FUNCTION_WORDS if self.place is None else read_words(self.place)

    def __contains__(self, word: str) -> bool:
        return word.lower() in self.listed
