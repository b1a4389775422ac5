"""Sequence denoising: how a clean segment becomes the encoder's input.

Text infilling as BART has it: spans of whole words, their lengths Poisson, are hidden until a share of the
words is used up, and each span leaves one `<mask>`; a span of length zero leaves an extra `<mask>` somewhere.
The options carry the names of fairseq's denoising task. Every random number is a function of (seed, epoch,
document, segment), so a segment gets the same noise in whatever batch, process or year it is processed.

All rows of a timestep are worked on at once, laid end to end without padding (`tokens [total]` with
`lengths [rows]`): no Python loop over rows or spans, but for the few rows whose insertions fall on one place.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from pretrain.counter import U64, draw, draw_short, fold

I64 = NDArray[np.int64]
Tokens = NDArray[np.int32]

_SPANS, _STARTS, _HOLES, _REPLACE, _INSERT, _ROTATE, _PERMUTE = range(1, 8)


class NoiseConfig(BaseModel):
    """Options of the noise; the defaults are BART's text infilling with the paper's ratio."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    mask_ratio: float = Field(default=0.3, ge=0, le=1)
    """Share of the units (words, or tokens) that spans may use up; where they overlap, less is hidden."""
    mask_length: Literal["subword", "word", "span-poisson"] = "span-poisson"
    """`subword`: single tokens; `word`: single words; `span-poisson`: runs of words."""
    poisson_lambda: float = Field(default=3.5, ge=0.1, le=100)
    """Mean length of a span in words."""
    replace_length: Literal[-1, 0, 1] = 1
    """What a span leaves: 1 one `<mask>`, 0 nothing, -1 a `<mask>` for each of its tokens."""
    mask_random: float = Field(default=0.0, ge=0, le=1)
    """Share of the masks that become a random token instead."""
    insert_ratio: float = Field(default=0.0, ge=0, le=1)
    """Extra masks, as a share of the tokens, at random places; never more than the window has room for."""
    rotate_ratio: float = Field(default=0.0, ge=0, le=1)
    """Probability that a segment starts at a random token and continues at its beginning."""
    permute_ratio: float = Field(default=0.0, ge=0, le=1)
    """Share of the sentences that change places among themselves."""


class TokenizerLike(Protocol):
    """What noise asks of `pretrain.corpus.tokenizer.Tokenizer`."""

    vocab_size: int
    mask: int

    def word_starts(self) -> NDArray[np.bool_]:
        """`[vocab_size]`: whether a token begins a word."""

    def encode_batch(self, texts: list[str]) -> list[NDArray[np.integer]]:
        """Ids of each text, without special tokens."""


@dataclass(frozen=True)
class Vocabulary:
    """What noise knows of the tokens: which begin a word, which end a sentence, which are ordinary text."""

    word_starts: NDArray[np.bool_]
    """`[size]`"""
    sentence_ends: NDArray[np.bool_]
    """`[size]`"""
    mask: int
    ordinary: tuple[int, int]
    """Half-open range of the ids a random token is taken from."""

    @classmethod
    def of(cls, tokenizer: TokenizerLike) -> Vocabulary:
        """The facts of a tokenizer with BART's layout: four specials first, `<mask>` last."""
        ends = np.zeros(tokenizer.vocab_size, bool)
        for tokens in tokenizer.encode_batch([".", " .", "!", " !", "?", " ?"]):
            if len(tokens) == 1:
                ends[tokens[0]] = True
        return cls(tokenizer.word_starts(), ends, tokenizer.mask, (4, tokenizer.mask))


