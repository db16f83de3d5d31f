"""What moves in a clip, found in 3D: points that lie where another frame of the clip sees free space.

Shape legend: F frames, n kept points of a frame, H x W pixels, Q = 196 cells.
With one still camera this is the usual background subtraction (nearer than the farthest depth of the pixel); with a
moving camera it is the free-space test of space carving (Kutulakos and Seitz 2000): a point is projected into every
other frame, and if that frame's ray goes on behind it, the place was empty then, so whatever is there now has moved.
"""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from data_specs.motion import CELLS, CELLS_WIDTH, STATISTICS_WIDTH
from data_specs.shards import GRID

LEAST = 16
"""Moving points under which a frame has no statistics (all zero): so few are noise."""

_LOW = 0.2
_SLICES = ((0.02, 0.06), (0.06, 0.12))
"""Heights over the lowest moving point, normalised space, between which a heading is taken: fingers, and the palm."""

_REACH = 0.11
"""How far from the lowest points, seen from above, a slice reaches: a hand, and not the arm."""

_HEADING = STATISTICS_WIDTH - len(_SLICES)


def moving_points(
    xyz: Sequence[Tensor], depth_FHW: Tensor, intrinsic_F33: Tensor, extrinsic_F34: Tensor, *, margin: float
) -> list[Tensor]:
    """Which points of each frame move: bool [n] a frame.

    Args:
        xyz: f [n,3] world coordinates of each frame's points.
        depth_FHW: along the optical axis; 0 or non-finite where unknown, which shows nothing to be free.
        intrinsic_F33, extrinsic_F34: pixels; OpenCV camera-from-world ([F,4,4] will do).
        margin: how much farther a ray must go on behind a point, as a share of its depth: 0.025 is 2 cm at 0.8 m.
    """
    nearest_FHW = nearest_depth(depth_FHW)
    moving = []
    for frame, points in enumerate(xyz):
        through_Fn = seen_through(points, nearest_FHW, intrinsic_F33, extrinsic_F34, margin=margin)
        through_Fn[frame] = False
        moving.append(through_Fn.any(0))
    return moving


def nearest_depth(depth_FHW: Tensor) -> Tensor:
    """The nearest depth of 3x3 pixels, 0 where one is unknown: a ray that grazes an edge must not look through it."""
    known = torch.where(torch.isfinite(depth_FHW) & (depth_FHW > 0), depth_FHW, torch.zeros_like(depth_FHW))
    return -F.max_pool2d(-known[:, None].float(), 3, stride=1, padding=1)[:, 0]


def seen_through(
    xyz_n3: Tensor, nearest_FHW: Tensor, intrinsic_F33: Tensor, extrinsic_F34: Tensor, *, margin: float
) -> Tensor:
    """Which frames see free space at which points: bool [F,n]. `nearest_FHW` is of `nearest_depth`."""
    index_Fn, z_Fn, inside_Fn = place(xyz_n3, intrinsic_F33, extrinsic_F34, nearest_FHW.shape[1:])
    surface_Fn = nearest_FHW.flatten(1).gather(1, index_Fn)
    return inside_Fn & (z_Fn < surface_Fn * (1 - margin))


def place(
    xyz_n3: Tensor, intrinsic_F33: Tensor, extrinsic_F34: Tensor, size: Sequence[int]
) -> tuple[Tensor, Tensor, Tensor]:
    """Where frames of `size` (height, width) show points.

    Returns:
        index i8 [F,n]: row * width + column of the nearest pixel, clamped to the picture.
        z f [F,n]: depth along the optical axis.
        inside bool [F,n]: in front of the camera, and in the picture.
    """
    height, width = size
    rotation, translation = extrinsic_F34[:, :3, :3], extrinsic_F34[:, :3, 3]
    camera_Fn3 = xyz_n3 @ rotation.transpose(1, 2) + translation[:, None]
    z_Fn = camera_Fn3[..., 2]
    pixel_Fn3 = camera_Fn3 @ intrinsic_F33.transpose(1, 2)
    column, row = ((pixel_Fn3[..., k] / z_Fn.clamp_min(1e-6)).round() for k in (0, 1))
    inside = (z_Fn > 0) & (column >= 0) & (column < width) & (row >= 0) & (row < height)
    index = (row.clamp(0, height - 1) * width + column.clamp(0, width - 1)).long()
    return index, z_Fn, inside


