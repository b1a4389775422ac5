"""The N replies to one context taken together: do they cover the references, and do they differ?

Sentence BLEU-4 is sacrebleu's (exponential smoothing, orders that a short reply lacks left out), in percent.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from functools import lru_cache

Groups = Sequence[Sequence[str]]
"""Per context its texts."""


def bleu_precision(replies: Groups, references: Groups) -> float:
    """Mean over replies of the BLEU with the nearest reference, mean over contexts (Zhao et al. 2017)."""
    return _mean(replies, references, lambda table: [max(row) for row in table])


def bleu_recall(replies: Groups, references: Groups) -> float:
    """Mean over references of the BLEU with the nearest reply, mean over contexts (Zhao et al. 2017)."""
    return _mean(replies, references, lambda table: [max(column) for column in zip(*table, strict=True)])


def self_bleu(replies: Groups) -> float:
    """BLEU of each reply against the other replies to the same context, mean; lower is more varied.

    Args:
        replies: two or more per context.
    """
    return statistics.fmean(
        statistics.fmean(_bleu(reply, *row[:n], *row[n + 1 :]) for n, reply in enumerate(row))
        for row in replies
    )


def _mean(replies: Groups, references: Groups, best: Callable[[list[list[float]]], list[float]]) -> float:
    return statistics.fmean(
        statistics.fmean(best([[_bleu(reply, reference) for reference in accepted] for reply in said]))
        for said, accepted in zip(replies, references, strict=True)
    )


def _bleu(reply: str, *references: str) -> float:
    return _scorer()(reply, references)


@lru_cache(maxsize=1)
def _scorer() -> Callable[[str, Sequence[str]], float]:
    from sacrebleu.metrics import BLEU

    scorer = BLEU(tokenize="none", effective_order=True)
    return lambda reply, references: float(scorer.sentence_score(reply, list(references)).score)
