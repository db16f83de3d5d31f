"""From depth to points: unproject, subsample, normalise, voxelise, estimate normals.

Shape legend: F frames, H W image sides, Q = H*W pixels (row-major), P kept points, N points of one cloud.
Conventions: a pixel's centre lies at integer coordinates (u = column, v = row); cameras are OpenCV
camera-from-world; the world of every cloud here is z up (see `turn_z_up`).
Everything is a function of its arguments alone: no global random state, nothing that depends on a batch.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import fpsample
import numpy as np
import torch
from torch import Tensor

from stages.constants import constant

Sampling = Literal["random", "random_per_frame", "fps", "voxel"]
Normalisation = Literal["unit", "scene"]

SCENE_Z_EXTENT = 3.0
"""Metres-like height that Concerto's own video demo scales a lifted scene to."""


def camera_centre(extrinsic_B34: Tensor) -> Tensor:
    """Where cameras stand in the world [B,3], from OpenCV camera-from-world extrinsics."""
    return -torch.einsum("bij,bi->bj", extrinsic_B34[:, :, :3], extrinsic_B34[:, :, 3])


def unproject_pixels(pixel: Tensor, depth: Tensor, intrinsic: Tensor, extrinsic: Tensor, width: int) -> Tensor:
    """World coordinates [..., P, 3] of pixels at given depths (pinhole camera).

    Args:
        pixel: integer [..., P], row * width + column.
        depth: [..., P] along the optical axis.
        intrinsic: [..., 3, 3] in pixels.
        extrinsic: [..., 3, 4] or [..., 4, 4], OpenCV camera-from-world.
        width: of the image, in pixels.
    """
    column = (pixel % width).to(depth.dtype)
    row = torch.div(pixel, width, rounding_mode="floor").to(depth.dtype)
    fx, fy = intrinsic[..., 0, 0, None], intrinsic[..., 1, 1, None]
    cx, cy = intrinsic[..., 0, 2, None], intrinsic[..., 1, 2, None]
    camera = torch.stack([(column - cx) / fx * depth, (row - cy) / fy * depth, depth], dim=-1)
    rotation, translation = extrinsic[..., :3, :3], extrinsic[..., :3, 3]
    # world = R^T (camera - t), written as a row-vector product
    return (camera - translation[..., None, :]) @ rotation


def unproject(depth_FHW: Tensor, intrinsic_F33: Tensor, extrinsic_F34: Tensor) -> Tensor:
    """World coordinates [F,H,W,3] of every pixel of depth maps [F,H,W]."""
    frames, height, width = depth_FHW.shape
    pixel = torch.arange(height * width, device=depth_FHW.device).expand(frames, -1)
    xyz = unproject_pixels(pixel, depth_FHW.reshape(frames, -1), intrinsic_F33, extrinsic_F34, width)
    return xyz.reshape(frames, height, width, 3)


def turn_z_up(extrinsic: Tensor) -> Tensor:
    """Camera-from-world [..., 3, 4] for a world whose z points up, from one in the camera's own axes (y down).

    VGGT's world is its first camera: x right, y down, z forward. PTv3 was trained on gravity-aligned scenes, so
    the world is renamed to x right, y forward, z up; no camera moves.
    """
    rows = (1.0, 0.0, 0.0, 0.0, 0.0, 1.0, 0.0, -1.0, 0.0)
    up_from_camera = constant(rows, extrinsic.device, extrinsic.dtype).view(3, 3)
    return torch.cat([extrinsic[..., :3, :3] @ up_from_camera.T, extrinsic[..., :3, 3:]], dim=-1)


def priorities(seed: int, key: str, count: int, frame: int | None = None) -> Tensor:
    """A random rank for each of `count` pixels, int64 [count], a permutation drawn from (seed, key, frame) alone."""
    digest = hashlib.sha256(f"{seed}/{key}/{'' if frame is None else frame}".encode()).digest()
    generator = np.random.Generator(np.random.Philox(key=int.from_bytes(digest[:16], "little")))
    return torch.from_numpy(generator.permutation(count))


