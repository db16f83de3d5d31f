"""Submanifold sparse 3x3x3 convolution: a neighbour table a stage, shared by the stage's blocks.

out[p] = bias + sum over k of W[k] x[p + k - 1] over the voxels that exist (Graham et al., "3D semantic segmentation
with submanifold sparse convolutional networks", CVPR 2018), as `conv3d` with padding 1 would give on the dense grid.
"""

import importlib.util
from typing import Literal, Protocol, cast, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

SparseChoice = Literal["builtin", "spconv", "auto"]
SparseBackend = Literal["builtin", "spconv"]

_KERNEL = 27
_CENTRE = _KERNEL // 2

_GATHERED = 1 << 29
"""Numbers that a `GatherTable` gathers at a time: 1 GB in half precision."""


class Neighbours(Protocol):
    """The voxels of one level as a convolution sees them."""

    def convolve(self, feat_NC: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        """[N,C] -> [N,D] with `weight` [D,3,3,3,C] and `bias` [D]."""
        ...


def voxel_keys(cloud_N: Tensor, grid_N3: Tensor) -> Tensor:
    """One int64 a voxel whose order is lexicographic by (cloud, x, y, z); coordinates in [0, 65535)."""
    x, y, z = grid_N3.unbind(1)
    return (cloud_N << 48) | (x << 32) | (y << 16) | z


class GatherTable:
    """The rows of all 27 neighbours of each voxel: one gather and one matrix product a convolution, for a GPU.

    Two thirds of the neighbours of a surface's voxels are missing and are multiplied as zeros: on a GPU that is cheaper
    than some 80 small kernels, and the sum over the offsets has one order. No host synchronisation.
    """

    def __init__(self, key_N: Tensor) -> None:
        """`key_N`: `voxel_keys` of the level, ascending and distinct."""
        axis = torch.arange(-1, 2, device=key_N.device)
        steps_K = ((axis << 32)[:, None, None] + (axis << 16)[:, None] + axis).flatten()
        wanted_NK = key_N[:, None] + steps_K  # see `NeighbourTable` on steps over the border
        position_NK = torch.searchsorted(key_N, wanted_NK).clamp_(max=len(key_N) - 1)
        # a row of zeros comes after the last
        self.rows_NK = torch.where(key_N[position_NK] == wanted_NK, position_NK, len(key_N))

    def convolve(self, feat_NC: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        """[N,C] -> [N,D], a few rows at a time where all would take too much memory."""
        device = feat_NC.device.type
        if torch.is_autocast_enabled(device):
            half = torch.get_autocast_dtype(device)
            feat_NC, weight, bias = feat_NC.to(half), weight.to(half), bias.to(half)
        padded = F.pad(feat_NC, (0, 0, 0, 1))
        kernel_DE = weight.flatten(1)  # offsets, then channels: as the gathered rows are
        step = max(1, _GATHERED // kernel_DE.shape[1])
        parts = [F.linear(padded[rows].flatten(1), kernel_DE, bias) for rows in torch.split(self.rows_NK, step, dim=0)]
        return parts[0] if len(parts) == 1 else torch.cat(parts)


class NeighbourTable:
    """Pairs (output row, input row) for each offset of the 3x3x3 kernel, in plain PyTorch.

    The table holds the pairs of 13 of the 26 offsets; those of the opposite offset are the same pairs read backwards.
    One host synchronisation, for the numbers of pairs.
    """

    def __init__(self, key_N: Tensor) -> None:
        """`key_N`: `voxel_keys` of the level, ascending and distinct."""
        # Adding an offset to a key moves to the neighbour's key. A step out of [0, 65535) lands on coordinate 65535 of
        # another row or cloud, where no voxel is.
        steps = [((i // 9 - 1) << 32) + ((i // 3 % 3 - 1) << 16) + (i % 3 - 1) for i in range(_CENTRE)]
        wanted = key_N + torch.tensor(steps, device=key_N.device)[:, None]
        position = torch.searchsorted(key_N, wanted).clamp_(max=len(key_N) - 1)
        found = key_N[position] == wanted
        counts: list[int] = found.sum(1).tolist()
        pairs = torch.nonzero_static(found, size=sum(counts))
        out_rows = pairs[:, 1]
        in_rows = position[pairs[:, 0], out_rows]
        self.out_rows = torch.split(out_rows, counts)
        self.in_rows = torch.split(in_rows, counts)

    def convolve(self, feat_NC: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        """[N,C] -> [N,D]: gather, multiply and add for each offset, over existing pairs only.

        Within one offset every output row occurs once, so the sums have one order on every device.
        """
        device = feat_NC.device.type
        if torch.is_autocast_enabled(device):
            # Cast once, not once an offset. The sum over offsets stays in float32.
            half = torch.get_autocast_dtype(device)
            feat_NC, weight, bias = feat_NC.to(half), weight.to(half), bias.to(torch.float32)
        kernel_KCD = weight.flatten(1, 3).permute(1, 2, 0)  # a view: the GEMM takes the strides
        out_ND = bias + feat_NC @ kernel_KCD[_CENTRE]
        for k, (rows, others) in enumerate(zip(self.out_rows, self.in_rows, strict=True)):
            if len(rows):
                out_ND.index_add_(0, rows, (feat_NC[others] @ kernel_KCD[k]).to(out_ND.dtype))
                mirrored = feat_NC[rows] @ kernel_KCD[_KERNEL - 1 - k]
                out_ND.index_add_(0, others, mirrored.to(out_ND.dtype))
        return out_ND


class SubmanifoldConv3d(nn.Module):
    """3x3x3 convolution on existing voxels; parameters named and shaped as spconv does: [C,3,3,3,C] and [C]."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(channels, 3, 3, 3, channels))
        self.bias = nn.Parameter(torch.zeros(channels))
        nn.init.trunc_normal_(self.weight, std=0.02)

    def forward(self, feat_NC: Tensor, neighbours: Neighbours) -> Tensor:
        """[N,C] -> [N,C]."""
        return neighbours.convolve(feat_NC, self.weight, self.bias)


def check_sparse_choice(choice: str) -> SparseChoice:
    """The choice itself; ValueError with the choices if it is none, ImportError with the remedy if it is missing."""
    if choice not in get_args(SparseChoice):
        raise ValueError(f"sparse is {choice!r}; the choices are {', '.join(get_args(SparseChoice))}")
    if choice == "spconv" and not spconv_installed():
        raise ImportError(
            "sparse='spconv' was asked for and spconv is not installed: pip install 'concerto-laq[cuda]', "
            "or use sparse='builtin'"
        )
    return cast(SparseChoice, choice)


def resolve_sparse(choice: SparseChoice, device: torch.device) -> SparseBackend:
    """What `choice` means on `device`: "auto" is spconv on CUDA where it has CUDA kernels, else the built-in.

    Raises:
        ValueError: "spconv" for tensors that are not on CUDA; its CPU kernels give wrong sums now and then.

    """
    if choice == "auto":
        return "spconv" if device.type == "cuda" and spconv_installed() and _spconv_has_cuda() else "builtin"
    if choice == "spconv" and device.type != "cuda":
        raise ValueError(
            f"sparse='spconv' is for CUDA, and the tensors are on {device}: spconv's CPU kernels race and give wrong "
            "sums; use sparse='auto' or sparse='builtin'"
        )
    return choice


def spconv_installed() -> bool:
    """Whether spconv can be imported, without importing it."""
    return importlib.util.find_spec("spconv") is not None


def _spconv_has_cuda() -> bool:
    # The package `spconv` is a CPU build under the same import name as `spconv-cu121`.
    from spconv.cppconstants import CPU_ONLY_BUILD

    return not CPU_ONLY_BUILD
