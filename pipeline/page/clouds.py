"""What the page shows of a store: some frames of some clips, with all that the viewer needs to draw them.

Shape legend: n points of a frame, T tokens, C channels. Points travel as they are stored (pixel and quantised depth);
the viewer unprojects them with the frame's camera.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from data_specs.arrays import Array
from data_specs.records import ClipRecord, Images
from pipeline.page.pictures import depth_picture, image_uri, packed

MAX_CLIPS = 8
MAX_FRAMES = 32
"""In all; about 110 kB of page each."""
MAX_FRAMES_A_CLIP = 12
MAX_POINTS = 8192


@dataclass(frozen=True, kw_only=True, eq=False)
class FrameView:
    """A frame of the page. `data` is what the viewer gets; `image`, `depth` are data URIs (None: not an image)."""

    number: int
    time: float
    tokens: int
    points: int
    image: str | None
    depth: str | None
    data: dict[str, Any]


@dataclass(frozen=True, kw_only=True, eq=False)
class ClipView:
    """A clip of the page. `depth_scale` and `conf_scale` are the ranges its colours span, the same in every frame.

    `cameras` are further ones: name and, as a data URI (None: not an image), what each saw at the first frame shown.
    """

    key: str
    split: str
    text: str
    length: int
    depth_scale: tuple[float, float]
    conf_scale: tuple[float, float]
    frames: tuple[FrameView, ...]
    cameras: tuple[tuple[str, str | None], ...] = ()


@dataclass(frozen=True, kw_only=True, eq=False)
class Components:
    """First three principal components of the features: `mean` [C], `axes` [C,3], the range [3] of each that the
    colours span, and the share [3] of the variance that each holds.
    """

    mean: Array
    axes: Array
    low: Array
    high: Array
    share: tuple[float, float, float]

    def colours(self, feat_TC: Array) -> Array:
        """Red, green and blue u1 [T,3] of the three components."""
        projected = (feat_TC.astype(np.float32) - self.mean) @ self.axes
        extent = self.high - self.low
        level = np.where(extent > 0, (projected - self.low) / np.where(extent > 0, extent, 1), 0.5)
        return np.asarray(np.rint(np.clip(level, 0, 1) * 255), dtype=np.uint8)


def spread(count: int, most: int) -> list[int]:
    """At most `most` of the numbers 0 .. count - 1, the first and the last among them, at even distances."""
    if count <= most:
        return list(range(count))
    if most == 1:
        return [0]
    return [round(i * (count - 1) / (most - 1)) for i in range(most)]


def frames_a_clip(clips: int) -> int:
    """How many frames of each of `clips` clips the page has room for."""
    return min(MAX_FRAMES_A_CLIP, MAX_FRAMES // max(clips, 1))


def fit_components(records: Sequence[ClipRecord], frames: Sequence[Sequence[int]]) -> Components:
    """Principal components of the features of the given frames of each record, every point counting once.

    A component's sign is arbitrary: its greatest loading is made positive, so that two pages of a store agree.
    """
    feats, weights = [], []
    for record, chosen in zip(records, frames, strict=True):
        for i in chosen:
            rows = slice(int(record.tokens.offset[i]), int(record.tokens.offset[i + 1]))
            feats.append(record.tokens.features[rows].astype(np.float32))
            weights.append(record.tokens.count[rows].astype(np.float64))
    channels = records[0].tokens.feat.shape[1] if records else 3
    feat_TC = np.concatenate(feats) if feats else np.zeros((0, channels), np.float32)
    weight_T = np.concatenate(weights) if weights else np.zeros(0)
    if weight_T.sum() <= 0 or channels < 3:
        return Components(
            mean=np.zeros(channels, np.float32),
            axes=np.zeros((channels, 3), np.float32),
            low=np.zeros(3),
            high=np.zeros(3),
            share=(0.0, 0.0, 0.0),
        )
    mean = np.average(feat_TC, axis=0, weights=weight_T)
    centred = (feat_TC - mean).astype(np.float64)
    covariance = (centred * weight_T[:, None]).T @ centred / weight_T.sum()
    values, vectors = np.linalg.eigh(covariance)
    axes = vectors[:, :-4:-1]
    axes = axes * np.where(axes[np.abs(axes).argmax(axis=0), np.arange(3)] < 0, -1.0, 1.0)
    projected = centred @ axes
    limits = np.array([_weighted_range(projected[:, i], weight_T, 0.01) for i in range(3)])
    total = float(np.clip(values, 0, None).sum())
    share = [float(max(value, 0.0)) / total if total > 0 else 0.0 for value in values[:-4:-1]]
    return Components(
        mean=mean.astype(np.float32),
        axes=axes.astype(np.float32),
        low=limits[:, 0],
        high=limits[:, 1],
        share=(share[0], share[1], share[2]),
    )


def clip_view(record: ClipRecord, frames: Sequence[int], components: Components, width: int) -> ClipView:
    """Frames of a clip as the page shows them; `width` is the side of the stored frames in pixels."""
    depths = [point_depth(record, i) for i in frames]
    confs = [point_conf(record, i) for i in frames]
    depth_scale, conf_scale = _range(depths), _range(confs)
    return ClipView(
        key=record.key,
        split=record.split,
        text=record.text,
        length=len(record),
        depth_scale=depth_scale,
        conf_scale=conf_scale,
        frames=tuple(
            _frame_view(record, i, depth, depth_scale, components, width)
            for i, depth in zip(frames, depths, strict=True)
        ),
        cameras=tuple((name, image_uri(_picture(images, frames[0]))) for name, images in sorted(record.views.items())),
    )


def _frame_view(
    record: ClipRecord, i: int, depth_n: Array, scale: tuple[float, float], components: Components, width: int
) -> FrameView:
    rows = slice(int(record.tokens.offset[i]), int(record.tokens.offset[i + 1]))
    n, camera = len(depth_n), record.camera
    token_n, tokens = point_tokens(record, i), rows.stop - rows.start
    shown = np.array(spread(n, MAX_POINTS), dtype=np.int64)
    pixel_n = record.points.pixel[i, :n]
    intrinsic = camera.intrinsic[i]
    return FrameView(
        number=i,
        time=float(record.time[i]),
        tokens=tokens,
        points=n,
        image=image_uri(stored_image(record, i)),
        depth=image_uri(depth_picture(pixel_n, depth_n, *scale, width)),
        data={
            "pixel": packed(pixel_n[shown]),
            "depth": packed(record.points.depth[i, :n][shown]),
            "conf": packed(record.points.conf[i, :n][shown]),
            "rgb": packed(record.points.rgb[i, :n][shown]),
            "count": packed(np.bincount(token_n[shown], minlength=tokens).astype(np.uint16)),
            "pca": packed(components.colours(record.tokens.features[rows])),
            "intrinsic": _numbers(intrinsic[[0, 1, 0, 1], [0, 1, 2, 2]]),
            "extrinsic": _numbers(camera.extrinsic[i]),
            "range": _numbers(camera.range[i]),
            "confRange": _numbers(camera.conf_range[i]),
            "normalisation": _numbers(camera.normalisation[i]),
        },
    )


def point_count(record: ClipRecord, i: int) -> int:
    """How many of the slots of frame `i` hold a point; the rest is padding. None do where no points are kept."""
    counted = int(record.tokens.count[int(record.tokens.offset[i]) : int(record.tokens.offset[i + 1])].sum())
    return min(counted, int(record.points.pixel.shape[1]))


def point_tokens(record: ClipRecord, i: int) -> Array:
    """Row i8 [n] of each point of frame `i` among the frame's features: points are sorted by row."""
    count = record.tokens.count[int(record.tokens.offset[i]) : int(record.tokens.offset[i + 1])]
    return np.repeat(np.arange(len(count)), count.astype(np.int64))[: point_count(record, i)]


