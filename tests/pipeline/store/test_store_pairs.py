import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_specs.records import exclusive_sum
from pipeline.store.pairs import find_pairs

STEPS = st.lists(st.lists(st.integers(1, 40), min_size=0, max_size=6), min_size=1, max_size=5)


@settings(max_examples=50)
@given(steps=STEPS, offset=st.integers(1, 100), tolerance=st.integers(0, 30))
def test_pairs_equal_a_search_by_hand(steps, offset, tolerance):
    clips = [0.05 * np.cumsum([7, *step]) for step in steps]
    start = exclusive_sum(np.array([len(clip) for clip in clips]))
    seconds, limit = 0.05 * offset, 0.05 * tolerance
    expected = []
    for clip, begin in zip(clips, start, strict=False):
        for i, time in enumerate(clip):
            misses = np.abs(clip[i + 1 :] - time - seconds)
            if misses.min(initial=np.inf) <= limit + 1e-6:
                near = np.flatnonzero(misses <= misses.min() + 1e-9)
                expected.append((begin + i, {int(begin + i + 1 + j) for j in near}))
    try:
        pairs = find_pairs(np.concatenate(clips), start, seconds, limit)
    except ValueError:
        assert expected == []
        return
    assert pairs.first.tolist() == [first for first, _ in expected]
    assert all(second in near for second, (_, near) in zip(pairs.second.tolist(), expected, strict=True))
    assert pairs.without == len(clips) - len(set(pairs.clip.tolist()))


def test_irregular_times_pair_within_half_a_frame():
    time = np.array([0.0, 0.084, 0.166, 0.25, 0.334, 10.0, 10.5])
    pairs = find_pairs(time, np.array([0, 5, 7]), 0.25)
    assert list(zip(pairs.first, pairs.second, strict=True)) == [(0, 3), (1, 4), (5, 6)]
    np.testing.assert_allclose(pairs.apart, [0.25, 0.25, 0.5])
    assert len(find_pairs(time, np.array([0, 5, 7]), 0.25, tolerance=0.0)) == 2


@pytest.mark.parametrize(("offset", "tolerance"), [(float("nan"), None), (-1.0, None), (1.0, -0.1)])
def test_numbers_that_make_no_sense(offset, tolerance):
    with pytest.raises(ValueError, match=r"makes? no sense"):
        find_pairs(np.arange(4.0), np.array([0, 4]), offset, tolerance)
