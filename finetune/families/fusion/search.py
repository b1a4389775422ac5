"""Search for replies: beams with the length penalty of Wu et al. (2016), the authors' beams, draws.

lp(n) = (5 + n)^α / 6^α divides the log-probability of n tokens, the end among them; transformers divides by
n^α, which is another search.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor


class Scorer(Protocol):
    """What a search asks of a model; see `writing.Writer`."""

    def start(self) -> Tensor: ...

    def step(self, rows: Tensor, tokens: Tensor) -> Tensor: ...


@dataclass(frozen=True)
class Hypothesis:
    """One reply."""

    ids: tuple[int, ...]
    """Without its end."""
    score: float
    """Log-probability over length penalty."""


def penalty(length: float, alpha: float) -> float:
    """lp(n)."""
    return float(((5 + length) / 6) ** alpha)


@torch.no_grad()
def beams(
    scorer: Scorer, size: int, most: int, end: int, alpha: float, wanted: int = 1
) -> list[list[Hypothesis]]:
    """Per row at most `size` different replies, best first.

    A finished reply leaves the beam, which is then one narrower. A row ends when none is open, or when no
    open one could still be among the `wanted` best. What is cut at `most` tokens counts as it is.
    """
    scores = scorer.start()
    number, vocabulary = scores.shape
    size = min(size, vocabulary)
    first = torch.arange(number, device=scores.device)[:, None]
    live, tokens = scores.topk(size)
    rows = first.expand(-1, size)
    written = tokens[:, :, None]
    done: list[list[Hypothesis]] = [[] for _ in range(number)]
    for length in range(1, most + 1):
        values, said = live.tolist(), written.tolist()
        for row, found in enumerate(done):
            for beam, value in enumerate(values[row]):
                ids = said[row][beam]
                if value > -torch.inf and (ids[-1] == end or length == most):
                    kept = ids[:-1] if ids[-1] == end else ids
                    found.append(Hypothesis(tuple(kept), value / penalty(length, alpha)))
                    live[row, beam] = values[row][beam] = -torch.inf
            found.sort(key=lambda one: one.score, reverse=True)
            bound = max(value / penalty(most if alpha > 0 else length + 1, alpha) for value in values[row])
            if len(found) >= wanted and bound <= found[wanted - 1].score:
                live[row] = -torch.inf
        if not bool((live > -torch.inf).any()):
            break
        scores = scorer.step(rows.flatten(), written[:, :, -1].flatten()).view(number, size, vocabulary)
        live, places = (live[:, :, None] + scores).flatten(1).topk(size)
        parents, tokens = places // vocabulary, places % vocabulary
        written = torch.cat(
            [written.gather(1, parents[:, :, None].expand_as(written)), tokens[:, :, None]], 2
        )
        rows = first * size + parents
        for row, found in enumerate(done):
            live[row, max(size - len(found), 0) :] = -torch.inf
    return done


@torch.no_grad()
def authors_beams(scorer: Scorer, size: int, most: int, end: int, alpha: float) -> list[list[Hypothesis]]:
    """The released search, kept for comparison; per row `size` replies, best first.

    A finished beam goes on with every token at no cost, so its copies soon fill all slots: the first
    finished reply that leads wins. What is cut at `most` tokens loses its last.
    """
    scores = scorer.start()
    number, vocabulary = scores.shape
    first = torch.arange(number, device=scores.device)[:, None]
    lengths = torch.ones(number, size, device=scores.device)  # the released code counts <bos>
    over = torch.zeros(number, size, dtype=torch.bool, device=scores.device)
    total, tokens = scores.topk(size)
    written, parents = tokens[:, :, None], first.expand(-1, size)
    rows = parents
    for length in range(1, most + 1):
        if length > 1:
            scores = scorer.step(rows.flatten(), written[:, :, -1].flatten()).view(number, size, vocabulary)
            scores = total[:, :, None] + scores.masked_fill(over[:, :, None], 0)
            share = ((5 + lengths + 1 - over.float()) / 6) ** alpha
            normed, places = (scores / share[:, :, None]).flatten(1).topk(size)
            parents, tokens = places // vocabulary, places % vocabulary
            total = normed * share.gather(1, parents)
            over, lengths = over.gather(1, parents), lengths.gather(1, parents)
            tokens = tokens.masked_fill(over, end)
            before = written.gather(1, parents[:, :, None].expand_as(written))
            written = torch.cat([before, tokens[:, :, None]], dim=2)
            rows = first * size + parents
        lengths = lengths + (~over).float()
        over = over | (tokens == end)
        if bool(over.all()):
            break
    ended = bool(over.all())
    ranks = total / ((5 + lengths) / 6) ** alpha if ended else total
    found = []
    for row in range(number):
        best = ranks[row].argsort(descending=True, stable=True).tolist()
        kept = [(written[row, beam, : int(lengths[row, beam]) - 2], ranks[row, beam]) for beam in best]
        found.append([Hypothesis(tuple(ids.tolist()), float(score)) for ids, score in kept])
    return found


@torch.no_grad()
def draws(
    scorer: Scorer,
    each: int,
    most: int,
    end: int,
    alpha: float,
    choose: Callable[[Tensor, Tensor], Tensor],
) -> list[list[Hypothesis]]:
    """Per row `each` drawn replies, the likeliest for their length first.

    Args:
        choose: (written `[N, t]`, log-probabilities `[N, V]`) -> tokens `[N]`.
    """
    scores = scorer.start()
    number = len(scores)
    rows = torch.arange(number, device=scores.device).repeat_interleave(each)
    scores = scores[rows]
    written = rows.new_zeros((len(rows), 0))
    open_rows = torch.ones_like(rows, dtype=torch.bool)
    total, length = scores.new_zeros(len(rows)), torch.zeros_like(rows)
    for place in range(most):
        tokens = choose(written, scores).masked_fill(~open_rows, end)
        total = total + scores.gather(1, tokens[:, None])[:, 0].masked_fill(~open_rows, 0)
        length = length + open_rows.long()
        written = torch.cat([written, tokens[:, None]], dim=1)
        open_rows = open_rows & (tokens != end)
        if place == most - 1 or not bool(open_rows.any()):
            break
        scores = scorer.step(rows, tokens)
        rows = torch.arange(len(rows), device=rows.device)
    found = []
    for row, ids in enumerate(written.tolist()):
        said = ids[: ids.index(end)] if end in ids else ids
        found.append(Hypothesis(tuple(said), float(total[row]) / penalty(int(length[row]), alpha)))
    groups = [found[at : at + each] for at in range(0, len(found), each)]
    return [sorted(group, key=lambda one: one.score, reverse=True) for group in groups]
