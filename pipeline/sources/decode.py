"""Decode the frames that a recipe asks for from one video file.

Files may come from anywhere: what a header claims is checked before anything of that size is allocated, FFmpeg may open
nothing but the file itself and nothing but a video container (a playlist named `.mp4` could name other files), and what
it cannot decode becomes a `BadClip`.
"""

import math
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from data_specs.arrays import Array
from data_specs.datasets import ClipRef, FrameSampling
from data_specs.records import BadClip, Clip
from pipeline.foreign_images import MAX_PIXELS
from pipeline.sources.base import check_ref
from pipeline.sources.frames import check_count, pick, resize_crop
from pipeline.sources.integrity import missing_bytes

if TYPE_CHECKING:
    from av import VideoFrame
    from av.container import InputContainer
    from av.video.stream import VideoStream

VIDEO_SUFFIXES = (".webm", ".mp4", ".mkv", ".avi", ".mov")

MAX_SECONDS = 24 * 3600.0
MAX_TAKEN = 8192
"""Frames taken from one clip: 1.2 GB at 224 x 224."""
_MAX_ASPECT = 8.0
_CONTAINERS = "matroska,webm,mov,mp4,m4a,3gp,3g2,mj2,avi"
# SWS_BICUBIC | FULL_CHR_H_INT | ACCURATE_RND | BITEXACT: colours that do not depend on the processor's SIMD
_SWS_FLAGS = 0x4 | 0x2000 | 0x40000 | 0x80000
_WANTED = f"expected a video file ({', '.join(VIDEO_SUFFIXES)})"


def read_video(ref: ClipRef, sampling: FrameSampling) -> Clip:
    """The clip in the video file `ref.path`, without robot data; BadClip as `decode_video`, or for `ref.problem`."""
    check_ref(ref)
    assert ref.path is not None, f"clip {ref.key} has neither a path nor a problem"
    rgb, time = decode_video(ref.key, ref.path, sampling)
    return Clip(key=ref.key, rgb=rgb, time=time, split=ref.split, text=ref.text)


def decode_video(key: str, path: Path, sampling: FrameSampling) -> tuple[Array, Array]:
    """The frames of `path` that `sampling` takes, upright, with square pixels, resized and cropped.

    Stops once the last wanted frame is there: a long video with `sampling.max` is not decoded to its end. Times are the
    video's own timestamps relative to its first frame; a frame whose timestamp repeats the one before is passed over.

    Returns:
        rgb u1 [F,S,S,3] with S = `sampling.size`; time f8 [F], seconds, increasing from 0.

    Raises:
        BadClip: the file is missing, empty, truncated, unreadable or no video; its header claims more than the limits
            of this module; its timestamps run backwards; it yields fewer than `sampling.min` frames.
    """
    with open_video(key, path) as (container, stream):
        return _take(key, container, stream, sampling)


@contextmanager
def open_video(key: str, path: Path) -> Iterator[tuple["InputContainer", "VideoStream"]]:
    """The container of `path` and its video stream, ready to decode. BadClip as `decode_video`, in the body too."""
    import av

    try:
        _check_file(key, path)
        # "file:" keeps a name with a colon from being taken for a protocol.
        with av.open(
            f"file:{path}",
            options={
                "protocol_whitelist": "file",
                "format_whitelist": _CONTAINERS,
                # Opening may decode a frame before its size can be checked here. Beyond this, FFmpeg reports 0 x 0.
                "max_pixels": str(2 * MAX_PIXELS),
            },
            metadata_errors="replace",  # a title in Latin-1 is no reason to refuse a video
        ) as container:
            stream = _video_stream(key, path, container)
            # One thread a clip: clips are decoded side by side, and a thread more decodes frames nobody asked for.
            stream.codec_context.thread_count = 1
            # a stream may grow in its middle: FFmpeg looks before it allocates
            stream.codec_context.options = {**stream.codec_context.options, "max_pixels": str(MAX_PIXELS)}
            yield container, stream
    except FileNotFoundError:
        raise BadClip(key, f"{path} is missing; {_WANTED}") from None
    except av.FFmpegError as error:  # with its own "cannot allocate", said of a size in the file that nobody has
        what = error.strerror or type(error).__name__
        raise BadClip(key, f"{path} cannot be decoded ({what}); {_WANTED}") from error
    except OSError as error:
        raise BadClip(key, f"{path} cannot be read ({error.strerror or error}); {_WANTED}") from error


