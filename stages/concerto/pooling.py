"""The largest value of each channel over the voxels of a cell: built in, or by torch-scatter."""

import importlib.util

import torch
from torch import Tensor

# A maximum does not depend on the order of its terms: both ways give the same bytes on every device.


def pool_max(feat_NC: Tensor, cell_N: Tensor, cells: int, *, torch_scatter: bool) -> Tensor:
    """[N,C] -> [M,C] with `cell_N` int64 [N], the cell of each voxel; every one of the M `cells` has a voxel."""
    if torch_scatter:
        return _by_torch_scatter(feat_NC, cell_N, cells)
    pooled_MC = feat_NC.new_full((cells, feat_NC.shape[1]), -torch.inf)
    return pooled_MC.scatter_reduce(0, cell_N[:, None].expand_as(feat_NC), feat_NC, "amax")


def torch_scatter_installed() -> bool:
    """Whether torch-scatter can be imported, without importing it."""
    return importlib.util.find_spec("torch_scatter") is not None


def _by_torch_scatter(feat_NC: Tensor, cell_N: Tensor, cells: int) -> Tensor:
    from torch_scatter import scatter

    pooled_MC: Tensor = scatter(feat_NC, cell_N, dim=0, dim_size=cells, reduce="max")
    return pooled_MC
