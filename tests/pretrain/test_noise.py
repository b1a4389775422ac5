"""Text infilling: the fact sheet's figures, a slow reference, and what noise never does."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from pretrain.noise import Noise, NoiseConfig, Vocabulary

SIZE, MASK, ROOM = 5000, 4999, 510
ENDS = (10, 11)

word_starts = np.arange(SIZE) % 3 != 0
word_starts[[0, 1, 2, 3, MASK]] = False
sentence_ends = np.zeros(SIZE, bool)
sentence_ends[list(ENDS)] = True
WORDS = Vocabulary(word_starts, sentence_ends, MASK, (4, MASK))
TOKENS = Vocabulary(np.ones(SIZE, bool), sentence_ends, MASK, (4, MASK))

CLEAN = NoiseConfig(mask_ratio=0)


def noised(
    rows: Sequence[np.ndarray],
    config: NoiseConfig,
    vocabulary: Vocabulary = WORDS,
    seed: int = 1,
    **names: Any,
) -> list[np.ndarray]:
    """The rows under noise; `epoch`, `document`, `segment` are 0, the row's number, 0 unless given."""
    count = len(rows)
    name = {
        "epoch": np.zeros(count, int),
        "document": np.arange(count),
        "segment": np.zeros(count, int),
    } | names
    tokens = np.concatenate([*rows, np.zeros(0, np.int32)]).astype(np.int32)
    lengths = np.array([len(row) for row in rows], np.int64)
    out, sizes = Noise(config, vocabulary, seed, ROOM)(tokens, lengths, **name)
    assert sizes.sum() == len(out)
    return np.split(out, np.cumsum(sizes)[:-1]) if count else []


def ramps(count: int, length: int = ROOM) -> list[np.ndarray]:
    """Rows in which every token is another one, so that it can be followed."""
    return [np.arange(100, 100 + length) for _ in range(count)]


def reference(
    tokens: np.ndarray, config: NoiseConfig, starts: np.ndarray, random: np.random.Generator
) -> dict:
    """The counts of one segment, slowly: draw spans, hide whole words one after another."""
    begins = [place for place, token in enumerate(tokens) if starts[token]]
    budget = math.ceil(config.mask_ratio * len(begins) - 1e-9)
    spans: list[int] = []
    while sum(spans) < budget:
        spans.append(
            int(random.poisson(config.poisson_lambda)) if config.mask_length == "span-poisson" else 1
        )
    if spans:
        spans[-1] -= sum(spans) - budget
    inserts = spans.count(0)
    spans = [span for span in spans if span]
    covered, first = set(), set()
    for word, span in zip(random.permutation(len(begins)).tolist(), spans, strict=False):
        stop = begins[word + span] if word + span < len(begins) else len(tokens)
        first.add(begins[word])
        covered.update(range(begins[word] + 1, stop))
    hidden = covered | first
    masks = {1: len(first - covered), 0: 0, -1: len(hidden)}[config.replace_length] + inserts
    return {
        "hidden": len(hidden) / len(tokens),
        "masks": masks,
        "source": len(tokens) - len(hidden) + masks,
        "spans": len(spans),
        "inserts": inserts,
    }


def measured(before: np.ndarray, after: np.ndarray) -> dict[str, float]:
    return {
        "hidden": 1 - (after != MASK).sum() / len(before),
        "masks": (after == MASK).sum(),
        "source": len(after),
    }


def means(rows: list[dict]) -> dict[str, float]:
    return {key: float(np.mean([row[key] for row in rows])) for key in rows[0]}


