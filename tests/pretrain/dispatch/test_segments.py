"""Windows of a document: the sheet's example, and that they cover it without a gap and end where it ends."""

from __future__ import annotations

import itertools

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from pretrain.corpus.shardset import Window
from pretrain.dispatch.segments import segment_bounds, segment_count

windows = st.integers(3, 600).flatmap(
    lambda size: st.integers(0, size - 3).map(lambda overlap: Window(size, overlap))
)


def test_the_example_of_the_fact_sheet():
    window = Window(512, 128)
    assert segment_count(1000, window) == 3
    assert [segment_bounds(1000, index, window) for index in range(3)] == [(0, 510), (382, 892), (764, 1000)]


def test_documents_at_the_edge_of_a_window():
    window = Window(512, 128)
    assert [segment_count(length, window) for length in (0, 1, 510, 511, 512, 892, 893)] == [
        0,
        1,
        1,
        2,
        2,
        2,
        3,
    ]
    assert segment_bounds(512, 1, window) == (382, 512)


@given(windows, st.integers(1, 20_000))
def test_segments_cover_a_document_and_each_shows_something_new(window: Window, length: int):
    bounds = [segment_bounds(length, index, window) for index in range(segment_count(length, window))]
    assert bounds[0][0] == 0
    assert bounds[-1][1] == length
    assert all(stop - start <= window.body for start, stop in bounds)
    for (start, stop), (next_start, next_stop) in itertools.pairwise(bounds):
        assert stop - start == window.body
        assert next_start == stop - window.overlap
        assert next_stop > stop


@given(windows, st.lists(st.integers(0, 5000), max_size=20))
def test_arrays_give_what_single_lengths_give(window: Window, lengths: list[int]):
    counts = segment_count(np.array(lengths, np.int64), window)
    assert counts.tolist() == [segment_count(length, window) for length in lengths]
    last = np.maximum(counts - 1, 0)
    starts, stops = segment_bounds(np.array(lengths, np.int64), last, window)
    expected = [segment_bounds(a, int(b), window) for a, b in zip(lengths, last, strict=True)]
    assert list(zip(starts.tolist(), stops.tolist(), strict=True)) == expected
