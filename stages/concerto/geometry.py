"""Where the voxels of one level are: their orders, attention patches, neighbours and coarser cells.

Rows are sorted lexicographically by (cloud, x, y, z) at every level, so nothing depends on the order of the input.
N voxels of a level; M cells of the next; B clouds; O serialization orders in use.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from stages.concerto.attention import Patches
from stages.concerto.serialization import MAX_COORDINATE, bit_depth, encode
from stages.concerto.sparse import GatherTable, Neighbours, NeighbourTable, SparseBackend, voxel_keys


@dataclass(frozen=True, kw_only=True, eq=False)
class Geometry:
    """One level.

    Attributes:
        coord: float [N,3]. grid_coord: int64 [N,3]. cloud: int64 [N], the cloud of each voxel.
        key: int64 [N], `voxel_keys`, ascending.
        lengths: voxels of each cloud. max_coordinate: largest grid coordinate of each cloud. Both are on the host.
        order: int64 [O,N], rows along each curve. inverse: int64 [O,N], where each row is on the curve.
        neighbours: the convolution's table. patches: what attends to what, in serialized order.
        offset: int64 [B], cumulative voxel counts, on the device.
    """

    coord: Tensor
    grid_coord: Tensor
    cloud: Tensor
    key: Tensor
    lengths: tuple[int, ...]
    max_coordinate: tuple[int, ...]
    order: Tensor
    inverse: Tensor
    neighbours: Neighbours
    patches: Patches
    offset: Tensor


def build_geometry(
    *,
    coord: Tensor,
    grid_coord: Tensor,
    cloud: Tensor,
    key: Tensor,
    lengths: tuple[int, ...],
    max_coordinate: tuple[int, ...],
    orders: tuple[str, ...],
    patch_size: int,
    backend: SparseBackend,
) -> Geometry:
    """Serialize a level and find its neighbours. Rows come in the order of `key`, ascending."""
    depths = [bit_depth(largest) for largest in max_coordinate]
    depth_N = torch.tensor(depths, device=key.device)[cloud]
    codes = torch.stack([encode(grid_coord, depth_N, order, max(depths)) for order in orders])
    # The depth is each cloud's own: the Hilbert code depends on it, and must not depend on the other clouds.
    order = torch.argsort(codes | (cloud << 48), dim=1)
    rows = torch.arange(len(key), device=key.device).expand_as(order)
    neighbours: Neighbours
    if backend == "spconv":
        from stages.concerto.spconv_backend import SpconvNeighbours

        neighbours = SpconvNeighbours(grid_coord, cloud, len(lengths), max(max_coordinate))
    elif key.device.type == "cuda":
        neighbours = GatherTable(key)
    else:
        neighbours = NeighbourTable(key)
    return Geometry(
        coord=coord,
        grid_coord=grid_coord,
        cloud=cloud,
        key=key,
        lengths=lengths,
        max_coordinate=max_coordinate,
        order=order,
        inverse=torch.empty_like(order).scatter_(1, order, rows),
        neighbours=neighbours,
        patches=Patches(lengths, patch_size, key.device),
        offset=torch.tensor(lengths, device=key.device).cumsum(0),
    )


@dataclass(frozen=True, kw_only=True, eq=False)
class Cells:
    """The next level's voxels before they are serialized; `inverse` int64 [N] is the cell of each voxel."""

    coord: Tensor
    grid_coord: Tensor
    cloud: Tensor
    key: Tensor
    lengths: tuple[int, ...]
    max_coordinate: tuple[int, ...]
    inverse: Tensor


