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

Sampling = Literal["random", "random_per_frame", "fps", "voxel"]
Normalisation = Literal["unit", "scene"]

SCENE_Z_EXTENT = 3.0
"""Metres-like height that Concerto's own video demo scales a lifted scene to."""


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
    up_from_camera = extrinsic.new_tensor([[1.0, 0.0, 0.0], [0.0, 0.0, 1.0], [0.0, -1.0, 0.0]])
    return torch.cat([extrinsic[..., :3, :3] @ up_from_camera.T, extrinsic[..., :3, 3:]], dim=-1)


def priorities(seed: int, key: str, count: int, frame: int | None = None) -> Tensor:
    """A random rank for each of `count` pixels, int64 [count], a permutation drawn from (seed, key, frame) alone."""
    digest = hashlib.sha256(f"{seed}/{key}/{'' if frame is None else frame}".encode()).digest()
    generator = np.random.Generator(np.random.Philox(key=int.from_bytes(digest[:16], "little")))
    return torch.from_numpy(generator.permutation(count))


def subsample(
    valid_FQ: Tensor,
    xyz_FQ3: Tensor,
    *,
    count: int,
    sampling: Sampling,
    seed: int,
    key: str,
    voxel: float | None = None,
) -> list[Tensor]:
    """Choose at most `count` valid pixels of each frame; int64 [P_f] sorted pixel indices a frame.

    `random` draws one priority a pixel for the whole clip, so that what stands still keeps its points from frame to
    frame; `random_per_frame` draws anew for each. `fps` is farthest point sampling (Eldar et al. 1997) from the valid
    pixel of the first priority. `voxel` takes one point of every occupied voxel of side `voxel` before it takes a
    second of any, priorities breaking ties. The result depends on (seed, key) and the frame only.
    """
    frames, pixels = valid_FQ.shape
    shared = priorities(seed, key, pixels).to(valid_FQ.device)
    chosen = []
    for i in range(frames):
        rank = priorities(seed, key, pixels, frame=i).to(shared.device) if sampling == "random_per_frame" else shared
        candidates = torch.nonzero(valid_FQ[i]).squeeze(1)
        candidates = candidates[torch.argsort(rank[candidates])]  # in order of priority
        if len(candidates) > count:
            if sampling == "fps":
                candidates = _farthest(candidates, xyz_FQ3[i], count)
            elif sampling == "voxel":
                assert voxel is not None, "voxel sampling needs the voxel's side"
                candidates = candidates[_voxel_order(xyz_FQ3[i, candidates], voxel)][:count]
            else:
                candidates = candidates[:count]
        chosen.append(torch.sort(candidates).values)
    return chosen


def _farthest(candidates: Tensor, xyz_Q3: Tensor, count: int) -> Tensor:
    cloud = xyz_Q3[candidates].double().cpu().numpy()
    picked = fpsample.bucket_fps_kdline_sampling(cloud, count, h=7, start_idx=0)
    return candidates[torch.from_numpy(picked.astype(np.int64)).to(candidates.device)]


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
    """A normalised space: normalised = (xyz - centre) * scale. `low` [3] is where its voxel grid begins, normalised."""

    centre: Tensor
    scale: Tensor
    low: Tensor

    def apply(self, xyz: Tensor) -> Tensor:
        """Normalised coordinates of world points [..., 3]."""
        return (xyz - self.centre) * self.scale

    def as_row(self) -> Tensor:
        """Centre and scale as stored: [4]."""
        return torch.cat([self.centre, self.scale.reshape(1)])


def fit_normalisation(xyz_N3: Tensor, kind: Normalisation) -> Frame3D:
    """The normalised space of a cloud, or of all the clouds of a clip together.

    `unit` maps the bounding box into [-1, 1] with one scale; `scene` puts x and y to the middle and z to the minimum
    (Concerto's centre shift) and scales to a z-extent of 3 (Concerto's video demo). Raises ValueError when the cloud
    has no extent, which no scale can mend.
    """
    low, high = xyz_N3.amin(0), xyz_N3.amax(0)
    extent = high - low
    middle = (low + high) / 2
    if kind == "unit":
        centre, size, target = middle, extent.amax(), 2.0
    elif kind == "scene":
        centre, size, target = torch.cat([middle[:2], low[2:]]), extent[2], SCENE_Z_EXTENT
    else:
        raise ValueError(f"normalisation {kind!r} is unknown, expected 'unit' or 'scene'")
    if not bool(size > 1e-9) or not bool(torch.isfinite(size)):
        raise ValueError(f"a cloud of extent {extent.tolist()} cannot be normalised to {kind!r}")
    scale = target / size
    return Frame3D(centre=centre, scale=scale, low=(low - centre) * scale)


def fixed_space(xyz_N3: Tensor, centre: Sequence[float], scale: float, low: Sequence[float], step: float) -> Frame3D:
    """A normalised space that is told, not fitted: the same for every cloud, so that it stands still in the world.

    Args:
        xyz_N3: the cloud, which only says whether the grid must begin lower.
        centre, scale: of the space, in the world's units.
        low: [3] where the grid begins, normalised.
        step: a whole number of these lower, normalised, it begins where points lie below: cells stay where they are.
    """
    begin = xyz_N3.new_tensor(low)
    middle = xyz_N3.new_tensor(centre)
    size = xyz_N3.new_tensor(scale)
    below = torch.floor(((xyz_N3.amin(0) - middle) * size - begin) / step).clamp_max(0)
    return Frame3D(centre=middle, scale=size, low=begin + below * step)


@dataclass(frozen=True, kw_only=True)
class Voxels:
    """Occupied voxels of one cloud: `index` [V] the point that stands for each, `grid` [V,3], `inverse` [N]."""

    index: Tensor
    grid: Tensor
    inverse: Tensor


def voxelise(coord_N3: Tensor, rank_N: Tensor, *, grid: float, low: Tensor) -> Voxels:
    """Keep one point a voxel of side `grid`, the one of the least rank, where the published code picks at random.

    `low` is the origin of the voxel grid. Frames that share a normalised space share it, so that a thing that stands
    still falls into the same voxels, and into the same coarse cells, in every frame. Voxels are in lexicographic order.
    """
    # float64: at 0.02 a float32 quotient rounds points on a voxel's face to either side
    cell_N3 = torch.floor((coord_N3.double() - low.double()) / grid).long().clamp_(min=0)
    _, inverse_N, count_V = torch.unique(_cell_keys(cell_N3), return_inverse=True, return_counts=True)
    by_rank = torch.argsort(rank_N)
    by_voxel = by_rank[torch.argsort(inverse_N[by_rank], stable=True)]  # voxel after voxel, least rank first
    index_V = by_voxel[torch.cumsum(count_V, 0) - count_V]
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