def _check_file(key: str, path: Path) -> None:
    """What the file system and the container's outermost sizes tell, before FFmpeg is asked."""
    info = path.stat()
    if not stat.S_ISREG(info.st_mode):  # a pipe would block for ever
        raise BadClip(key, f"{path} is not a regular file; {_WANTED}")
    if info.st_size == 0:
        raise BadClip(key, f"{path} is empty (0 bytes); {_WANTED}")
    missing = missing_bytes(path)
    if missing:
        raise BadClip(
            key,
            f"{path} is truncated: it has {info.st_size} bytes, expected at least {info.st_size + missing};"
            " copy it again",
        )


def _video_stream(key: str, path: Path, container: "InputContainer") -> "VideoStream":
    from av.stream import Disposition

    # The cover picture of an audio file is a video stream of one frame.
    streams = [s for s in container.streams.video if not s.disposition & Disposition.attached_pic]
    if not streams:
        kinds = ", ".join(sorted({s.type for s in container.streams})) or "nothing"
        raise BadClip(key, f"{path} has no video stream (it holds: {kinds}); {_WANTED}")
    stream = streams[0]
    if stream.codec_context is None:
        raise BadClip(key, f"{path} has a video stream of an unknown codec; {_WANTED}")
    _check_size(key, stream.codec_context.width, stream.codec_context.height)
    seconds = (container.duration or 0) / 1_000_000
    if stream.duration is not None and stream.time_base is not None:
        seconds = max(seconds, float(stream.duration * stream.time_base))
    if seconds > MAX_SECONDS:
        raise BadClip(
            key, f"the header claims {seconds / 3600:.1f} hours of video, expected at most {MAX_SECONDS / 3600:g}"
        )
    return stream


def _check_size(key: str, width: int, height: int) -> None:
    if not 0 < width * height <= MAX_PIXELS:
        claim = f"frames of {width} x {height} pixels" if width and height else "no frame size, or one out of bounds"
        raise BadClip(key, f"the file claims {claim}, expected at most {MAX_PIXELS} pixels a frame")


def _take(key: str, container: "InputContainer", stream: "VideoStream", sampling: FrameSampling) -> tuple[Array, Array]:
    aspect = pixel_aspect(key, stream)
    clock = _Clock(key, container, stream)
    taken: list[Array] = []
    times: list[float] = []
    for time, frame in pick(clock.timed(container.decode(stream)), sampling):
        if len(taken) == MAX_TAKEN:
            raise BadClip(key, f"the clip yields more than {MAX_TAKEN} frames; set frames.max, or a lower frames.fps")
        taken.append(picture(key, frame, time, aspect, sampling.size))
        times.append(time)
    check_count(key, len(taken), sampling, clock.seen)
    return np.stack(taken), np.array(times, dtype=np.float64)


def picture(key: str, frame: "VideoFrame", time: float, aspect: float, size: int | None) -> Array:
    """The frame upright, as u1 [size,size,3] with square pixels, or [h,w,3] as it is; BadClip for a damaged one."""
    if frame.is_corrupt:
        raise BadClip(key, f"the frame at {time:.3f} s is damaged; copy the file again")
    rgb = frame.to_ndarray(format="rgb24", interpolation=_SWS_FLAGS)
    rgb, turned = _upright(key, np.asarray(rgb, dtype=np.uint8), frame)
    return rgb if size is None else resize_crop(rgb, size=size, pixel_aspect=1 / aspect if turned else aspect)[0]