def pool_cells(fine: Geometry, stride: int) -> Cells:
    """Cells of `stride` grid steps with the mean coordinate of their voxels. Two host synchronisations, for sizes."""
    cell_key_N = voxel_keys(fine.cloud, fine.grid_coord // stride)
    sorted_N, rows_N = torch.sort(cell_key_N, stable=True)
    key_M, run_N, count_M = torch.unique_consecutive(sorted_N, return_inverse=True, return_counts=True)
    cloud_M = key_M >> 48
    lengths: list[int] = torch.bincount(cloud_M, minlength=len(fine.lengths)).tolist()
    # A segmented mean has one order of summation; a scattered one has not on CUDA.
    coord_M3 = torch.segment_reduce(fine.coord[rows_N], "mean", lengths=count_M, axis=0, unsafe=True)
    return Cells(
        coord=coord_M3,
        grid_coord=torch.stack([(key_M >> shift) & 0xFFFF for shift in (32, 16, 0)], dim=1),
        cloud=cloud_M,
        key=key_M,
        lengths=tuple(lengths),
        max_coordinate=tuple(largest // stride for largest in fine.max_coordinate),
        inverse=torch.empty_like(run_N).scatter_(0, rows_N, run_N),
    )


@dataclass(frozen=True, kw_only=True, eq=False)
class SortedCloud:
    """A checked batch in canonical order: `rows` int64 [N] says which input row each sorted row is."""

    coord: Tensor
    grid_coord: Tensor
    cloud: Tensor
    key: Tensor
    lengths: tuple[int, ...]
    max_coordinate: tuple[int, ...]
    rows: Tensor


def sort_cloud(cloud: Mapping[str, Tensor]) -> SortedCloud:
    """Check `coord`, `grid_coord` and `offset` and sort the voxels. One host synchronisation, for the checks.

    Raises:
        ValueError: wrong shapes or dtypes, offsets that are not cumulative ends, an empty cloud, coordinates outside
            [0, 65534], or two points in one voxel.

    """
    coord, grid, offset = cloud["coord"], cloud["grid_coord"], cloud["offset"]
    points = len(coord)
    for name, array in (("coord", coord), ("grid_coord", grid)):
        if array.shape != (points, 3):
            raise ValueError(f"{name} has shape {tuple(array.shape)}, expected [{points}, 3]")
    for name, array in (("grid_coord", grid), ("offset", offset)):
        if array.is_floating_point() or array.is_complex() or array.dtype == torch.bool:
            raise ValueError(f"{name} has dtype {array.dtype}, expected integers")
    if offset.ndim != 1 or not len(offset) or not points:
        raise ValueError(f"a batch needs at least one point and one offset, got {points} and {tuple(offset.shape)}")
    ends = offset.to(device=coord.device, dtype=torch.int64)
    grid = grid.to(torch.int64)
    # Found from the ends, wrong ends included (they would fall into the spare last slot), so that all checks can be
    # read back at once.
    cloud_N = torch.searchsorted(ends, torch.arange(points, device=ends.device), right=True)
    key_N, rows_N = torch.sort(voxel_keys(cloud_N, grid))
    largest = torch.zeros(len(ends) + 1, dtype=torch.int64, device=ends.device)
    largest.scatter_reduce_(0, cloud_N, grid.amax(1), "amax", include_self=False)
    repeated = (key_N[1:] == key_N[:-1]).sum()
    facts = torch.cat([ends, largest[:-1], grid.min().view(1), grid.max().view(1), repeated.view(1)]).tolist()
    clouds = len(ends)
    ends_host, largest_host = facts[:clouds], facts[clouds : 2 * clouds]
    lowest, highest, duplicates = facts[2 * clouds :]
    lengths = tuple(end - start for start, end in zip([0, *ends_host[:-1]], ends_host, strict=True))
    if min(lengths) < 1 or ends_host[-1] != points:
        raise ValueError(
            f"offset is {ends_host}, expected the cumulative ends of the clouds: increasing, without the leading 0, "
            f"the last one {points}"
        )
    if lowest < 0 or highest > MAX_COORDINATE:
        raise ValueError(
            f"grid_coord lies in [{lowest}, {highest}], expected [0, {MAX_COORDINATE}]: subtract the minimum, "
            "or use a coarser grid"
        )
    if duplicates:
        raise ValueError(f"{duplicates} points share a voxel with another one: keep one point a voxel of grid_coord")
    return SortedCloud(
        coord=coord[rows_N],
        grid_coord=grid[rows_N],
        cloud=cloud_N[rows_N],
        key=key_N,
        lengths=lengths,
        max_coordinate=tuple(largest_host),
        rows=rows_N,
    )
