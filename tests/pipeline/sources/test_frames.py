from collections.abc import Iterator
from itertools import count

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_specs.datasets import FrameSampling
from data_specs.records import BadClip
from pipeline.sources.frames import check_count, pick, pick_indices, resize_crop


def test_twelve_frames_a_second_at_four_takes_every_third() -> None:
    times = [i / 12 for i in range(12)]
    assert pick_indices(times, FrameSampling(fps=4, max=0)) == [0, 3, 6, 9]


def test_a_slow_video_gives_each_frame_once() -> None:
    assert pick_indices([0.0, 1.0, 2.0, 3.0], FrameSampling(fps=30, max=0)) == [0, 1, 2, 3]


def test_times_decide_and_not_frame_numbers() -> None:
    times = [0.0, 0.01, 0.02, 0.24, 0.27, 0.9, 1.02]
    # targets 0, 0.25, 0.5, 0.75, 1.0: 0.5 is nearest to frame 4 (0.27), which 0.25 did not take
    assert pick_indices(times, FrameSampling(fps=4, max=0)) == [0, 3, 4, 5, 6]


def test_jitter_of_milliseconds_changes_nothing() -> None:
    times = [round(i / 12, 3) for i in range(49)]
    assert pick_indices(times, FrameSampling(fps=4, max=0)) == list(range(0, 49, 3))


@given(
    gaps=st.lists(st.floats(0.001, 3.0), max_size=30),
    start=st.floats(-100, 100),
    fps=st.floats(0.1, 60),
)
def test_frames_nearest_to_the_targets(gaps: list[float], start: float, fps: float) -> None:
    times = start + np.concatenate([[0.0], np.cumsum(gaps)])
    targets = times[0] + np.arange(int((times[-1] - times[0]) * fps) + 1) / fps
    distance = np.abs(times[None, :] - targets[:, None])
    taken = set(pick_indices(times, FrameSampling(fps=fps, max=0)))
    for row, target in zip(distance, targets, strict=True):
        order = np.argsort(row)
        if len(row) == 1 or row[order[1]] - row[order[0]] > 1e-4:  # not a tie
            assert order[0] in taken, f"target {target} is nearest to frame {order[0]}"
    # and nothing else, but for the stretch of time that the last frame stands for
    nearest = {int(i) for row in distance for i in np.flatnonzero(row <= row.min() + 1e-4)}
    assert taken <= nearest | {len(times) - 1}


def test_stride_and_max() -> None:
    times = [i * 0.1 for i in range(20)]
    assert pick_indices(times, FrameSampling(fps=None, stride=5, max=0)) == [0, 5, 10, 15]
    assert pick_indices(times, FrameSampling(fps=None, stride=5, max=3)) == [0, 5, 10]
    assert pick_indices(times, FrameSampling(fps=5, max=3)) == [0, 2, 4]


@pytest.mark.parametrize(("sampling", "read"), [(FrameSampling(fps=1, max=3), 22), (FrameSampling(fps=None, max=3), 3)])
def test_reads_at_most_one_frame_past_the_last_taken(sampling: FrameSampling, read: int) -> None:
    seen = []

    def endless() -> Iterator[tuple[float, int]]:
        for i in count():
            seen.append(i)
            yield i / 10, i

    taken = [i for _, i in pick(endless(), sampling)]
    assert len(taken) == 3
    assert len(seen) == read
    assert len(seen) <= taken[-1] + 2


def test_no_frames() -> None:
    assert pick_indices([], FrameSampling()) == []
    assert pick_indices([7.5], FrameSampling()) == [0]


def test_too_few_frames_names_what_was_asked() -> None:
    with pytest.raises(BadClip, match=r"yields 1 of its 3 frames at 4 frames a second, expected at least 2"):
        check_count("k", 1, FrameSampling(), 3)
    check_count("k", 2, FrameSampling(), 3)


