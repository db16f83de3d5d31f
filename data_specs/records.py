"""What passes between the rooms: a decoded clip, a frame's point cloud, its features, a stored clip."""

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

from data_specs.arrays import Array


class BadClip(Exception):
    """A clip that cannot be used. `reason` is a sentence for `rejected.jsonl`; the run goes on without the clip."""

    def __init__(self, key: str, reason: str) -> None:
        super().__init__(f"{key}: {reason}")
        self.key = key
        self.reason = reason

    def __reduce__(self) -> tuple[type["BadClip"], tuple[str, str]]:
        return (BadClip, (self.key, self.reason))


@dataclass(frozen=True, kw_only=True, eq=False)
class Frame:
    """One decoded frame: `rgb` u1 [H,W,3], `time` in seconds; sensor arrays where the dataset has them.

    `depth` f4 [H,W] in metres along the optical axis (0 or non-finite: no reading); `intrinsic` f4 [3,3] in pixels;
    `extrinsic` f4 [3,4] OpenCV camera-from-world.
    """

    rgb: Array
    time: float
    depth: Array | None = None
    intrinsic: Array | None = None
    extrinsic: Array | None = None


@dataclass(frozen=True, kw_only=True, eq=False)
class Trajectory:
    """What a robot did in an episode of K control steps, at its full rate, whatever frames were taken of it.

    Attributes:
        state: f4 [K,S], action: f4 [K,A], in the dataset's own units; `action[k]` leads from step k on.
        step: i8 [F], the control step at which each frame of the clip was seen, increasing; K for a frame that was
            seen after the last one.
        hz: control steps a second.
    """

    state: Array
    action: Array
    step: Array
    hz: float


@dataclass(frozen=True, kw_only=True, eq=False)
class Clip:
    """A decoded clip of F frames.

    Attributes:
        key, split, text: as in `ClipRef`; `text` is the instruction or the label.
        rgb: u1 [F,H,W,3], H = W = `FrameSampling.size`.
        time: f8 [F], seconds from the start of the video, increasing.
        depth: f4 [F,H,W] metres along the optical axis, or None; 0 or non-finite where there is no reading.
        intrinsic: f4 [F,3,3] pixels of the cropped frame, or None.
        extrinsic: f4 [F,3,4] OpenCV camera-from-world, metres, or None.
        state, action: f4 [F,S], [F,A] in the dataset's own units, or None. `action[i]` is the one control step that
            leads from frame i on, however far away the next frame that was taken is.
        is_pad: bool [F], True where `action[i]` is padding; None where there are no actions.
        extra: more arrays by name, [F, ...] each; the store keeps them as `extra/NAME`. `action_sum` f4 [F,A], where
            there is one, is the sum of the actions of all control steps before frame i, so that
            action_sum[j] - action_sum[i] is what was done between two frames at any frame rate.
        trajectory: the whole episode at its control rate, where the dataset has robot data; None elsewhere.
        views: pictures of further cameras by name, u1 [F,h,w,3], each at its own resolution.
    """

    key: str
    rgb: Array
    time: Array
    split: str = ""
    text: str = ""
    depth: Array | None = None
    intrinsic: Array | None = None
    extrinsic: Array | None = None
    state: Array | None = None
    action: Array | None = None
    is_pad: Array | None = None
    extra: dict[str, Array] = field(default_factory=dict)
    trajectory: Trajectory | None = None
    views: dict[str, Array] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.rgb)

    def __iter__(self) -> Iterator[Frame]:
        for i in range(len(self)):
            yield Frame(
                rgb=self.rgb[i],
                time=float(self.time[i]),
                depth=None if self.depth is None else self.depth[i],
                intrinsic=None if self.intrinsic is None else self.intrinsic[i],
                extrinsic=None if self.extrinsic is None else self.extrinsic[i],
            )


@dataclass(frozen=True, kw_only=True, eq=False)
class Tokens:
    """Distinct coarse features: `feat` f2 [T,C], `coord` f2 [T,3], `count` u2 [T], `offset` i8 [F+1].

    With `scale` f2 [F,C] `feat` is i1 (see `data_specs.quantise`); `features` are floats in any case.
    """

    feat: Array
    coord: Array
    count: Array
    offset: Array
    scale: Array | None = None

    @property
    def features(self) -> Array:
        """The features f2 [T,C]."""
        if self.scale is None:
            return self.feat
        import torch

        from data_specs.quantise import float_features

        parts = (torch.from_numpy(np.array(array)) for array in (self.feat, self.scale, self.offset))
        return np.asarray(float_features(*parts).numpy())


@dataclass(frozen=True, kw_only=True, eq=False)
class Cells:
    """How many points of 14x14 cell `cell` share token `token` of its frame: u1, u2, u2 [M]; `offset` i8 [F+1]."""

    cell: Array
    token: Array
    count: Array
    offset: Array


@dataclass(frozen=True, kw_only=True, eq=False)
class Points:
    """The kept points, sorted by (token, pixel); slots past the sum of the frame's counts are zero padding.

    `pixel` u2 [F,P] = row * 224 + column; `rgb` u1 [F,P,3]; `depth` u2 [F,P] on the frame's [near, far] scale;
    `conf` u1 [F,P] on the frame's own scale. P is 0 where a store keeps no points.
    """

    pixel: Array
    rgb: Array
    depth: Array
    conf: Array


@dataclass(frozen=True, kw_only=True, eq=False)
class Cameras:
    """`intrinsic` f4 [F,3,3] pixels, `extrinsic` f4 [F,3,4], `range` f4 [F,2] near and far, `conf_range` f4 [F,2],
    `normalisation` f4 [F,4] centre and scale: normalised = (xyz - centre) * scale.
    """

    intrinsic: Array
    extrinsic: Array
    range: Array
    conf_range: Array
    normalisation: Array


@dataclass(frozen=True, kw_only=True, eq=False)
class Images:
    """Encoded pictures (JPEG or PNG) one after the other: `data` u1 [B], `offset` i8 [F+1]."""

    data: Array
    offset: Array


@dataclass(frozen=True, kw_only=True, eq=False)
class ClipRecord:
    """A clip as stored and as read back. Offsets are relative to the clip.

    `vision` f2 [F,N,D] by encoder, `views` encoded pictures by camera; the rest as in `Clip` and `data_specs.shards`.
    """

    key: str
    split: str
    text: str
    time: Array
    tokens: Tokens
    cells: Cells
    points: Points
    camera: Cameras
    rgb: Images
    state: Array | None = None
    action: Array | None = None
    is_pad: Array | None = None
    extra: dict[str, Array] = field(default_factory=dict)
    vision: dict[str, Array] = field(default_factory=dict)
    views: dict[str, Images] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.time)


def exclusive_sum(lengths: Array) -> Array:
    """Offsets of runs of `lengths`: i8 [n+1] that starts with 0."""
    out = np.zeros(len(lengths) + 1, dtype=np.int64)
    np.cumsum(lengths, out=out[1:])
    return out
