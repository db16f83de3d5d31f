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


@settings(max_examples=50)
@given(steps=STEPS, offset=st.integers(2, 40), jitter=st.integers(1, 39), seed=st.integers(0, 5))
def test_jitter_draws_an_offset_a_frame_and_clamps_nothing(steps, offset, jitter, seed):
    clips = [0.05 * np.cumsum([7, *step]) for step in steps]
    start = exclusive_sum(np.array([len(clip) for clip in clips]))
    time = np.concatenate(clips)
    seconds, most = 0.05 * offset, 0.05 * min(jitter, offset - 1)
    # each frame's pair is the one that a search without jitter finds at the offset the frame drew
    asked = seconds + most * np.random.default_rng(seed).uniform(-1, 1, len(time))
    expected = []
    for frame, own in enumerate(asked):
        try:
            plain = find_pairs(time, start, float(own), 0.1)
        except ValueError:
            continue
        expected += [(f, s) for f, s in zip(plain.first, plain.second, strict=True) if f == frame]
    try:
        pairs = find_pairs(time, start, seconds, 0.1, jitter=most, seed=seed)
    except ValueError:
        assert expected == []
        return
    assert list(zip(pairs.first, pairs.second, strict=True)) == expected
    assert (start[pairs.clip] <= pairs.first).all() and (pairs.second < start[pairs.clip + 1]).all()
    np.testing.assert_allclose(pairs.apart, time[pairs.second] - time[pairs.first], atol=1e-9)
    assert (np.abs(pairs.apart - seconds) <= most + 0.1 + 1e-6).all() and pairs.offset == seconds
    again = find_pairs(time, start, seconds, 0.1, jitter=most, seed=seed)
    np.testing.assert_array_equal(again.second, pairs.second)


def test_jitter_covers_its_range_and_another_seed_draws_others():
    time, start = 0.05 * np.arange(4000), np.array([0, 4000])
    one, other = (find_pairs(time, start, 0.5, jitter=0.2, seed=seed) for seed in (0, 1))
    assert len(np.unique(np.rint(one.apart / 0.05))) == 9  # 0.30, 0.35, ... 0.70 s
    assert abs(one.apart.mean() - 0.5) < 0.01
    assert not np.array_equal(one.second[:3000], other.second[:3000])


@pytest.mark.parametrize("jitter", [-0.1, 0.5, float("nan")])
def test_a_jitter_that_makes_no_sense(jitter):
    with pytest.raises(ValueError, match="jitter"):
        find_pairs(np.arange(4.0), np.array([0, 4]), 0.5, jitter=jitter)


@pytest.mark.parametrize(("offset", "tolerance"), [(float("nan"), None), (-1.0, None), (1.0, -0.1)])
def test_numbers_that_make_no_sense(offset, tolerance):
    with pytest.raises(ValueError, match=r"makes? no sense"):
        find_pairs(np.arange(4.0), np.array([0, 4]), offset, tolerance)
