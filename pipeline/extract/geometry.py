"""Depth and camera of a clip: from VGGT or from the dataset's sensors, always in a world whose z points up."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from data_specs.records import BadClip, Clip
from pipeline.config import GeometrySection
from pipeline.extract.encoders.towers import vggt_stream
from stages.points import turn_z_up
from stages.vggt import VGGTEncoder

WORLDS = {
    "vggt": "each frame's own camera, axes renamed so that z is up; scale unknown, another in each frame",
    "vggt_window": "the first camera of each window, axes renamed so that z is up; scale unknown, one for a window",
    "sensor": "the dataset's world, z up, metres",
}

FRAMES_A_BATCH = 4
"""Single frames that go through VGGT together. Fixed, so that a clip gives the same bytes on every run."""


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


def lift(
    clip: Clip, section: GeometrySection, vggt: VGGTEncoder | None, device: torch.device, *, first: int = 0
) -> Geometry:
    """Geometry of all frames; BadClip names the first frame whose depth or camera cannot be used.

    `first` is the number of the clip's first frame, where it was cut out of a longer one.
    """
    if section.source == "sensor":
        geometry = _from_sensor(clip, device)
    else:
        assert vggt is not None, "geometry from VGGT needs VGGT"
        geometry = _from_vggt(clip, section, vggt, device)
    _check(clip.key, geometry, first)
    return geometry


def _from_sensor(clip: Clip, device: torch.device) -> Geometry:
    if clip.depth is None or clip.intrinsic is None or clip.extrinsic is None:
        raise BadClip(clip.key, "has no sensor depth and camera; expected them for geometry.source=sensor")
    depth = torch.from_numpy(clip.depth).to(device)
    # a sensor says 0 or NaN where it measured nothing: no depth there, and no confidence either
    measured = torch.isfinite(depth) & (depth > 0)
    return Geometry(
        depth=torch.where(measured, depth, torch.zeros_like(depth)),
        conf=measured.float(),
        intrinsic=torch.from_numpy(clip.intrinsic).to(device),
        extrinsic=torch.from_numpy(clip.extrinsic).to(device),
    )


def _from_vggt(clip: Clip, section: GeometrySection, vggt: VGGTEncoder, device: torch.device) -> Geometry:
    rgb = torch.from_numpy(clip.rgb).to(device).permute(0, 3, 1, 2).float() / 255
    if section.source == "vggt_window":
        parts = [vggt.encode_window(window) for window in torch.split(rgb, section.window)]
    else:
        parts = [vggt(frames) for frames in torch.split(rgb, FRAMES_A_BATCH)]
    return Geometry(
        depth=torch.cat([part.depth_map for part in parts]).float(),
        conf=torch.cat([part.depth_conf for part in parts]).float(),
        intrinsic=torch.cat([part.intrinsic for part in parts]).float(),
        extrinsic=turn_z_up(torch.cat([part.extrinsic for part in parts]).float()),
        tokens=_join_tokens([None if part.tokens is None else vggt_stream(part.tokens) for part in parts]),
    )


def _join_tokens(parts: Sequence[Tensor | None]) -> Tensor | None:
    known = [part for part in parts if part is not None]
    return torch.cat(known) if known else None


def _check(key: str, geometry: Geometry, first: int) -> None:
    for name, values in (
        ("depth", geometry.depth),
        ("confidence", geometry.conf),
        ("intrinsic", geometry.intrinsic),
        ("extrinsic", geometry.extrinsic),
    ):
        good = torch.isfinite(values.flatten(1)).all(1)
        if name == "intrinsic":  # a field of view of 0 gives an infinite focal length, a negative one is as bad
            good &= (values[:, 0, 0] > 0) & (values[:, 1, 1] > 0)
        if not bool(good.all()):
            frame = int(torch.nonzero(~good)[0])
            raise BadClip(
                key,
                f"the {name} of frame {first + frame} is not finite or not positive; expected usable geometry",
            )
