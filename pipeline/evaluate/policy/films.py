"""Films of episodes as MP4 that any browser plays."""

import io
from collections.abc import Sequence
from fractions import Fraction

import numpy as np

from data_specs.arrays import Array


def encode_mp4(frames: Sequence[Array], fps: float) -> bytes:
    """H.264 in MP4 of pictures u1 [H,W,3] of one size."""
    import av

    height, width = (side + side % 2 for side in frames[0].shape[:2])  # 4:2:0 has no odd sides
    rate = Fraction(fps).limit_denominator(1000)
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=rate)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        stream.options = {"crf": "23", "preset": "veryfast"}
        stream.codec_context.thread_count = 1  # one of several processes
        stream.codec_context.time_base = 1 / rate
        for k, picture in enumerate(frames):
            padding = ((0, height - picture.shape[0]), (0, width - picture.shape[1]), (0, 0))
            frame = av.VideoFrame.from_ndarray(np.pad(picture, padding, mode="edge"), format="rgb24")
            frame.pts, frame.time_base = k, 1 / rate
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return buffer.getvalue()