def subsample(
    valid_FQ: Tensor,
    xyz_FQ3: Tensor,
    rank_FQ: Tensor,
    *,
    count: int,
    sampling: Sampling,
    voxels: Sequence[float] = (),
) -> tuple[Tensor, Tensor]:
    """Choose at most `count` valid pixels of each frame, all frames at once.

    `random` and `random_per_frame` take those of the least rank: with one order a clip (`priorities`) what stands still
    keeps its points from frame to frame. `fps` is farthest point sampling (Eldar et al. 1997) from the valid pixel of
    the least rank. `voxel` takes one point of every occupied voxel of side `voxels[f]` before it takes a second of any,
    ranks breaking ties. A frame's choice depends on the frame only.

    Returns:
        int64 [F,count]: pixel indices, ascending; Q in the places that are left over.
        int64 [F]: how many there are.
    """
    pixels = valid_FQ.shape[1]
    taken = min(count, pixels)
    rank_FQ = torch.where(valid_FQ, rank_FQ, pixels)
    kept_F = valid_FQ.sum(1).clamp(max=count)
    order_FQ = torch.argsort(rank_FQ, dim=1, stable=True)
    if sampling == "voxel":
        order_FQ = torch.stack(
            [
                torch.cat([own[: int(n)][_voxel_order(xyz[own[: int(n)]], side)], own[int(n) :]])
                for own, xyz, side, n in zip(order_FQ, xyz_FQ3, voxels, valid_FQ.sum(1).tolist(), strict=True)
            ]
        )
    chosen_FP = order_FQ[:, :taken]
    if sampling == "fps":
        chosen_FP = _farthest(valid_FQ, xyz_FQ3, order_FQ, taken)
    place_P = torch.arange(taken, device=valid_FQ.device)
    chosen_FP = torch.where(place_P < kept_F[:, None], chosen_FP, pixels).sort(1).values
    return torch.nn.functional.pad(chosen_FP, (0, count - taken), value=pixels), kept_F


def _farthest(valid_FQ: Tensor, xyz_FQ3: Tensor, order_FQ: Tensor, count: int) -> Tensor:
    """Farthest points of each frame, from the first of its order; where there are no more than `count`, the order."""
    if valid_FQ.device.type != "cpu":
        enough_F = valid_FQ.sum(1) > count
        picked_FP = farthest_points(xyz_FQ3, valid_FQ, order_FQ[:, 0], count)
        return torch.where(enough_F[:, None], picked_FP, order_FQ[:, :count])
    chosen = order_FQ[:, :count].clone()
    for i, valid in enumerate(valid_FQ.sum(1).tolist()):
        if valid > count:
            candidates = order_FQ[i, :valid]
            cloud = xyz_FQ3[i, candidates].double().numpy()
            picked = fpsample.bucket_fps_kdline_sampling(cloud, count, h=7, start_idx=0)
            chosen[i] = candidates[torch.from_numpy(picked.astype(np.int64))]
    return chosen


def farthest_points(xyz_FQ3: Tensor, valid_FQ: Tensor, start_F: Tensor, count: int) -> Tensor:
    """Farthest point sampling of all frames at once, without asking the device: int64 [F,count], `start_F` first.

    Each step takes the valid point that is farthest from those taken. A frame with fewer valid points than `count`
    takes some twice.
    """
    away_FQ = torch.where(valid_FQ, torch.inf, -torch.inf).to(xyz_FQ3.dtype)
    xyz_FQ3 = torch.where(valid_FQ[..., None], xyz_FQ3, 0)  # NaN would be the largest of all
    picked_FP = torch.empty(len(start_F), count, dtype=torch.int64, device=start_F.device)
    last_F = start_F
    for step in range(count):
        picked_FP[:, step] = last_F
        last_F13 = xyz_FQ3.gather(1, last_F[:, None, None].expand(-1, 1, 3))
        away_FQ = torch.minimum(away_FQ, (xyz_FQ3 - last_F13).square().sum(-1))
        last_F = away_FQ.argmax(1)
    return picked_FP