def test_the_figures_of_the_fact_sheet_are_met_within_one_percent():
    before = ramps(3000)
    figures = means(
        [measured(*pair) for pair in zip(before, noised(before, NoiseConfig(), TOKENS), strict=True)]
    )
    assert figures["hidden"] == pytest.approx(0.266, rel=0.01)
    assert figures["masks"] == pytest.approx(36, rel=0.01)
    assert figures["source"] == pytest.approx(410, rel=0.01)
    narrow = NoiseConfig(poisson_lambda=3.0)
    figures = means([measured(*pair) for pair in zip(before, noised(before, narrow, TOKENS), strict=True)])
    assert figures["masks"] == pytest.approx(42.4, rel=0.01), "42 on the sheet, which rounds"
    assert figures["source"] == pytest.approx(416, rel=0.01)


@pytest.mark.parametrize("vocabulary", [TOKENS, WORDS], ids=["token-units", "word-units"])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"replace_length": 0},
        {"replace_length": -1},
        {"mask_length": "word"},
        {"mask_length": "subword"},
        {"mask_ratio": 0.6, "poisson_lambda": 1.0},
        {"mask_ratio": 0.15, "poisson_lambda": 8.0},
    ],
    ids=str,
)
def test_counts_agree_with_the_slow_reference(vocabulary: Vocabulary, options: dict[str, Any]):
    config, length, count = NoiseConfig(**options), 300, 1200
    units = np.ones(SIZE, bool) if config.mask_length == "subword" else vocabulary.word_starts
    random = np.random.default_rng(5)
    before = ramps(count, length)
    expected = [reference(row, config, units, random) for row in before]
    got = [measured(*pair) for pair in zip(before, noised(before, config, vocabulary), strict=True)]
    for figure in ("hidden", "masks", "source"):
        mine, slow = (np.array([row[figure] for row in rows], float) for rows in (got, expected))
        error = math.sqrt((mine.var() + slow.var()) / count)
        assert abs(mine.mean() - slow.mean()) <= 4 * error + 1e-9, figure


def test_span_lengths_are_poisson():
    """With one unit in a hundred hidden spans hardly ever meet: runs of hidden tokens show the lengths."""
    config = NoiseConfig(mask_ratio=0.04, replace_length=-1)
    runs: list[int] = []
    for row in noised(ramps(8000, 500), config, TOKENS):
        edges = np.flatnonzero(np.diff(np.concatenate([[0], row == MASK, [0]]).astype(int)))
        runs += (edges[1::2] - edges[::2]).tolist()
    reference_runs: list[int] = []
    random = np.random.default_rng(0)
    for _ in range(8000):
        spans: list[int] = []
        while sum(spans) < 20:
            spans.append(int(random.poisson(3.5)))
        spans[-1] -= sum(spans) - 20
        row = np.zeros(500 + spans.count(0), int)
        for span, start in zip([s for s in spans if s], random.permutation(500).tolist(), strict=False):
            row[start : min(start + span, 500)] = 1
        for _ in range(spans.count(0)):
            row = np.insert(row[:-1], random.integers(0, len(row)), 1)
        edges = np.flatnonzero(np.diff(np.concatenate([[0], row, [0]])))
        reference_runs += (edges[1::2] - edges[::2]).tolist()
    got = np.bincount(runs, minlength=12)[:12] / len(runs)
    expected = np.bincount(reference_runs, minlength=12)[:12] / len(reference_runs)
    assert np.abs(got - expected).max() < 0.006


configs = st.builds(
    NoiseConfig,
    mask_ratio=st.sampled_from([0.0, 0.1, 0.3, 0.7, 1.0]),
    mask_length=st.sampled_from(["subword", "word", "span-poisson"]),
    poisson_lambda=st.sampled_from([0.3, 1.0, 3.5, 20.0]),
    replace_length=st.sampled_from([-1, 0, 1]),
    mask_random=st.sampled_from([0.0, 0.5, 1.0]),
    insert_ratio=st.sampled_from([0.0, 0.2, 1.0]),
    rotate_ratio=st.sampled_from([0.0, 0.5, 1.0]),
    permute_ratio=st.sampled_from([0.0, 0.5, 1.0]),
)
row_lengths = st.lists(
    st.one_of(st.integers(0, ROOM), st.sampled_from([0, 1, 2, ROOM])), min_size=1, max_size=6
)


