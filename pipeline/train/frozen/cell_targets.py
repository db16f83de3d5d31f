"""What a coarse token of Concerto tiny is asked to know: statistics of the points in its cell, and of all that moves.

All are plain averages of points or sums over them, so that the difference of two frames' features tells by a linear
map how much of what went where. Nothing here comes from actions or from segmentation.

Shape legend
    P  points of a cloud    M  coarse cells that hold some    D = sum of CELL_VALUES
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from stages.concerto.sparse import voxel_keys

CELL_STEPS = 16
"""Grid steps of a coarse cell: PTv3 pools four times by two."""
_SIDE = 4
"""Parts of a cell's side for its occupancy."""

CELL_VALUES = {
    "place": 6,  # mean and spread of the points within the cell
    "colour": 6,  # mean and mean square
    "coordinate": 3,
    "moving": 8,  # share of points that move, their coordinates times that; the same of the part around the contact
    "moving_place": 6,  # the same coordinates within the cell
    "edges": 4,  # brightness steps to each side
    "points": 1,  # log of their number
    "occupancy": _SIDE**3,  # log of 1 + their number, in each part of the cell
}
SCENE_VALUES = 19
"""Centre, contact, middle (3 each), covariance (6), heading (2), shares (2) of what moves."""


@dataclass(frozen=True, kw_only=True)
class CellTargets:
    """`grid` i8 [M,3] in lexicographic order, `values` f4 [M,D], `count` f4 [M] points."""

    grid: Tensor
    values: Tensor
    count: Tensor


def value_slice(name: str) -> slice:
    """Where values of that name are among the D."""
    start = 0
    for other, width in CELL_VALUES.items():
        if other == name:
            return slice(start, start + width)
        start += width
    raise KeyError(name)


def cell_targets(
    *, coord: Tensor, grid: Tensor, within: Tensor, color: Tensor, edges: Tensor, moving: Tensor, part: Tensor
) -> CellTargets:
    """Average and count the points of every cell.

    Args:
        coord: f4 [P,3] normalised. grid: i8 [P,3], grid steps. within: f4 [P,3], place in the cell from -1 to 1.
        color: f4 [P,3] in [0,1]. edges: f4 [P,4]. moving, part: bool [P].
    """
    cell_P3 = torch.div(grid, CELL_STEPS, rounding_mode="floor")
    _, row_P = torch.unique(voxel_keys(torch.zeros_like(cell_P3[:, 0]), cell_P3), return_inverse=True)
    cells = int(row_P.max()) + 1
    move_P1, part_P1 = moving.float()[:, None], part.float()[:, None]
    places = [within, within**2, color, color**2, coord]
    moves = [move_P1, move_P1 * coord, part_P1, part_P1 * coord, move_P1 * within, part_P1 * within]
    values_PD = torch.cat([*places, *moves, edges], dim=1)
    count_M = torch.bincount(row_P, minlength=cells).float()
    mean_MD = values_PD.new_zeros(cells, values_PD.shape[1]).index_add_(0, row_P, values_PD) / count_M[:, None]
    for first in (0, 6):  # mean squares to deviations, of place and of colour
        mean, square = mean_MD[:, first : first + 3], mean_MD[:, first + 3 : first + 6]
        mean_MD[:, first + 3 : first + 6] = (square - mean**2).clamp_min(0).sqrt()
    x, y, z = ((within + 1) * (_SIDE / 2)).long().clamp(0, _SIDE - 1).unbind(1)
    part_of_cell = row_P * _SIDE**3 + (x * _SIDE + y) * _SIDE + z
    occupancy = torch.bincount(part_of_cell, minlength=cells * _SIDE**3).view(cells, -1).float()
    first_of_cell = torch.empty(cells, dtype=torch.long).scatter_(0, row_P, torch.arange(len(row_P)))
    return CellTargets(
        grid=cell_P3[first_of_cell],
        values=torch.cat([mean_MD, count_M.log()[:, None], torch.log1p(occupancy)], dim=1),
        count=count_M,
    )
