"""Frozen features, coordinates and colours on the 14x14 grid of the image: fixed targets without parameters.

Shape legend: B frames, Q = 196 cells (row * 14 + column), C channels, T tokens, M (cell, token) pairs, P points.
A cell's value is the mean over its points. It follows from the stored counts, and since nothing of it is learned it
cannot collapse.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from data_specs.batches import CameraBatch, CellBatch, PointBatch, TokenBatch
from data_specs.shards import GRID
from stages.points import unproject_pixels

CELLS = GRID * GRID


def points_of_cells(cells: CellBatch) -> Tensor:
    """How many points each cell has, f4 [B,Q]."""
    frames = len(cells.offset) - 1
    total = torch.zeros(frames * CELLS, device=cells.cell.device)
    return total.index_add_(0, cells.packed_cell(), cells.count.float()).view(frames, CELLS)


def raster_features(tokens: TokenBatch, cells: CellBatch) -> tuple[Tensor, Tensor]:
    """Mean feature f4 [B,Q,C] of the points of each cell, 0 where there are none, and how many there are f4 [B,Q]."""
    count_BQ = points_of_cells(cells)
    return _mean_of_cells(tokens.feat, tokens, cells, count_BQ), count_BQ


def raster_coords(tokens: TokenBatch, cells: CellBatch) -> Tensor:
    """Mean coordinate f4 [B,Q,3], normalised, of the tokens of each cell, weighted by their points in the cell.

    A token's coordinate is the mean of its whole 3D cell; `raster_points` is exact where points were read. 0 in
    empty cells.
    """
    return _mean_of_cells(tokens.coord, tokens, cells, points_of_cells(cells))


def raster_points(points: PointBatch, camera: CameraBatch, *, width: int = 224) -> tuple[Tensor, Tensor, Tensor]:
    """Mean coordinate f4 [B,Q,3] (normalised) and colour f4 [B,Q,3] (0 to 1) of each cell's points; count f4 [B,Q].

    The image's first pixel is left out: padding bears the same number. `width` is the side of the frames in pixels.
    """
    pixel = points.pixel.long()
    near, far = camera.range[:, :1], camera.range[:, 1:]
    depth = near + points.depth.float() / 65535 * (far - near)
    xyz = unproject_pixels(pixel, depth, camera.intrinsic, camera.extrinsic, width)
    xyz = (xyz - camera.normalisation[:, None, :3]) * camera.normalisation[:, None, 3:]
    row, column = pixel // width, pixel % width
    cell = row * GRID // width * GRID + column * GRID // width
    cell = cell + torch.arange(len(cell), device=cell.device)[:, None] * CELLS
    real = (pixel > 0)[..., None].float()
    values = torch.cat([xyz * real, points.rgb.float() / 255 * real, real], dim=-1)
    total = values.new_zeros(len(cell) * CELLS, 7).index_add_(0, cell.flatten(), values.flatten(0, 1))
    total = total.view(len(cell), CELLS, 7)
    count = total[..., 6]
    mean = total[..., :6] / count.clamp_min(1)[..., None]
    return mean[..., :3], mean[..., 3:], count


def _mean_of_cells(value_TC: Tensor, tokens: TokenBatch, cells: CellBatch, count_BQ: Tensor) -> Tensor:
    # The triplets are sorted by (frame, cell), so a cell is a bag of rows: no [M,C] array is ever made.
    cell_M = cells.packed_cell()
    start = torch.searchsorted(cell_M, torch.arange(count_BQ.numel(), device=cell_M.device))
    weight_M = cells.count.float() / count_BQ.flatten()[cell_M]
    with torch.autocast(value_TC.device.type, enabled=False):
        mean: Tensor = F.embedding_bag(
            cells.packed_token(tokens), value_TC.float(), start, mode="sum", per_sample_weights=weight_M
        )
    return mean.view(*count_BQ.shape, -1)