def _voxel_order(xyz_N3: Tensor, voxel: float) -> Tensor:
    """Order that lists the first point of every voxel, then the second of every voxel, and so on; stable."""
    _, cell = torch.unique(_cell_keys(torch.floor(xyz_N3 / voxel).long()), return_inverse=True)
    by_cell = torch.argsort(cell, stable=True)
    sizes = torch.bincount(cell)
    start = torch.cumsum(sizes, 0) - sizes
    turn = torch.empty_like(cell)
    turn[by_cell] = torch.arange(len(cell), device=cell.device) - start[cell[by_cell]]
    return torch.argsort(turn, stable=True)


@dataclass(frozen=True, kw_only=True)
class Frame3D:
    """A normalised space: normalised = (xyz - centre) * scale. `low` [3] is where its voxel grid begins, normalised.

    Or several of them: `centre` and `low` [...,3], `scale` [...].
    """

    centre: Tensor
    scale: Tensor
    low: Tensor

    def apply(self, xyz: Tensor) -> Tensor:
        """Normalised coordinates of world points [..., 3]."""
        return (xyz - self.centre) * self.scale

    def as_row(self) -> Tensor:
        """Centre and scale as stored: [...,4]."""
        return torch.cat([self.centre, self.scale[..., None]], dim=-1)


def fit_normalisation(xyz_N3: Tensor, kind: Normalisation) -> Frame3D:
    """The normalised space of a cloud, or of all the clouds of a clip together.

    `unit` maps the bounding box into [-1, 1] with one scale; `scene` puts x and y to the middle and z to the minimum
    (Concerto's centre shift) and scales to a z-extent of 3 (Concerto's video demo). Raises ValueError when the cloud
    has no extent, which no scale can mend.
    """
    low, high = xyz_N3.amin(0), xyz_N3.amax(0)
    space = fit_box(low, high, kind)
    if not bool(has_extent(low, high, kind)):
        raise ValueError(no_extent((high - low).tolist(), kind))
    return space


def fit_box(low: Tensor, high: Tensor, kind: Normalisation) -> Frame3D:
    """The same for boxes [...,3], any number at once and unchecked (see `has_extent`)."""
    middle = (low + high) / 2
    if kind == "unit":
        centre = middle
    elif kind == "scene":
        centre = torch.cat([middle[..., :2], low[..., 2:]], dim=-1)
    else:
        raise ValueError(f"normalisation {kind!r} is unknown, expected 'unit' or 'scene'")
    scale = (2.0 if kind == "unit" else SCENE_Z_EXTENT) / _size(low, high, kind)
    return Frame3D(centre=centre, scale=scale, low=(low - centre) * scale[..., None])


def has_extent(low: Tensor, high: Tensor, kind: Normalisation) -> Tensor:
    """Whether boxes [...,3] can be normalised: bool [...]."""
    size = _size(low, high, kind)
    return (size > 1e-9) & torch.isfinite(size)


def no_extent(extent: Sequence[float], kind: Normalisation) -> str:
    """What is said of a cloud that cannot be normalised."""
    return f"a cloud of extent {list(extent)} cannot be normalised to {kind!r}"


def _size(low: Tensor, high: Tensor, kind: Normalisation) -> Tensor:
    extent = high - low
    return extent.amax(-1) if kind == "unit" else extent[..., 2]


def fixed_space(low_3: Tensor, centre: Sequence[float], scale: float, low: Sequence[float], step: float) -> Frame3D:
    """A normalised space that is told, not fitted: the same for every cloud, so that it stands still in the world.

    Args:
        low_3: [...,3] the least coordinates of the clouds, which only say whether the grid must begin lower.
        centre, scale: of the space, in the world's units.
        low: [3] where the grid begins, normalised.
        step: a whole number of these lower, normalised, it begins where points lie below: cells stay where they are.
    """
    begin = constant(tuple(low), low_3.device, low_3.dtype)
    middle = constant(tuple(centre), low_3.device, low_3.dtype)
    size = constant((scale,), low_3.device, low_3.dtype)[0]
    below = torch.floor(((low_3 - middle) * size - begin) / step).clamp_max(0)
    return Frame3D(centre=middle.expand_as(low_3), scale=size.expand(low_3.shape[:-1]), low=begin + below * step)


