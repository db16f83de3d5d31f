"""Depth and camera of a clip: from VGGT or from the dataset's sensors, always in a world whose z points up."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from data_specs.records import BadClip, Clip
from pipeline.config import GeometrySection
from pipeline.extract.encoders.towers import vggt_stream
from pipeline.extract.lanes import Lanes
from stages.points import turn_z_up
from stages.vggt import VGGTEncoder, VGGTGeometry

GREATEST = 1e6
"""Depth, focal length or place of a camera: beyond it, squares of coordinates leave no digits of float32."""

WORLDS = {
    "vggt": "each frame's own camera, axes renamed so that z is up; scale unknown, another in each frame",
    "vggt_window": "the first camera of each window, axes renamed so that z is up; scale unknown, one for a window",
    "sensor": "the dataset's world, z up, metres",
}


@dataclass(frozen=True, kw_only=True)
class Geometry:
    """`depth`, `conf` f4 [F,H,W]; `intrinsic` f4 [F,3,3] pixels; `extrinsic` f4 [F,3,4] camera-from-world, z up.

    `tokens` [F,N,C] of VGGT's aggregator, where it ran on each frame alone and was asked for them (see `vggt_stream`).
    """

    depth: Tensor
    conf: Tensor
    intrinsic: Tensor
    extrinsic: Tensor
    tokens: Tensor | None = None

    def __getitem__(self, frames: slice) -> "Geometry":
        """That of some of the frames."""
        return Geometry(
            depth=self.depth[frames],
            conf=self.conf[frames],
            intrinsic=self.intrinsic[frames],
            extrinsic=self.extrinsic[frames],
            tokens=None if self.tokens is None else self.tokens[frames],
        )

    @classmethod
    def join(cls, parts: Sequence["Geometry"]) -> "Geometry":
        """The frames of all parts, one after the other."""
        return cls(
            depth=torch.cat([part.depth for part in parts]),
            conf=torch.cat([part.conf for part in parts]),
            intrinsic=torch.cat([part.intrinsic for part in parts]),
            extrinsic=torch.cat([part.extrinsic for part in parts]),
            tokens=_join_tokens([part.tokens for part in parts]),
        )


def check_sensors(clip: Clip) -> None:
    """BadClip for a clip whose dataset has measured nothing."""
    if clip.depth is None or clip.intrinsic is None or clip.extrinsic is None:
        raise BadClip(clip.key, "has no sensor depth and camera; expected them for geometry.source=sensor")


def from_sensor(clip: Clip, lanes: Lanes) -> Geometry:
    """What the dataset has measured; BadClip where it has not."""
    check_sensors(clip)
    assert clip.depth is not None and clip.intrinsic is not None and clip.extrinsic is not None
    depth = lanes.send(clip.depth)
    # a sensor says 0 or NaN where it measured nothing: no depth there, and no confidence either
    measured = (depth > 0) & (depth <= GREATEST)
    return Geometry(
        depth=torch.where(measured, depth, torch.zeros_like(depth)),
        conf=measured.float(),
        intrinsic=lanes.send(clip.intrinsic),
        extrinsic=lanes.send(clip.extrinsic),
    )


def from_vggt(rgb: Sequence[Tensor], section: GeometrySection, vggt: VGGTEncoder, *, together: int) -> Geometry:
    """What VGGT says of clips u1 [F,H,W,3], one after the other; nothing waits for the device.

    About `together` frames run at a time, of whichever clips: single frames, or windows of the same length.
    """
    pictures = [frames.permute(0, 3, 1, 2).float() / 255 for frames in rgb]
    if section.source == "vggt_window":
        windows = [window for clip in pictures for window in torch.split(clip, section.window)]
        parts = _by_length(windows, vggt, together)
    else:
        parts = [vggt(frames) for frames in torch.split(torch.cat(pictures), together)]
    return Geometry(
        depth=torch.cat([part.depth_map for part in parts]).float(),
        conf=torch.cat([part.depth_conf for part in parts]).float(),
        intrinsic=torch.cat([part.intrinsic for part in parts]).float(),
        extrinsic=turn_z_up(torch.cat([part.extrinsic for part in parts]).float()),
        tokens=_join_tokens([None if part.tokens is None else vggt_stream(part.tokens) for part in parts]),
    )


def _by_length(windows: Sequence[Tensor], vggt: VGGTEncoder, together: int) -> list[VGGTGeometry]:
    """The geometry of each window, in their order; windows of one length run together."""
    parts: dict[int, VGGTGeometry] = {}
    for length in dict.fromkeys(len(window) for window in windows):
        alike = [i for i, window in enumerate(windows) if len(window) == length]
        step = max(1, together // length)
        for start in range(0, len(alike), step):
            run = alike[start : start + step]
            out = vggt.encode_windows(torch.stack([windows[i] for i in run]))
            for place, i in enumerate(run):
                parts[i] = out[place * length : (place + 1) * length]
    return [parts[i] for i in range(len(windows))]


def _join_tokens(parts: Sequence[Tensor | None]) -> Tensor | None:
    known = [part for part in parts if part is not None]
    return torch.cat(known) if known else None


CHECKED = ("depth", "confidence", "intrinsic", "extrinsic")
"""What `usable` looks at."""


def usable(geometry: Geometry) -> Tensor:
    """Which frames have each of `CHECKED` as it must be: bool [4,F]."""
    good = [
        (values.flatten(1).abs() <= GREATEST).all(1)  # false for NaN, too
        for values in (geometry.depth, geometry.conf, geometry.intrinsic, geometry.extrinsic)
    ]
    # a field of view of 0 gives an infinite focal length, a negative one is as bad
    good[2] &= (geometry.intrinsic[:, 0, 0] > 0) & (geometry.intrinsic[:, 1, 1] > 0)
    return torch.stack(good)


def check_usable(key: str, good: Sequence[Sequence[int]], first: int) -> None:
    """BadClip names the first frame whose depth or camera cannot be used.

    `good` is what `usable` says of the clip's frames; `first` is the number of the first, where the clip was cut out of
    a longer one.
    """
    for name, frames in zip(CHECKED, good, strict=True):
        if not all(frames):
            frame = first + [bool(value) for value in frames].index(False)
            raise BadClip(
                key,
                f"the {name} of frame {frame} is not finite or not positive; expected usable geometry, of at most"
                f" {GREATEST:g}",
            )
