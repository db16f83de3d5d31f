from pathlib import Path

import numpy as np
import pytest
from video_files import level, write_video

from data_specs.records import BadClip
from pipeline.sources.moments import decode_moments

RATE = 10


def greys(path: Path, times: list[float], *, end: float, size: int | None = None, rate: int = RATE) -> list[int]:
    """Which frames were taken, by their grey."""
    shown = decode_moments("k", path, times, period=1 / rate, end=end, size=size)
    return [round((float(frame.mean()) - level(0)) / (level(1) - level(0))) for frame in shown]


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve frames, 10 a second, with frames that are coded out of their order."""
    path = tmp_path_factory.mktemp("video") / "a.mp4"
    return write_video(path, codec="libx264", rate=RATE, options={"bf": "2", "g": "4"})


def test_every_frame(video: Path) -> None:
    assert greys(video, [i / RATE for i in range(12)], end=1.1) == list(range(12))


@pytest.mark.parametrize("first", range(0, 12, 3))
def test_from_any_frame_on(video: Path, first: int) -> None:
    wanted = list(range(first, 12, 2))
    assert greys(video, [i / RATE for i in wanted], end=1.1) == wanted


def test_the_nearest_frame(video: Path) -> None:
    assert greys(video, [0.04, 0.26, 0.34, 0.71], end=1.1) == [0, 3, 3, 7]


def test_far_apart(tmp_path: Path) -> None:
    """Over two seconds apart: it goes to a key frame in between."""
    frames = [np.full((32, 32, 3), level(i % 20), np.uint8) for i in range(120)]
    path = write_video(tmp_path / "long.mp4", codec="libx264", rate=RATE, frames=frames, options={"g": "5"})
    assert greys(path, [0.3, 3.1, 3.2, 9.9, 11.9], end=11.9) == [3, 11, 12, 19, 19]


def test_sizes(video: Path) -> None:
    whole = decode_moments("k", video, [0.0, 0.5], period=0.1, end=1.1, size=None)
    square = decode_moments("k", video, [0.0, 0.5], period=0.1, end=1.1, size=24)
    assert (whole.shape, square.shape) == ((2, 48, 64, 3), (2, 24, 24, 3))


def test_a_video_that_ends_too_early(video: Path) -> None:
    with pytest.raises(BadClip, match=r"shorter than its table: it ends at 1\.200 s.*frame at 1\.200 s to 1\.300 s"):
        greys(video, [0.0, 0.1], end=1.2)
    stream = write_video(video.with_name("a.mkv"), codec="libx264", rate=RATE)  # whose header has no duration
    with pytest.raises(BadClip, match="shorter than its table"):
        greys(stream, [0.5, 1.3], end=1.3)


def test_a_frame_that_is_not_there(tmp_path: Path) -> None:
    ticks = [0, 100, 200, 600, 700, 800]
    path = write_video(tmp_path / "gap.mp4", codec="libx264", count=6, ticks=ticks)
    assert greys(path, [0.2, 0.6], end=0.8) == [2, 3]
    with pytest.raises(BadClip, match=r"has no frame at 0\.400 s, the next is at 0\.600 s, expected one every 0\.1"):
        greys(path, [0.2, 0.4], end=0.8)


def test_no_video(tmp_path: Path) -> None:
    (tmp_path / "text.mp4").write_text("hello")
    for name in ("text.mp4", "none.mp4"):
        with pytest.raises(BadClip, match=name):
            greys(tmp_path / name, [0.0], end=0.0)