@settings(max_examples=120, deadline=None)
@given(config=configs, lengths=row_lengths, seed=st.integers(0, 2**63), data=st.data())
def test_a_segment_gets_the_same_noise_in_any_company(config, lengths, seed, data):
    random = np.random.default_rng(1)
    rows = [random.integers(4, 60, length) for length in lengths]
    together = noised(rows, config, seed=seed)
    alone = data.draw(st.integers(0, len(rows) - 1))
    single = noised([rows[alone]], config, seed=seed, document=np.array([alone]))
    assert single[0].tolist() == together[alone].tolist()
    assert all(len(row) <= ROOM for row in together)
    assert all(((row >= 4) & (row < SIZE)).all() for row in together), "a special token was made"


@settings(max_examples=100, deadline=None)
@given(
    mask_ratio=st.floats(0, 1),
    length=st.integers(0, ROOM),
    replace_length=st.sampled_from([-1, 0, 1]),
    mask_length=st.sampled_from(["subword", "word", "span-poisson"]),
    poisson_lambda=st.sampled_from([1.0, 3.5, 20.0]),
    seed=st.integers(0, 1000),
)
def test_what_is_not_hidden_keeps_its_order_and_words_are_hidden_whole(
    mask_ratio, length, replace_length, mask_length, poisson_lambda, seed
):
    config = NoiseConfig(
        mask_ratio=mask_ratio,
        replace_length=replace_length,
        mask_length=mask_length,
        poisson_lambda=poisson_lambda,
    )
    before = np.arange(100, 100 + length)
    (after,) = noised([before], config, seed=seed)
    kept = after[after != MASK]
    assert (np.diff(kept) > 0).all()
    assert np.isin(kept, before).all()
    hidden = ~np.isin(before, kept)
    starts = np.ones(length, bool) if mask_length == "subword" else word_starts[before]
    budget = math.ceil(mask_ratio * starts.sum() - 1e-9)
    assert (hidden & starts).sum() <= budget
    if mask_length != "span-poisson":
        assert (hidden & starts).sum() == budget
    for place in range(length):
        if not starts[place]:
            assert hidden[place] == (place > 0 and hidden[place - 1]), "a word was cut"
    masks = (after == MASK).sum()
    if replace_length == 0 and mask_length != "span-poisson":
        assert masks == 0
    if replace_length == -1 and mask_length != "span-poisson":
        assert masks == hidden.sum()
        assert len(after) == length
    if replace_length == 1 and mask_length == "subword":
        assert masks == budget


def test_every_part_of_the_name_makes_other_noise():
    rows = ramps(1)
    base = noised(rows, NoiseConfig())[0].tolist()
    assert noised(rows, NoiseConfig())[0].tolist() == base
    assert noised(rows, NoiseConfig(), seed=2)[0].tolist() != base
    for part in ("epoch", "document", "segment"):
        assert noised(rows, NoiseConfig(), **{part: np.array([1])})[0].tolist() != base


def test_without_any_noise_rows_come_back_as_they_were():
    rows = ramps(3, 77)
    assert [row.tolist() for row in noised(rows, CLEAN)] == [row.tolist() for row in rows]


@pytest.mark.parametrize("replace_length", [1, -1])
@pytest.mark.parametrize("mask_random", [0.1, 1.0])
def test_a_share_of_the_masks_becomes_ordinary_tokens(replace_length: int, mask_random: float):
    plain = NoiseConfig(replace_length=replace_length)
    mixed = NoiseConfig(replace_length=replace_length, mask_random=mask_random)
    rows = ramps(600)
    masks = [row == MASK for row in noised(rows, plain)]
    swapped = noised(rows, mixed)
    values = np.concatenate([row[mask] for row, mask in zip(swapped, masks, strict=True)])
    chosen = values[values != MASK]
    assert len(chosen) / len(values) == pytest.approx(mask_random, rel=0.06)
    assert chosen.min() >= 4
    assert chosen.max() < MASK
    assert np.bincount(chosen, minlength=SIZE)[4:MASK].max() < 40, "random tokens are not spread"


