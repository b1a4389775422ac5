"""Which words are nouns: what tells factual from linguistic knowledge (section 7.2, Figure 3)."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

from finetune.knowledge.packages import needed
from finetune.knowledge.words import Word


def nouns(text: str, found: Sequence[Word]) -> list[bool]:
    """For each word of a text whether it is a noun or proper noun there.

    The tagger is TextBlob's rule-based one, whose lexicon comes with the package; spaCy's models and NLTK's
    are downloads. It sees the words and the punctuation between them.
    """
    tokens: list[str] = []
    places: list[int] = []
    end = 0
    for word in found:
        tokens += text[end : word.start].split()
        places.append(len(tokens))
        tokens.append(word.text)
        end = word.end
    tokens += text[end:].split()
    # Slashes part words from tags in the tagger's own format.
    tagged = tagger().tag(" ".join(token.replace("/", "-") or "-" for token in tokens), tokenize=False)
    if len(tagged) != len(tokens):
        raise ValueError(f"{len(tokens)} tokens, {len(tagged)} tags")
    return [tagged[place][1].startswith("NN") for place in places]


@cache
def tagger() -> Any:
    """It takes seconds to load."""
    return needed("textblob.taggers").PatternTagger()
