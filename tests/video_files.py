"""Small video files for tests, encoded by PyAV."""

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np


def level(i: int) -> int:
    """Grey of frame i: far enough from its neighbours to survive lossy coding."""
    return 20 + 9 * i


def write_video(
    path: Path,
    *,
    codec: str = "libvpx-vp9",
    count: int = 12,
    frames: Sequence[np.ndarray] | None = None,
    size: tuple[int, int] = (64, 48),
    rate: int = 12,
    ticks: Sequence[int] | None = None,
    pix_fmt: str = "yuv420p",
    rotation: tuple[int, bool] | None = None,
    pixel_aspect: Fraction | None = None,
    options: dict[str, str] | None = None,
) -> Path:
    """Encode `frames` (u1 [H,W,3] each), or `count` grey frames of `level(i)`, at `rate` or at `ticks` in ms."""
    if frames is None:
        frames = [np.full((size[1], size[0], 3), level(i), np.uint8) for i in range(count)]
    quick = {"cpu-used": "8", "deadline": "realtime"} if codec == "libvpx-vp9" else {}
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=rate, options={**quick, **(options or {})})
        stream.height, stream.width = frames[0].shape[:2]
        stream.pix_fmt = pix_fmt
        if codec != "libsvtav1":  # keeps to its constant quality
            stream.bit_rate = 2_000_000
        if ticks is not None:
            stream.codec_context.time_base = Fraction(1, 1000)
        if pixel_aspect is not None:
            stream.sample_aspect_ratio = pixel_aspect
        if rotation is not None:
            stream.set_display_rotation(rotation[0], hflip=rotation[1])
        for i, array in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(array), format="rgb24")
            frame.pts = i if ticks is None else ticks[i]
            frame.time_base = Fraction(1, rate) if ticks is None else Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path
