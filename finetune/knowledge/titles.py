"""Titles of articles to rows of the knowledge base, in a file that is mapped and not read."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from finetune.knowledge.packages import needed

_ROW = ">I"


def folded(text: str) -> str:
    """What titles are compared by: case and white space do not count, everything else does."""
    return " ".join(text.casefold().split())


def write(file: Path, titles: Iterable[tuple[str, int]]) -> None:
    """Write a map of titles to rows; takes about 200 bytes of memory a title while it does."""
    pairs = ((key, (row,)) for title, row in titles if (key := folded(title)))
    needed("marisa_trie").RecordTrie(_ROW, pairs).save(str(file))


class Titles:
    """A map that `write` made."""

    def __init__(self, file: Path) -> None:
        self._trie: Any = needed("marisa_trie").RecordTrie(_ROW).mmap(str(file))

    def find(self, text: str) -> int | None:
        """Row of the article whose title is `text`; of several the first."""
        return min((row for (row,) in self._trie.get(folded(text), ())), default=None)
