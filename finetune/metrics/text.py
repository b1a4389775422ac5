"""How texts become words: every normalization that a metric's definition asks for, each once."""

from __future__ import annotations

import re
import string
from collections.abc import Iterable
from dataclasses import replace

from finetune.metrics.prediction import Prediction

_PUNCTUATION = str.maketrans(string.punctuation, " " * len(string.punctuation))
_ARTICLES = re.compile(r"\b(?:a|an|the)\b")
_SYMBOL = re.compile(r"([^\w\s])")
_LETTERS = re.compile(r"[^\W\d_]+")
_APOSTROPHE = re.compile(r"\s*['’‘`]\s*")


def words(text: str) -> list[str]:
    """What stands between spaces, as it is: Moses' `multi-bleu`, OpenNMT's scorers."""
    return text.split()


def normalized(text: str) -> list[str]:
    """ParlAI's words: lower-case, ASCII punctuation becomes spaces, articles go.

    A typographic apostrophe is not ASCII and stays.
    """
    return _ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split()


def without_articles(text: str) -> list[str]:
    """Lower-case and without articles, punctuation kept: the fusion paper's diversity figures."""
    return _ARTICLES.sub(" ", text.lower()).split()


def split_punctuation(text: str) -> list[str]:
    """Every character that is no letter, digit or underscore is a word of its own, as in BERT's pieces."""
    return _SYMBOL.sub(r" \1 ", text).split()


def letters(text: str) -> list[str]:
    """Lower-case runs of letters: the candidates for keywords."""
    return _LETTERS.findall(text.lower())


def with_closed_apostrophes(text: str) -> str:
    """Lower-case, every kind of apostrophe straight and without spaces around: `don ’ t` becomes `don't`."""
    return _APOSTROPHE.sub("'", text.lower())


def respaced(predictions: Iterable[Prediction], lower: bool = False) -> list[Prediction]:
    """Replies, references and knowledge with punctuation apart: all are then tokenized alike.

    Most metrics count what stands between spaces. DailyDialog and the knowledge papers space their
    punctuation; a model that writes `Yes, I do.` must be brought to that form to be scored beside them.
    """

    def spaced(texts: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(" ".join(split_punctuation(text.lower() if lower else text)) for text in texts)

    return [
        replace(
            prediction,
            replies=spaced(prediction.replies),
            references=spaced(prediction.references),
            knowledge=spaced(prediction.knowledge),
        )
        for prediction in predictions
    ]
