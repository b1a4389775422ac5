"""English function words by word class: what carries grammar, not content.

NLTK's list is a download, and scikit-learn's and gensim's hold content words (`system`, `bill`, `fire`), so
the few word classes that are closed are written out here. Contractions stand as their parts, because
tokenizers split at apostrophes; `would`, `could`, `one` and `yes` count as content, as in NLTK's list.
"""

from __future__ import annotations

from pathlib import Path

from pretrain.errors import UserError

_CLASSES = {
    "articles and demonstratives": "a an the this that these those",
    "personal pronouns": "i me you he him she her it we us they them",
    "possessives": "my mine your yours his hers its our ours their theirs",
    "reflexives": "myself yourself himself herself itself ourselves yourselves themselves",
    "question words": "what which who whom whose when where why how",
    "forms of be, have, do": "am is are was were be been being have has had having do does did doing",
    "modals": "can will should",
    "conjunctions": "and but or nor if because as until while than so",
    "prepositions": (
        "of at by for with about against between into through during before after above below to from up "
        "down in out on off over under"
    ),
    "adverbs of place, time and degree": "again further then once here there now too very just only own same",
    "quantifiers and negation": "all any both each few more most other some such no not",
    "parts of contractions": (
        "s t d ll m o re ve y don didn doesn isn aren wasn weren hasn haven hadn won wouldn shouldn couldn "
        "mustn mightn needn shan ain ma"
    ),
}
FUNCTION_WORDS = frozenset(word for words in _CLASSES.values() for word in words.split())


def read_words(path: Path) -> frozenset[str]:
    """Words of a file, one a line, lower-cased.

    Raises:
        UserError: no such file.
    """
    try:
        content = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot be read as a list of words: {error}", where=str(path)) from None
    return frozenset(line.strip().lower() for line in content.split("\n") if line.strip())
