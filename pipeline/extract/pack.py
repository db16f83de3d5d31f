"""From points and features to the arrays of the store: distinct rows, counts, cells, quantised points.

Shape legend: F frames, P slots a frame, n points of a frame, T tokens, C channels, M (cell, token) pairs.
"""

import io
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from data_specs.arrays import Array
from data_specs.motion import CELLS_NAME, STATISTICS_NAME
from data_specs.records import BadClip, Cells, Clip, Images, Points, Tokens, exclusive_sum
from data_specs.shards import GRID, PART_NAME
from pipeline.config import StoreSection
from pipeline.extract.geometry import Geometry
from stages.motion import motion_cells, motion_statistics, moving_points, unwrap_headings


@dataclass(frozen=True, kw_only=True)
class FramePoints:
    """The kept points of a frame, sorted by (token, pixel).

    `pixel` [n] int64; `token` [n] int64 row of the frame's features; `coord` [n,3] normalised; `depth`, `conf` [n];
    `tokens` the number of rows.
    """

    pixel: Tensor
    token: Tensor
    coord: Tensor
    depth: Tensor
    conf: Tensor
    tokens: int


def pack_tokens(feats: list[Tensor], frames: list[FramePoints]) -> Tokens:
    """Distinct features [T,C] in float16 with the mean coordinate and the number of points of each."""
    counts, coords = [], []
    for frame in frames:
        count = torch.bincount(frame.token, minlength=frame.tokens)
        total = torch.zeros(frame.tokens, 3, dtype=torch.float64, device=frame.coord.device)
        total.index_add_(0, frame.token, frame.coord.double())
        counts.append(count)
        coords.append(total / count[:, None])
    return Tokens(
        feat=_numpy(torch.cat(feats).half()),
        coord=_numpy(torch.cat(coords).half()),
        count=_numpy(torch.cat(counts)).astype(np.uint16),
        offset=exclusive_sum(np.array([frame.tokens for frame in frames])),
    )


def pack_cells(frames: list[FramePoints], size: int) -> Cells:
    """How many points of each 14x14 cell share each token, sorted by (cell, token) within a frame."""
    cells, tokens, counts, lengths = [], [], [], []
    for frame in frames:
        row = torch.div(frame.pixel, size, rounding_mode="floor") * GRID // size
        column = (frame.pixel % size) * GRID // size
        pair, count = torch.unique((row * GRID + column) * frame.tokens + frame.token, return_counts=True)
        cells.append(torch.div(pair, frame.tokens, rounding_mode="floor"))
        tokens.append(pair % frame.tokens)
        counts.append(count)
        lengths.append(len(pair))
    return Cells(
        cell=_numpy(torch.cat(cells)).astype(np.uint8),
        token=_numpy(torch.cat(tokens)).astype(np.uint16),
        count=_numpy(torch.cat(counts)).astype(np.uint16),
        offset=exclusive_sum(np.array(lengths)),
    )


def pack_motion(frames: list[FramePoints], xyz_FHW3: Tensor, geometry: Geometry, margin: float) -> dict[str, Array]:
    """What moves in each frame, as the arrays of `data_specs.motion`."""
    size = geometry.depth.shape[-1]
    moving = moving_points(
        [xyz.flatten(0, 1)[frame.pixel] for xyz, frame in zip(xyz_FHW3, frames, strict=True)],
        geometry.depth,
        geometry.intrinsic,
        geometry.extrinsic,
        margin=margin,
    )
    pairs = list(zip(frames, moving, strict=True))
    cells = torch.stack([motion_cells(frame.coord, frame.pixel, mask, size) for frame, mask in pairs])
    statistics = torch.stack([motion_statistics(frame.coord, frame.depth.square(), mask) for frame, mask in pairs])
    return {CELLS_NAME: _numpy(cells.half()), STATISTICS_NAME: _numpy(unwrap_headings(statistics))}


def pack_points(rgb_FHW3: Array, frames: list[FramePoints], slots: int) -> tuple[Points, Array, Array]:
    """Quantised points, with the range of depth [F,2] and of confidence [F,2] that the quantisation refers to.

    With no slots the ranges are still those of the frames, and no point is kept.
    """
    total = len(frames)
    pixel = np.zeros((total, slots), np.uint16)
    rgb = np.zeros((total, slots, 3), np.uint8)
    depth = np.zeros((total, slots), np.uint16)
    conf = np.zeros((total, slots), np.uint8)
    depth_range = np.zeros((total, 2), np.float32)
    conf_range = np.zeros((total, 2), np.float32)
    for i, frame in enumerate(frames):
        n = len(frame.pixel)
        at = _numpy(frame.pixel)
        steps, depth_range[i] = _quantise(_numpy(frame.depth), np.uint16)
        sure, conf_range[i] = _quantise(_numpy(frame.conf), np.uint8)
        if slots:
            pixel[i, :n], depth[i, :n], conf[i, :n] = at, steps, sure
            rgb[i, :n] = rgb_FHW3[i].reshape(-1, 3)[at]
    return Points(pixel=pixel, rgb=rgb, depth=depth, conf=conf), depth_range, conf_range


def encode_images(rgb_FHW3: Array, kind: str, quality: int) -> Images:
    """Frames as JPEG (of that quality, full chroma) or PNG bytes, one after the other."""
    encoded = []
    for frame in rgb_FHW3:
        buffer = io.BytesIO()
        if kind == "jpeg":
            Image.fromarray(frame).save(buffer, "JPEG", quality=quality, subsampling=0)
        else:
            Image.fromarray(frame).save(buffer, "PNG")
        encoded.append(np.frombuffer(buffer.getvalue(), np.uint8))
    return Images(data=np.concatenate(encoded), offset=exclusive_sum(np.array([len(e) for e in encoded])))


def pack_views(clip: Clip, section: StoreSection) -> dict[str, Images]:
    """The pictures of further cameras, encoded at their own resolution. BadClip for a name that no array can have."""
    for name, pictures in clip.views.items():
        if not PART_NAME.fullmatch(name):
            raise BadClip(clip.key, f"has a camera {name!r}; a name may hold only letters, digits, '_' and '-'")
        if pictures.dtype != np.uint8 or pictures.ndim != 4 or pictures.shape[::3] != (len(clip), 3):
            raise BadClip(
                clip.key,
                f"has pictures of camera {name!r} as {pictures.dtype} {list(pictures.shape)}, expected uint8 "
                f"[{len(clip)}, height, width, 3]",
            )
    return {name: encode_images(clip.views[name], section.image, section.quality) for name in sorted(clip.views)}


def _quantise(values: Array, dtype: type[np.unsignedinteger]) -> tuple[Array, Array]:
    low, high = float(values.min()), float(values.max())
    levels = np.iinfo(dtype).max
    scale = levels / (high - low) if high > low else 0.0
    steps = np.rint((values.astype(np.float64) - low) * scale)
    return steps.astype(dtype), np.array([low, high], np.float32)


def _numpy(tensor: Tensor) -> Array:
    return tensor.cpu().numpy()
