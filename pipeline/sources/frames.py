"""Which frames of a clip are taken, and how a frame becomes size x size pixels."""

import math
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import TypeVar

import numpy as np
from PIL import Image

from data_specs.arrays import Array
from data_specs.datasets import FrameSampling
from data_specs.records import BadClip

T = TypeVar("T")

_TIE = 1e-6
"""Fraction of a sampling period by which a target may lie past the middle of two frames and still count as a tie."""


def pick(frames: Iterable[tuple[float, T]], sampling: FrameSampling) -> Iterator[tuple[float, T]]:
    """The (time, frame) pairs that `sampling` takes, of pairs in order of increasing time in seconds.

    With `sampling.fps`, for each target first + k / fps the frame nearest in time is taken (the earlier one of a tie),
    each frame at most once. The last frame stands for as long as the one before it, so a target later than half of that
    after it lies outside of the clip. Without `fps`, every `stride`-th frame is taken.

    Lazy: never reads more than one frame past the last one taken, and holds one frame.
    """
    chosen = _nearest(frames, sampling.fps) if sampling.fps is not None else islice(frames, 0, None, sampling.stride)
    return islice(chosen, sampling.max) if sampling.max else iter(chosen)


def pick_indices(times: Sequence[float] | Array, sampling: FrameSampling) -> list[int]:
    """Indices of the frames that `sampling` takes, of frames at increasing `times` in seconds."""
    pairs = ((float(time), index) for index, time in enumerate(times))
    return [index for _, index in pick(pairs, sampling)]


def _nearest(frames: Iterable[tuple[float, T]], fps: float) -> Iterator[tuple[float, T]]:
    """A frame is nearest to some target if a target lies between the middles to its two neighbours."""
    held: tuple[float, T] | None = None
    first = gap = 0.0
    answered = -1  # the last target with a frame

    def last_target(until: float) -> int:
        return math.floor((until - first) * fps + _TIE)

    for time, frame in frames:
        if held is None:
            first = time
        else:
            gap = time - held[0]
            target = last_target(held[0] + gap / 2)
            if target > answered:
                answered = target
                yield held
        held = (time, frame)
    if held is not None and last_target(held[0] + gap / 2) > answered:
        yield held


def check_count(key: str, taken: int, sampling: FrameSampling, seen: int) -> None:
    """Raise BadClip if fewer frames were taken than `sampling.min`."""
    if taken < sampling.min:
        rate = f"{sampling.fps:g} frames a second" if sampling.fps is not None else f"a stride of {sampling.stride}"
        raise BadClip(
            key,
            f"the clip yields {taken} of its {seen} frames at {rate}, expected at least {sampling.min}"
            " (frames.min, frames.fps, frames.stride)",
        )


def resize_crop(
    rgb: Array,
    depth: Array | None = None,
    intrinsic: Array | None = None,
    size: int = 224,
    *,
    pixel_aspect: float = 1.0,
) -> tuple[Array, Array | None, Array | None]:
    """Scale one frame so that its short side is `size` and keep the central size x size pixels.

    Colour is filtered with Pillow's bicubic kernel, widened when shrinking (no aliasing), as VGGT's own preprocessing
    does. Pillow computes in fixed-point integers, so the bytes are the same on every machine; swscale picks other
    rounding for other processors. Depth takes the nearest reading, for a mean over an edge is no depth of anything.
    The crop is exact to a fraction of a pixel, and the intrinsics follow it.

    Args:
        rgb: u1 [H,W,3].
        depth: f4 [H,W] in metres, or None.
        intrinsic: [3,3] in pixels, integer coordinates at the centres of pixels, or None.
        size: of the result, pixels.
        pixel_aspect: width of a pixel over its height.

    Returns:
        rgb u1 [size,size,3], depth f4 [size,size] or None, intrinsic f4 [3,3] or None.
    """
    assert rgb.ndim == 3 and rgb.shape[2] == 3 and rgb.dtype == np.uint8, (rgb.shape, rgb.dtype)
    height, width = rgb.shape[:2]
    side = min(height, width * pixel_aspect)  # of the square that is kept, in rows of the source
    x0, y0 = (width - side / pixel_aspect) / 2, (height - side) / 2
    box = (x0, y0, min(width, x0 + side / pixel_aspect), min(height, y0 + side))
    out = np.asarray(Image.fromarray(rgb).resize((size, size), Image.Resampling.BICUBIC, box=box))
    scale_x, scale_y = size * pixel_aspect / side, size / side

    sampled = None
    if depth is not None:
        assert depth.shape == (height, width), (depth.shape, rgb.shape)
        centres = np.arange(size) + 0.5
        columns = np.clip((x0 + centres / scale_x).astype(np.int64), 0, width - 1)
        rows = np.clip((y0 + centres / scale_y).astype(np.int64), 0, height - 1)
        sampled = np.ascontiguousarray(depth[np.ix_(rows, columns)], dtype=np.float32)

    moved = None
    if intrinsic is not None:
        # Pixel u covers [u - 0.5, u + 0.5]: scale about the image's corner at -0.5, not about the first centre.
        to_crop = np.array(
            [
                [scale_x, 0.0, (0.5 - x0) * scale_x - 0.5],
                [0.0, scale_y, (0.5 - y0) * scale_y - 0.5],
                [0.0, 0.0, 1.0],
            ]
        )
        moved = (to_crop @ np.asarray(intrinsic, dtype=np.float64)).astype(np.float32)
    return out, sampled, moved