class Noise:
    """Noise of one run over segments of at most `room` body tokens."""

    def __init__(self, config: NoiseConfig, vocabulary: Vocabulary, seed: int, room: int) -> None:
        self.config, self.vocabulary, self.seed, self.room = config, vocabulary, seed, room
        self._poisson = _poisson_table(config.poisson_lambda)

    def __call__(
        self, tokens: Tokens, lengths: I64, epoch: I64, document: I64, segment: I64
    ) -> tuple[Tokens, I64]:
        """Noised tokens and their lengths `[rows]` from clean ones.

        `tokens [total]` are the rows end to end, without `<s>` and `</s>`, which noise therefore never
        touches; `epoch`, `document` and `segment` `[rows]` name each row. No row grows beyond `room`.
        """
        config, keys = self.config, fold(self.seed, document, epoch << 32 | segment)
        if config.permute_ratio:
            tokens = self._permute(tokens, lengths, keys)
        if config.mask_ratio:
            tokens, lengths = self._mask(tokens, lengths, keys)
        if config.insert_ratio:
            extra = _ceil(config.insert_ratio, lengths)
            tokens, lengths = self._insert(tokens, lengths, extra, keys, _INSERT)
        if config.rotate_ratio:
            tokens = self._rotate(tokens, lengths, keys)
        return tokens, lengths

    def _mask(self, tokens: Tokens, lengths: I64, keys: U64) -> tuple[Tokens, I64]:
        total, ends = len(tokens), np.cumsum(lengths)
        if self.config.mask_length == "subword":
            units, places = lengths, np.arange(total)
        else:
            places = np.flatnonzero(self.vocabulary.word_starts.take(tokens))
            units = _per_row(places, ends)
        budget = _ceil(self.config.mask_ratio, units)
        row, sizes, inserts = self._spans(budget, keys)
        begin, end = self._positions(row, sizes, units, places, ends, keys)

        depth = np.bincount(begin + 1, minlength=total + 1) - np.bincount(end, minlength=total + 1)
        inner = np.cumsum(depth[:-1]) > 0

        tokens = tokens.copy()
        if self.config.replace_length == -1:
            hidden = inner.copy()
            hidden[begin] = True
            self._cover(tokens, np.flatnonzero(hidden), lengths, keys, _SPANS)
        else:
            self._cover(tokens, begin, lengths, keys, _SPANS)
            keep = ~inner
            if self.config.replace_length == 0:
                keep[begin] = False
            kept = np.flatnonzero(keep)
            tokens, lengths = tokens[kept], _per_row(kept, ends)
        return self._insert(tokens, lengths, inserts, keys, _HOLES)

    def _spans(self, budget: I64, keys: U64) -> tuple[I64, I64, I64]:
        """Row and size (in units) of every span, row by row; and `[rows]` how many of size zero."""
        if self.config.mask_length != "span-poisson":
            row = np.repeat(np.arange(len(budget)), budget)
            return row, np.ones_like(row), np.zeros_like(budget)
        columns = int(1.4 * budget.max(initial=0) / self.config.poisson_lambda) + 8
        while True:
            sizes = self._poisson[draw_short(keys, _SPANS, columns, 16)]
            sums = np.cumsum(sizes, axis=1)
            if (sums[:, -1] >= budget).all():
                break
            columns *= 2
        before = sums - sizes
        used = before < budget[:, None]
        sizes = np.where(used, np.minimum(sizes, budget[:, None] - before), 0)
        inserts = (used & (sizes == 0)).sum(axis=1)
        row, column = np.nonzero(sizes)
        return row, sizes[row, column], inserts

    def _positions(
        self, row: I64, sizes: I64, units: I64, places: I64, ends: I64, keys: U64
    ) -> tuple[I64, I64]:
        """First token of each span and the one after its last: distinct random units, cut at the row end."""
        spans = np.bincount(row, minlength=len(units))
        rank = np.arange(len(row)) - (np.cumsum(spans) - spans)[row]
        unit = self._shuffled(keys, _STARTS, units)[row, rank]
        offset = (np.cumsum(units) - units)[row]
        over = unit + sizes >= units[row]
        last = places[np.where(over, 0, offset + unit + sizes)] if len(row) else row
        return places[offset + unit], np.where(over, ends[row], last)

    def _shuffled(self, keys: U64, stream: int, counts: I64) -> I64:
        """`[rows, n]`: the numbers below each of `counts [rows]` in random order, then anything.

        A number sits in the low bits of its random sort key: no second array, no argsort. Two keys in 2^23
        (for a window of 512) tie and leave the lower number in front.
        """
        bits = self.room.bit_length()
        numbers = np.arange(int(counts.max(initial=0)), dtype=np.uint32)
        order = draw_short(keys, stream, len(numbers), 32) >> np.uint32(bits) << np.uint32(bits) | numbers
        np.copyto(order, np.iinfo(np.uint32).max, where=numbers >= counts[:, None])
        order.sort(axis=1)
        return (order & np.uint32((1 << bits) - 1)).astype(np.int64)

    def _cover(self, tokens: Tokens, where: I64, lengths: I64, keys: U64, kind: int) -> None:
        """Put a mask, or now and then a random token, at the flat positions `where`.

        Masks of another `kind` may sit at the same position and draw from streams of their own.
        """
        tokens[where] = self.vocabulary.mask
        if self.config.mask_random and len(where):
            row, column = _unravel(where, lengths)
            bits = draw(keys, _REPLACE << 8 | kind, int(column.max()) + 1)[row, column]
            chosen = _unit(bits) < self.config.mask_random
            low, high = self.vocabulary.ordinary
            tokens[where[chosen]] = low + _below(bits[chosen] << np.uint64(32), high - low)

    def _insert(self, tokens: Tokens, lengths: I64, count: I64, keys: U64, stream: int) -> tuple[Tokens, I64]:
        """Add `count [rows]` masks, as far as there is room, at uniformly random places of the new rows."""
        count = np.minimum(count, self.room - lengths)
        most = int(count.max(initial=0))
        if most == 0:
            return tokens, lengths
        longer = lengths + count
        top = lengths[:, None] + np.arange(most)
        chosen = _distinct(_below(draw(keys, stream, most), top + 1), top, count)
        row, column = np.nonzero(chosen >= 0)
        holes = (np.cumsum(longer) - longer)[row] + chosen[row, column]
        old = np.ones(int(longer.sum()), bool)
        old[holes] = False
        grown = np.empty(len(old), tokens.dtype)
        grown[old] = tokens
        self._cover(grown, np.sort(holes), longer, keys, stream)
        return grown, longer

    def _rotate(self, tokens: Tokens, lengths: I64, keys: U64) -> Tokens:
        bits = draw(keys, _ROTATE, 2)
        turned = (_unit(bits[:, 0]) < self.config.rotate_ratio) & (lengths > 1)
        shift = np.where(turned, 1 + _below(bits[:, 1], np.maximum(lengths - 1, 1)), 0)
        begins = np.repeat(np.cumsum(lengths) - lengths, lengths)
        place = np.arange(len(tokens)) - begins + np.repeat(shift, lengths)
        return tokens[begins + place % np.repeat(lengths, lengths)]

    def _permute(self, tokens: Tokens, lengths: I64, keys: U64) -> Tokens:
        """A share of each row's sentences changes places; a sentence ends with its run of closing marks."""
        if not len(tokens):
            return tokens
        ends = np.cumsum(lengths)
        closing = self.vocabulary.sentence_ends[tokens]
        last = closing & ~np.append(closing[1:], False)
        last[ends[lengths > 0] - 1] = True
        sentence = np.cumsum(last) - last
        row_of_sentence = np.searchsorted(ends, np.flatnonzero(last), side="right")
        counts = np.bincount(row_of_sentence, minlength=len(lengths))
        moved = _ceil(self.config.permute_ratio, counts)
        firsts = np.cumsum(counts) - counts

        order = self._shuffled(keys, _PERMUTE, counts)
        row, column = np.nonzero(np.arange(order.shape[1]) < moved[:, None])
        members = firsts[row] + order[row, column]
        place = np.arange(len(row_of_sentence))
        place[members] = np.sort(members)  # rows stand one after another, so each row keeps its own places
        return tokens[np.argsort(place[sentence], kind="stable")]


