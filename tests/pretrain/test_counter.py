"""Counter-based random numbers: fixed for ever, independent of the batch, uniform enough to shuffle with."""

from __future__ import annotations

import numpy as np

from pretrain.counter import draw, draw_short, fold, permutation


def test_numbers_are_those_of_the_published_generator():
    """SplitMix64 seeded with 1234567: the reference outputs in use by many libraries' tests."""
    reference = [6457827717110365317, 3203168211198807973, 9817491932198370423, 4593380528125082431]
    assert draw(np.array([1234567], np.uint64), 0, 4)[0].tolist() == reference


def test_numbers_and_orders_never_change():
    """Recorded: a run that resumes under another version must find the order it left."""
    assert fold(1, 2, 3).tolist() == [1607515996553867698]
    assert draw(fold(7), 3, 2).tolist() == [[7286780378683195031, 12096466535988484373]]
    assert draw_short(fold(7), 3, 3, 16).tolist() == [[48791, 48050, 55333]]
    assert permutation(8, 5, 1).tolist() == [3, 0, 6, 4, 5, 2, 7, 1]


def test_short_numbers_are_pieces_of_the_long_ones():
    (whole,) = draw(fold(1), 2, 3).tolist()
    for bits in (16, 32):
        pieces = [number >> shift & (1 << bits) - 1 for number in whole for shift in range(0, 64, bits)]
        assert draw_short(fold(1), 2, 5, bits)[0].tolist() == pieces[:5]


def test_integers_and_arrays_make_the_same_keys():
    parts = [5, 2**63 - 1, 0, 17]
    arrays = [np.array([part, 1], np.int64) for part in parts]
    assert fold(*arrays)[0] == fold(*parts)[0]
    assert fold(parts[0], arrays[1], parts[2], arrays[3])[0] == fold(*parts)[0]
    assert fold(np.array([-1, 4]))[0] == fold(-1)[0]


def test_every_part_and_its_place_matter():
    keys = [fold(*parts)[0] for parts in ((1, 2), (2, 1), (1, 2, 0), (0, 1, 2), (1, 3), (3,), (0,), (0, 0))]
    assert len(set(keys)) == len(keys)


def test_a_row_does_not_depend_on_its_neighbours_nor_on_the_count():
    keys = fold(3, np.arange(10))
    assert np.array_equal(draw(keys, 1, 20)[4:5, :7], draw(keys[4:5], 1, 7))
    assert not np.array_equal(draw(keys, 1, 20), draw(keys, 2, 20))


def test_a_permutation_holds_each_number_once_and_any_number_anywhere():
    orders = np.array([permutation(6, seed) for seed in range(3000)])
    assert (np.sort(orders, axis=1) == np.arange(6)).all()
    counts = np.array([np.bincount(orders[:, place], minlength=6) for place in range(6)])
    assert abs(counts - 500).max() < 5 * 500**0.5


def test_bits_are_balanced():
    bits = np.unpackbits(draw(fold(1, np.arange(50)), 0, 200).view(np.uint8))
    assert abs(bits.mean() - 0.5) < 4 * 0.5 / len(bits) ** 0.5