def test_random_tokens_of_spans_and_insertions_are_independent():
    config = NoiseConfig(mask_length="subword", mask_ratio=1.0, mask_random=1.0, insert_ratio=1.0)
    for row in noised(ramps(20, 100), config):
        assert len(row) == 200
        assert len(set(row.tolist())) > 185


def test_insertions_are_masks_at_uniform_places_as_far_as_the_window_has_room():
    config = NoiseConfig(mask_ratio=0, insert_ratio=0.1)
    after = noised(ramps(2000, 200), config)
    assert {len(row) for row in after} == {220}
    assert all((row == MASK).sum() == 20 for row in after)
    places = np.concatenate([np.flatnonzero(row == MASK) for row in after])
    counts = np.bincount(places, minlength=220)
    expected = len(places) / 220
    assert np.abs(counts - expected).max() < 5.5 * expected**0.5
    assert [len(row) for row in noised(ramps(2, 505), NoiseConfig(mask_ratio=0, insert_ratio=1.0))] == [
        ROOM
    ] * 2


def test_rotation_starts_a_share_of_the_segments_elsewhere():
    rows = ramps(2000, 50)
    after = noised(rows, NoiseConfig(mask_ratio=0, rotate_ratio=0.4))
    shifts = np.array([row[0] - 100 for row in after])
    for row, shift in zip(after, shifts, strict=True):
        assert row.tolist() == np.roll(np.arange(100, 150), -shift).tolist()
    assert (shifts != 0).mean() == pytest.approx(0.4, abs=0.04)
    assert set(shifts.tolist()) == set(range(50))
    always = noised(ramps(50, 2), NoiseConfig(mask_ratio=0, rotate_ratio=1.0))
    assert all(row.tolist() == [101, 100] for row in always), "a rotation by nothing is none"


def sentences(row: np.ndarray) -> list[tuple[int, ...]]:
    """Cut after each run of closing marks."""
    cut = [i + 1 for i in range(len(row)) if row[i] in ENDS and (i + 1 == len(row) or row[i + 1] not in ENDS)]
    return [tuple(piece.tolist()) for piece in np.split(row, cut) if len(piece)]


def test_permutation_moves_whole_sentences():
    row = np.array([20, 21, 10, 30, 10, 11, 40, 41, 42, 11, 50])
    assert len(sentences(row)) == 4
    orders = set()
    for after in noised([row] * 400, NoiseConfig(mask_ratio=0, permute_ratio=1.0)):
        marked = after.tolist()
        pieces = [(20, 21, 10), (30, 10, 11), (40, 41, 42, 11), (50,)]
        order = sorted(range(4), key=lambda piece: marked.index(pieces[piece][0]))
        assert marked == [token for piece in order for token in pieces[piece]]
        orders.add(tuple(order))
    assert len(orders) == 24


def test_a_permutation_ratio_leaves_the_other_sentences_in_place():
    row = np.concatenate([[20 + number, 10] for number in range(10)])
    for after in noised([row] * 50, NoiseConfig(mask_ratio=0, permute_ratio=0.3)):
        assert sum(a != b for a, b in zip(sentences(after), sentences(row), strict=True)) <= 3


@pytest.mark.parametrize(
    "options",
    [
        {"mask_ratio": 1.1},
        {"replace_length": 2},
        {"poisson_lambda": 0},
        {"mask": 0.3},
        {"mask_length": "span"},
    ],
    ids=str,
)
def test_options_that_mean_nothing_are_refused(options: dict[str, Any]):
    with pytest.raises(ValidationError):
        NoiseConfig(**options)