@pytest.mark.parametrize("shape", [(48, 64), (64, 48), (50, 51), (224, 300), (31, 500)])
def test_the_crop_is_central(shape: tuple[int, int]) -> None:
    """Ramps along both axes: the middle of the crop shows the middle of the frame, its corners the square's corners."""
    height, width = shape
    side = min(shape)
    rgb = np.zeros((height, width, 3), np.uint8)
    rgb[..., 0] = np.round(np.arange(width) * 255 / (width - 1))
    rgb[..., 1] = np.round(np.arange(height) * 255 / (height - 1))[:, None]
    out, depth, intrinsic = resize_crop(rgb, size=32)
    assert out.shape == (32, 32, 3) and depth is None and intrinsic is None
    assert abs(out[:, 15:17, 0].mean() - 127.5) < 1.5 and abs(out[15:17, :, 1].mean() - 127.5) < 1.5
    left = ((width - side) / 2 + side / 64) * 255 / width
    assert abs(out[16, 0, 0] - left) < 3 + 255 / width
    assert abs((255.0 - out[16, -1, 0]) - left) < 3 + 255 / width


def test_a_frame_of_the_right_size_is_untouched() -> None:
    rgb = np.random.default_rng(0).integers(0, 256, (28, 28, 3), dtype=np.uint8)
    depth = np.random.default_rng(1).random((28, 28)).astype(np.float32)
    intrinsic = np.array([[30, 0, 14.2], [0, 31, 13.1], [0, 0, 1]], np.float32)
    out, sampled, moved = resize_crop(rgb, depth, intrinsic, 28)
    assert sampled is not None and moved is not None
    np.testing.assert_array_equal(out, rgb)
    np.testing.assert_array_equal(sampled, depth)
    np.testing.assert_allclose(moved, intrinsic, rtol=1e-6)


def test_shrinking_does_not_alias() -> None:
    rgb = np.zeros((240, 240, 3), np.uint8)
    rgb[:, ::2] = 255  # one pixel black, one white: grey from afar
    out, _, _ = resize_crop(rgb, size=60)
    assert np.abs(out[:, 4:-4].astype(int) - 128).max() <= 3


@pytest.mark.parametrize(("shape", "size", "aspect"), [((48, 64), 23, 1.0), ((90, 37), 61, 1.0), ((60, 40), 31, 2.0)])
def test_intrinsics_follow_the_crop(shape: tuple[int, int], size: int, aspect: float) -> None:
    """Depth holds the column (then row) it came from; seen through both cameras, that is the same ray."""
    height, width = shape
    intrinsic = np.array([[55.0, 0, 20.3], [0, 50.0, 31.7], [0, 0, 1]], np.float32)
    rgb = np.zeros((height, width, 3), np.uint8)
    columns = np.tile(np.arange(width, dtype=np.float32), (height, 1))
    rows = np.tile(np.arange(height, dtype=np.float32)[:, None], (1, width))
    _, from_column, moved = resize_crop(rgb, columns, intrinsic, size, pixel_aspect=aspect)
    _, from_row, _ = resize_crop(rgb, rows, intrinsic, size, pixel_aspect=aspect)
    assert from_column is not None and from_row is not None and moved is not None
    v, u = np.mgrid[:size, :size]
    ray = np.stack([u, v, np.ones_like(u)], -1) @ np.linalg.inv(moved.astype(np.float64)).T
    back = ray @ intrinsic.astype(np.float64).T
    assert np.abs(back[..., 0] - from_column).max() <= 0.5 + 1e-5
    assert np.abs(back[..., 1] - from_row).max() <= 0.5 + 1e-5
    # on average the nearest reading lies neither left nor right of the ray
    assert abs((back[..., 0] - from_column).mean()) < 0.1 and abs((back[..., 1] - from_row).mean()) < 0.1


def test_depth_is_never_mixed() -> None:
    depth = np.where(np.arange(50) < 25, 1.0, 3.0).astype(np.float32) * np.ones((40, 1), np.float32)
    depth[5, 5] = np.nan
    _, sampled, _ = resize_crop(np.zeros((40, 50, 3), np.uint8), depth, size=17)
    assert sampled is not None and sampled.dtype == np.float32
    assert set(np.unique(sampled[np.isfinite(sampled)])) == {1.0, 3.0}


def test_wide_pixels_are_shown_square() -> None:
    """A disc stored squeezed to half its width comes out round."""
    v, u = np.mgrid[:80, :60]
    disc = ((u - 29.5) * 2) ** 2 + (v - 39.5) ** 2 < 20**2
    rgb = np.repeat((disc * 255).astype(np.uint8)[..., None], 3, axis=2)
    out, _, _ = resize_crop(rgb, size=80, pixel_aspect=2.0)
    bright = out[..., 0] > 127
    assert bright.any(axis=0).sum() == pytest.approx(40, abs=2)
    assert bright.any(axis=1).sum() == pytest.approx(40, abs=2)
