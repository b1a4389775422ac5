"""A WordNet of one noun sense, in WordNet's own file format."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path


def folder(root: Path, words: Sequence[str]) -> Path:
    """`root` with `corpora/wordnet`, in which `words` mean the same; single words without capitals."""
    place = root / "corpora" / "wordnet"
    place.mkdir(parents=True)
    for kind in ("adj", "adv", "noun", "verb"):
        for name in (f"index.{kind}", f"data.{kind}", f"{kind}.exc"):
            (place / name).touch()
    for name in ("cntlist.rev", "index.sense"):
        (place / name).touch()
    (place / "lexnames").write_text("00\tall\t1\n")
    head = "  1 made up\n"
    spelled = " ".join(f"{word} 0" for word in words)
    (place / "data.noun").write_text(f"{head}{len(head):08d} 00 n {len(words):02x} {spelled} 000 | a thing\n")
    index = "".join(f"{word} n 1 0 1 0 {len(head):08d}\n" for word in sorted(words))
    (place / "index.noun").write_text(index)
    return root