def motion_cells(coord_n3: Tensor, pixel_n: Tensor, moving_n: Tensor, size: int) -> Tensor:
    """Share of each 14x14 cell's points that move, and their mean coordinate: f4 [Q,4]; 0 where there are none.

    `coord_n3` normalised coordinates, `pixel_n` row * size + column in a frame of `size` pixels a side.
    """
    cell = pixel_n // size * GRID // size * GRID + pixel_n % size * GRID // size
    points = torch.bincount(cell, minlength=CELLS)
    mine = cell[moving_n]
    count = torch.bincount(mine, minlength=CELLS)
    total = coord_n3.new_zeros(CELLS, CELLS_WIDTH - 1).index_add_(0, mine, coord_n3[moving_n])
    return torch.cat([(count / points.clamp_min(1))[:, None], total / count.clamp_min(1)[:, None]], dim=1).float()


def motion_statistics(coord_n3: Tensor, area_n: Tensor, moving_n: Tensor) -> Tensor:
    """`data_specs.motion.PARTS` of the points that move, f4 [21]; all zero for fewer than `LEAST` of them.

    A heading is in (-pi/2, pi/2], and NaN where too few points are in its slice: see `unwrap_headings`. `area_n` is the
    surface that a point stands for, up to a factor (depth squared: a pixel sees more of what is far away), so that the
    mean is that of the surface and not of the picture.
    """
    if int(moving_n.sum()) < LEAST:
        return coord_n3.new_zeros(STATISTICS_WIDTH).float()
    points, area = coord_n3[moving_n].double(), area_n[moving_n].double()
    low = points[:, 2] <= points[:, 2].quantile(_LOW)
    mean, covariance = _moments(points, area)
    low_mean, low_covariance = _moments(points[low], area[low])
    share = moving_n.double().mean()[None]
    parts = [share, mean, _spread(covariance), low_mean, _spread(low_covariance), _headings(points)]
    return torch.cat(parts).float()


def unwrap_headings(statistics_FS: Tensor) -> Tensor:
    """The statistics of a clip with headings that are continuous over its frames, f4 [F,21].

    An axis has no front: its angle is known up to half turns, which are chosen so that it turns by less than a quarter
    between frames. A frame without a heading keeps the last one (the first known, at the start), so that it does not
    turn; a clip that never has one gets 0.
    """
    out = statistics_FS.clone()
    for column in range(_HEADING, STATISTICS_WIDTH):
        known = [angle for angle in statistics_FS[:, column].tolist() if not math.isnan(angle)]
        last = known[0] if known else 0.0
        for frame, angle in enumerate(statistics_FS[:, column].tolist()):
            if not math.isnan(angle):
                last = angle + math.pi * round((last - angle) / math.pi)
            out[frame, column] = last
    return out


def _headings(points_n3: Tensor) -> Tensor:
    """Angle of the long axis of each slice in the x, y plane; NaN for fewer than 8 points."""
    lowest = points_n3[:, 2].quantile(0.02)
    tip = points_n3[points_n3[:, 2] < lowest + _SLICES[0][0]][:, :2].median(0).values
    near = torch.linalg.vector_norm(points_n3[:, :2] - tip, dim=1) < _REACH
    angles = []
    for low, high in _SLICES:
        mine = points_n3[near & (points_n3[:, 2] >= lowest + low) & (points_n3[:, 2] < lowest + high), :2]
        if len(mine) < LEAST // 2:
            angles.append(points_n3.new_tensor(torch.nan))
            continue
        xx, xy, _, yy = torch.cov(mine.T).flatten()
        angles.append(0.5 * torch.atan2(2 * xy, xx - yy))
    return torch.stack(angles)


def _moments(points_n3: Tensor, weight_n: Tensor) -> tuple[Tensor, Tensor]:
    weight_n = weight_n / weight_n.sum()
    mean = weight_n @ points_n3
    centred = points_n3 - mean
    return mean, (centred * weight_n[:, None]).T @ centred


def _spread(covariance: Tensor) -> Tensor:
    """Signed square roots of the upper triangle [6]: in the units of the coordinates, and still linear near them."""
    upper = covariance[*torch.triu_indices(3, 3)]
    return upper.sign() * upper.abs().sqrt()