class _Clock:
    """Gives decoded frames their times in seconds from the first one, and counts them."""

    def __init__(self, key: str, container: "InputContainer", stream: "VideoStream") -> None:
        self._key = key
        self._base = stream.time_base
        # AVI has no presentation times. Its frames leave the decoder in order, and so do the decoding times.
        self._prefer_dts = container.format.name == "avi"
        rate = stream.average_rate or stream.guessed_rate
        self._interval = float(1 / rate) if rate else 0.0
        self.seen = 0

    def timed(self, frames: Iterator["VideoFrame"]) -> Iterator[tuple[float, "VideoFrame"]]:
        first = previous = math.nan
        width = height = 0
        for frame in frames:
            time = self._stamp(frame, previous)
            if self.seen == 0:
                first, width, height = time, frame.width, frame.height
                _check_size(self._key, width, height)
            self.seen += 1
            if (frame.width, frame.height) != (width, height):
                raise BadClip(
                    self._key,
                    f"frames change from {width} x {height} to {frame.width} x {frame.height} pixels at frame"
                    f" {self.seen}, expected one size",
                )
            if time < previous:
                raise BadClip(
                    self._key,
                    f"timestamps run backwards: {time - first:.3f} s follows {previous - first:.3f} s",
                )
            if time - first > MAX_SECONDS:
                raise BadClip(
                    self._key,
                    f"a timestamp of {time - first:.0f} s, expected at most {MAX_SECONDS:.0f} s",
                )
            if time != previous:
                previous = time
                yield time - first, frame

    def _stamp(self, frame: "VideoFrame", previous: float) -> float:
        """The frame's time by its stamps, or one frame interval after `previous` (NaN at the start) if it has none."""
        base = frame.time_base or self._base
        pts = None if frame.pts is None or base is None else float(frame.pts * base)
        dts = None if frame.dts is None or base is None else float(frame.dts * base)
        if pts is not None and not self._prefer_dts:
            return pts
        if dts is not None and not dts <= previous:
            return dts
        if math.isnan(previous):
            return 0.0
        if self._interval == 0.0:
            raise BadClip(self._key, "the frames have no timestamps and the file names no frame rate")
        return previous + self._interval


def pixel_aspect(key: str, stream: "VideoStream") -> float:
    """Width over height of a pixel; 1 where the file says nothing (0/1 is FFmpeg's unknown)."""
    ratio = stream.sample_aspect_ratio or stream.codec_context.sample_aspect_ratio
    aspect = float(ratio) if ratio else 1.0
    if not 1 / _MAX_ASPECT <= aspect <= _MAX_ASPECT:
        raise BadClip(key, f"pixels with an aspect of {aspect:g}, expected {1 / _MAX_ASPECT:g} to {_MAX_ASPECT:g}")
    return aspect


def _upright(key: str, rgb: Array, frame: "VideoFrame") -> tuple[Array, bool]:
    """`rgb` turned and mirrored as the frame's display matrix says, and whether its sides were swapped.

    The matrix [[a,b,u],[c,d,v],[x,y,w]] (int32) shows the pixel (p,q) at (a p + c q, b p + d q): ISO 14496-12, 6.2.2.
    """
    try:
        data = cast(Mapping[str, Any], frame.side_data).get("DISPLAYMATRIX")
    except ValueError as error:  # PyAV refuses a frame with any kind of side data that is newer than it
        raise BadClip(key, f"frames carry side data that this PyAV does not know ({error}); upgrade av") from error
    if data is None:
        return rgb, False
    a, b, _, c, d = np.frombuffer(bytes(data), dtype=np.int32)[:5].tolist()
    if a and d and not b and not c:
        turned, flip_x, flip_y = False, a < 0, d < 0
    elif b and c and not a and not d:
        turned, flip_x, flip_y = True, c < 0, b < 0
    else:
        raise BadClip(key, f"a display matrix [[{a}, {b}], [{c}, {d}]] that is no multiple of 90 degrees")
    if turned:
        rgb = rgb.transpose(1, 0, 2)
    return np.ascontiguousarray(rgb[:: -1 if flip_y else 1, :: -1 if flip_x else 1]), turned
