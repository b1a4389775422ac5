"""How varied the replies of a model are, without looking at references."""

from __future__ import annotations

import math
import statistics
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from itertools import chain

import numpy as np
from scipy.special import entr

from finetune.metrics import text

Tokenizer = Callable[[str], Sequence[str]]


def distinct(replies: Sequence[str], order: int, tokenize: Tokenizer = text.words) -> float:
    """Different n-grams in percent of all n-grams of all replies; 0 if there is none."""
    counts = _counts(replies, order, tokenize)
    return 100 * len(counts) / counts.total() if counts else 0.0


def distinct_per_word(replies: Sequence[str], order: int) -> float:
    """Different n-grams in percent of all words (not n-grams) of all replies: the persona CVAE paper's."""
    total = sum(len(text.words(reply)) for reply in replies)
    return 100 * len(_counts(replies, order, text.words)) / total if total else 0.0


def entropy(replies: Sequence[str], order: int, tokenize: Tokenizer = text.words) -> float:
    """Shannon entropy of the n-grams of all replies together, in nats."""
    return _entropy(_counts(replies, order, tokenize), math.e)


def entropy_of_characters(replies: Sequence[str], order: int) -> float:
    """Shannon entropy of the character n-grams of each reply, in bits, mean over replies.

    Dior-CVAE's Table 2 fits only this reading of its "n-grams in a generated response".
    """
    return statistics.fmean(_entropy(_counts([reply], order, list), 2) for reply in replies)


def length(replies: Sequence[str], tokenize: Tokenizer = text.words) -> float:
    """Mean number of words."""
    return statistics.fmean(len(tokenize(reply)) for reply in replies)


def _counts(replies: Sequence[str], order: int, tokenize: Tokenizer) -> Counter[tuple[str, ...]]:
    return Counter(chain.from_iterable(_ngrams(tokenize(reply), order) for reply in replies))


def _ngrams(tokens: Sequence[str], order: int) -> Iterator[tuple[str, ...]]:
    return zip(*(tokens[n:] for n in range(order)), strict=False)


def _entropy(counts: Counter[tuple[str, ...]], base: float) -> float:
    shares = np.array(list(counts.values())) / max(counts.total(), 1)
    return float(entr(shares).sum() / math.log(base))