@dataclass(frozen=True, kw_only=True)
class Voxels:
    """Occupied voxels, frame after frame: `index` [V] the point that stands for each, `grid` [V,3], `inverse` [N]."""

    index: Tensor
    grid: Tensor
    inverse: Tensor


def voxelise(coord_N3: Tensor, rank_N: Tensor, *, grid: float, low: Tensor, frame_N: Tensor | None = None) -> Voxels:
    """Keep one point a voxel of side `grid`, the one of the least rank, where the published code picks at random.

    `low` [3], or [N,3] a point, is the origin of the voxel grid. Frames that share a normalised space share it, so that
    a thing that stands still falls into the same voxels, and into the same coarse cells, in every frame. With `frame_N`
    int64 [N], ascending, the points are of several frames, which share no voxels. Voxels are in lexicographic order, by
    frame first. Coordinates over 65,535 voxels are not told apart; one host synchronisation, for the number of voxels.
    """
    # float64: at 0.02 a float32 quotient rounds points on a voxel's face to either side
    cell_N3 = torch.floor((coord_N3.double() - low.double()) / grid).long().clamp_(min=0)
    x, y, z = cell_N3.clamp(max=0xFFFF).unbind(1)
    key_N = (x << 32) | (y << 16) | z
    if frame_N is not None:
        key_N = key_N | (frame_N << 48)
    by_rank = torch.argsort(rank_N)
    sorted_N, order_N = torch.sort(key_N[by_rank], stable=True)  # voxel after voxel, least rank first
    by_voxel = by_rank[order_N]
    first_N = torch.nn.functional.pad(sorted_N[1:] != sorted_N[:-1], (1, 0), value=True)
    inverse_N = torch.empty_like(by_voxel).scatter_(0, by_voxel, first_N.cumsum(0) - 1)
    index_V = by_voxel[first_N]
    return Voxels(index=index_V, grid=cell_N3[index_V], inverse=inverse_N)


def _cell_keys(cell_N3: Tensor) -> Tensor:
    """One integer a cell, in the lexicographic order of the cells: `unique` over rows costs 30 times as much."""
    cell_N3 = cell_N3 - cell_N3.amin(0)
    sides = cell_N3.amax(0) + 1
    return (cell_N3[:, 0] * sides[1] + cell_N3[:, 1]) * sides[2] + cell_N3[:, 2]


def normals_from_depth(xyz_FHW3: Tensor, extrinsic_F34: Tensor) -> Tensor:
    """Unit normals [F,H,W,3] in the world, toward the camera, from central differences of the unprojected map.

    At a depth edge the difference spans two surfaces; there and beside pixels without depth the normal is zero, which
    is what Concerto was shown for clouds without normals.
    """
    padded = torch.nn.functional.pad(xyz_FHW3.permute(0, 3, 1, 2), (1, 1, 1, 1), mode="replicate")
    right = (padded[:, :, 1:-1, 2:] - padded[:, :, 1:-1, :-2]).permute(0, 2, 3, 1)
    down = (padded[:, :, 2:, 1:-1] - padded[:, :, :-2, 1:-1]).permute(0, 2, 3, 1)
    normal = torch.linalg.cross(down, right)
    length = normal.norm(dim=-1, keepdim=True)
    rotation, translation = extrinsic_F34[:, :3, :3], extrinsic_F34[:, :3, 3]
    eye = -(rotation.transpose(1, 2) @ translation[..., None]).squeeze(-1)
    view = eye[:, None, None, :] - xyz_FHW3
    normal = torch.where((normal * view).sum(-1, keepdim=True) < 0, -normal, normal)
    distance = view.norm(dim=-1, keepdim=True)
    step = torch.maximum(right.norm(dim=-1, keepdim=True), down.norm(dim=-1, keepdim=True))
    # two pixels of a surface are about 1 % of the distance apart; a tenth of it is an edge
    good = (length > 0) & (step < 0.1 * distance) & torch.isfinite(length)
    return torch.where(good, normal / length.clamp_min(1e-20), torch.zeros_like(normal))
