"""Windows of a document: the sheet's example, and that they cover it without a gap and end where it ends."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pretrain.corpus.shardset import Window
from pretrain.errors import UserError

windows = st.integers(3, 600).flatmap(
    lambda size: st.integers(0, size - 3).map(lambda overlap: Window(size, overlap))
)


def test_the_example_of_the_fact_sheet():
    window = Window(512, 128)
    assert window.segments(1000) == 3
    assert [window.bounds(1000, index) for index in range(3)] == [(0, 510), (382, 892), (764, 1000)]


def test_documents_at_the_edge_of_a_window():
    window = Window(512, 128)
    counts = [window.segments(length) for length in (0, 1, 510, 511, 512, 892, 893)]
    assert counts == [0, 1, 1, 2, 2, 2, 3]
    assert window.bounds(512, 1) == (382, 512)


@given(windows, st.integers(1, 20_000))
def test_segments_cover_a_document_and_each_shows_something_new(window: Window, length: int):
    bounds = [window.bounds(length, index) for index in range(window.segments(length))]
    assert bounds[0][0] == 0
    assert bounds[-1][1] == length
    assert all(stop - start <= window.body for start, stop in bounds)
    for (start, stop), (next_start, next_stop) in itertools.pairwise(bounds):
        assert stop - start == window.body
        assert next_start == stop - window.overlap
        assert next_stop > stop


@given(windows, st.lists(st.integers(0, 5000), max_size=20))
def test_arrays_give_what_single_lengths_give(window: Window, lengths: list[int]):
    counts = window.segments(np.array(lengths, np.int64))
    assert counts.tolist() == [window.segments(length) for length in lengths]
    last = np.maximum(counts - 1, 0)
    starts, stops = window.bounds(np.array(lengths, np.int64), last)
    expected = [window.bounds(a, int(b)) for a, b in zip(lengths, last, strict=True)]
    assert list(zip(starts.tolist(), stops.tolist(), strict=True)) == expected


@pytest.mark.parametrize(("size", "overlap"), [(2, 0), (512, 510), (512, -1)])
def test_impossible_windows(size: int, overlap: int):
    with pytest.raises(UserError, match="impossible"):
        Window(size, overlap)
