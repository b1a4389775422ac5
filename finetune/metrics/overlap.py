"""How much of the references a reply says: F1, BLEU, NIST, METEOR, ROUGE-L.

All take one reply and one or more references per example, and give percent unless they say otherwise.
"""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache
from typing import Any, Protocol

from finetune.metrics import text

References = Sequence[Sequence[str]]
"""Per example the accepted answers, one at least."""


def word_f1(reply: Sequence[str], reference: Sequence[str]) -> float:
    """F1 of the words that two bags share, 0 to 1."""
    shared = (Counter(reply) & Counter(reference)).total()
    return 2 * shared / (len(reply) + len(reference)) if shared else 0.0


def f1(replies: Sequence[str], references: References) -> float:
    """ParlAI's F1: normalized words, the best reference of each example, mean over examples."""
    return 100 * statistics.fmean(
        max(word_f1(text.normalized(reply), text.normalized(reference)) for reference in accepted)
        for reply, accepted in zip(replies, references, strict=True)
    )


def bleu(replies: Sequence[str], references: References, order: int) -> float:
    """Corpus BLEU-`order` of words between spaces, no smoothing: sacrebleu; equals `multi-bleu.perl`."""
    from sacrebleu.metrics import BLEU

    scorer = BLEU(tokenize="none", smooth_method="none", max_ngram_order=order, force=True)
    most = max(map(len, references))
    # One stream per reference number; sacrebleu skips None where an example has fewer.
    streams = [[row[n] if n < len(row) else None for row in references] for n in range(most)]
    return float(scorer.corpus_score(list(replies), streams).score)


def bleu_method7(replies: Sequence[str], references: References, order: int) -> float:
    """Mean of NLTK's sentence BLEU with smoothing 7, weights 1/`order` up to `order`.

    What DialogVED's and Dior-CVAE's tables call BLEU. It is not bounded by 100: a reply equal to its
    reference scores more.
    """
    from nltk.translate.bleu_score import SmoothingFunction, sentence_bleu

    weights = tuple(1 / order if n < order else 0.0 for n in range(4))
    smoothing = SmoothingFunction().method7
    return 100 * statistics.fmean(
        sentence_bleu([text.words(r) for r in accepted], text.words(reply), weights, smoothing)
        if reply.strip()
        else 0.0
        for reply, accepted in zip(replies, references, strict=True)
    )


def nist(replies: Sequence[str], references: References, order: int) -> float:
    """Corpus NIST, cumulative up to `order`, in bits: NLTK over `mteval`'s words, lower-cased."""
    from nltk.translate.nist_score import corpus_nist
    from sacrebleu.tokenizers.tokenizer_13a import Tokenizer13a

    tokenize = Tokenizer13a()
    hypotheses = [tokenize(reply.lower()).split() for reply in replies]
    accepted = [[tokenize(reference.lower()).split() for reference in row] for row in references]
    # NLTK divides by zero where no reply has as many words as the order; such an order adds nothing.
    order = min(order, max(map(len, hypotheses)))
    return float(corpus_nist(accepted, hypotheses, n=order)) if order else 0.0


class Synonyms(Protocol):
    """What METEOR asks of WordNet."""

    def synsets(self, word: str) -> Iterable[Any]: ...


class NoSynonyms:
    """A WordNet that knows no word: METEOR then matches equal words and equal stems."""

    def synsets(self, word: str) -> Iterable[Any]:
        return ()


def meteor(replies: Sequence[str], references: References, wordnet: Synonyms) -> float:
    """Mean sentence METEOR by NLTK with METEOR 1.5's parameters (alpha .85, beta .2, gamma .6).

    NLTK's own defaults are those of 2005 and give nearly twice the score. METEOR 1.5 itself also has
    paraphrases and weights for function words; over a corpus the two differ little. NLTK looks synonyms up
    among stems: it misses those whose stem is no word.
    """
    from nltk.translate.meteor_score import meteor_score

    return 100 * statistics.fmean(
        meteor_score(
            [text.split_punctuation(reference) for reference in accepted],
            text.split_punctuation(reply),
            wordnet=wordnet,
            alpha=0.85,
            beta=0.2,
            gamma=0.6,
        )
        for reply, accepted in zip(replies, references, strict=True)
    )


def rouge_l(replies: Sequence[str], references: References, field: str = "fmeasure") -> float:
    """Longest common subsequence of normalized, stemmed words, best reference: rouge-score.

    Args:
        field: `fmeasure`, or `recall`, which ParlAI's ROUGE-L is.
    """
    scorer = _rouge()

    def joined(sentence: str) -> str:
        return " ".join(text.normalized(sentence))

    return 100 * statistics.fmean(
        max(getattr(scorer(joined(reference), joined(reply)), field) for reference in accepted)
        for reply, accepted in zip(replies, references, strict=True)
    )


@lru_cache(maxsize=1)
def _rouge() -> Callable[[str, str], Any]:
    from rouge_score.rouge_scorer import RougeScorer

    scorer = RougeScorer(["rougeL"], use_stemmer=True)
    return lambda reference, reply: scorer.score(reference, reply)["rougeL"]