def stored_image(record: ClipRecord, i: int) -> bytes:
    """The encoded image of frame `i`."""
    return _picture(record.rgb, i)


def _picture(images: Images, i: int) -> bytes:
    return images.data[int(images.offset[i]) : int(images.offset[i + 1])].tobytes()


def point_depth(record: ClipRecord, i: int) -> Array:
    """Depth f8 [n] of the points of frame `i`."""
    near, far = record.camera.range[i].astype(np.float64)
    return np.asarray(near + record.points.depth[i, : point_count(record, i)] / 65535 * (far - near))


def point_conf(record: ClipRecord, i: int) -> Array:
    """Confidence f8 [n] of the points of frame `i`."""
    low, high = record.camera.conf_range[i].astype(np.float64)
    return np.asarray(low + record.points.conf[i, : point_count(record, i)] / 255 * (high - low))


def _range(parts: Sequence[Array]) -> tuple[float, float]:
    """The range that colours span: without the extreme percent at either end, where a few points take it all."""
    values = np.concatenate([*parts, np.zeros(0)])
    if not len(values):
        return (0.0, 1.0)
    low, high = np.percentile(values, [1, 99])
    return (float(low), float(high))


def _weighted_range(values: Array, weights: Array, tail: float) -> tuple[float, float]:
    """The values below which the shares `tail` and 1 - `tail` of the weight lie."""
    order = np.argsort(values)
    reached = np.cumsum(weights[order]) / weights.sum()
    low = int(np.searchsorted(reached, tail))
    high = min(int(np.searchsorted(reached, 1 - tail)), len(values) - 1)
    return (float(values[order[low]]), float(values[order[high]]))


def _numbers(values: Array) -> list[float]:
    """Numbers for JSON: nine digits carry a float32 exactly."""
    return [float(f"{value:.9g}") for value in values.reshape(-1).astype(np.float64)]