def _distinct(picks: I64, top: I64, count: I64) -> I64:
    """`[rows, n]`: the first `count [rows]` of them a uniformly random set of distinct places, the others -1.

    Floyd's sampling: pick number i is uniform in [0, top[i]], where top grows by one from turn to turn; a
    place that is taken already gives way to top[i] itself, which cannot be.
    """
    unused = np.arange(picks.shape[1]) >= count[:, None]
    chosen = np.where(unused, -1 - np.arange(picks.shape[1]), picks)
    ordered = np.sort(chosen, axis=1)
    for row in np.flatnonzero((ordered[:, 1:] == ordered[:, :-1]).any(axis=1)).tolist():
        taken: set[int] = set()
        for turn, pick in enumerate(picks[row, : count[row]].tolist()):
            taken.add(int(top[row, turn]) if pick in taken else pick)
        chosen[row, : count[row]] = list(taken)
    return chosen


def _ceil(ratio: float, count: I64) -> I64:
    """ceil(ratio * count), unharmed by ratios such as 0.1 that binary fractions overshoot."""
    return np.ceil(ratio * count - 1e-9).astype(np.int64)


def _unit(bits: U64) -> NDArray[np.float64]:
    """Uniform in [0, 1)."""
    return (bits >> np.uint64(11)).astype(np.float64) * 2.0**-53


def _below(bits: U64, limit: I64 | int) -> I64:
    """Uniform integers in [0, limit)."""
    return (((bits >> np.uint64(32)) * np.asarray(limit, np.uint64)) >> np.uint64(32)).astype(np.int64)


def _unravel(where: I64, lengths: I64) -> tuple[I64, I64]:
    """Row and column of flat positions in rows of `lengths` laid end to end."""
    ends = np.cumsum(lengths)
    row = np.searchsorted(ends, where, side="right")
    return row, where - (ends - lengths)[row]


def _poisson_table(rate: float) -> I64:
    """`[65536]`: the Poisson number for every value of 16 uniform bits (probabilities to 2^-16)."""
    term, numbers = math.exp(-rate), np.arange(1000)
    cumulative = np.cumsum([term := term * rate / number if number else term for number in numbers])
    return np.searchsorted(np.rint(cumulative * 2**16), np.arange(2**16), side="right")


def _per_row(places: I64, ends: I64) -> I64:
    """How many of the ascending flat `places` lie in each row, given where rows end."""
    found = np.searchsorted(places, ends)
    found[1:] -= found[:-1].copy()
    return found
