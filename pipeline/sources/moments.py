"""Decode given moments of a video file: what a table of robot data says when its frames were seen."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from data_specs.arrays import Array
from data_specs.records import BadClip
from pipeline.sources.decode import MAX_TAKEN, open_video, picture, pixel_aspect

if TYPE_CHECKING:
    from av import VideoFrame
    from av.container import InputContainer
    from av.video.stream import VideoStream

MAX_END = 2e6
"""Seconds: 23 days of video in one file."""

_WORTH_A_SEEK = 2.0
"""Seconds between two moments: over this, going to a key frame is quicker than decoding what lies between."""


def decode_moments(
    key: str, path: Path, times: Sequence[float] | Array, *, period: float, end: float, size: int | None
) -> Array:
    """The frames of `path` nearest to `times`.

    Args:
        key: of the clip, for messages.
        path: a video that may hold more than the clip.
        times: increasing seconds on the video's own clock.
        period: seconds from frame to frame; a frame further than half of it from its moment is none.
        end: the last moment of the clip, whether it is taken or not.
        size: of the square that a frame is resized and cropped to; None for frames as they are.

    Returns:
        u1 [F,size,size,3], or [F,h,w,3].

    Raises:
        BadClip: as `decode_video`; the video ends before `end`, or lacks a frame at one of `times`.
    """
    if not (np.isfinite(end) and np.isfinite(times).all()) or end > MAX_END:
        raise BadClip(key, f"{path}: the clip ends at {end:g} s, expected at most {MAX_END:g} s; download meta again")
    if len(times) > MAX_TAKEN:
        raise BadClip(key, f"the clip yields more than {MAX_TAKEN} frames; set frames.max, or a lower frames.fps")
    with open_video(key, path) as (container, stream):
        _check_end(key, path, stream, end, period)
        aspect = pixel_aspect(key, stream)
        taken = _taken(key, path, container, stream, times, period)
        pictures = [picture(key, frame, time, aspect, size) for time, frame in taken]
    shapes = {shown.shape for shown in pictures}
    if len(shapes) > 1:
        raise BadClip(key, f"{path}: frames change their size within the clip: {sorted(shapes)}, expected one size")
    return np.stack(pictures)


def _check_end(key: str, path: Path, stream: "VideoStream", end: float, period: float) -> None:
    """Raise BadClip if the container says that the video stops before the clip does."""
    if stream.duration is None or stream.time_base is None:
        return
    seconds = float(stream.duration * stream.time_base)
    if seconds < end + period / 2:
        raise _shorter(key, path, seconds, end, period)


def _shorter(key: str, path: Path, seconds: float, end: float, period: float) -> BadClip:
    return BadClip(
        key,
        f"{path} is shorter than its table: it ends at {seconds:.3f} s, the table's last row is a frame at {end:.3f} s"
        f" to {end + period:.3f} s; copy the video again, or remove the episode",
    )


def _taken(
    key: str,
    path: Path,
    container: "InputContainer",
    stream: "VideoStream",
    times: Sequence[float] | Array,
    period: float,
) -> Iterator[tuple[float, "VideoFrame"]]:
    """For each of `times` the nearest frame; holds two frames at a time."""
    frames: Iterator[tuple[float, VideoFrame]] = iter(())
    held: tuple[float, VideoFrame] | None = None
    for target in map(float, times):
        if held is None or target - held[0] > _WORTH_A_SEEK:
            frames, held = _from(key, container, stream, target - 4 * period), None
        best = held
        while best is None or best[0] < target:
            following = next(frames, None)
            if following is None:
                break
            if best is not None and target - best[0] < following[0] - target:
                held = following
                break
            best = held = following
        if best is None or target - best[0] > period / 2:
            raise _shorter(key, path, 0.0 if best is None else best[0] + period, target, period)
        if best[0] - target > period / 2:
            raise BadClip(
                key,
                f"{path} has no frame at {target:.3f} s, the next is at {best[0]:.3f} s, expected one every"
                f" {period:.4f} s; encode the video again at its table's rate",
            )
        yield best


def _from(
    key: str, container: "InputContainer", stream: "VideoStream", time: float
) -> Iterator[tuple[float, "VideoFrame"]]:
    """Frames with their times, from the key frame before `time` on."""
    base = stream.time_base
    assert base is not None
    start = stream.start_time or 0
    container.seek(max(start, start + int(time / base)), stream=stream)
    for frame in container.decode(stream):
        if frame.pts is None:
            raise BadClip(key, "the frames have no timestamps; encode the video again")
        yield float((frame.pts - start) * base), frame
