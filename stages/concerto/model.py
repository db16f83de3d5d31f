"""The Point Transformer V3 encoder of Concerto (Wu et al., CVPR 2024; Zhang et al., NeurIPS 2025).

Shapes: N voxels of a level, M of the next coarser one, C channels, H heads, D channels of a head, P patches, K points
of a patch. Parameter names are those of the published checkpoints.
"""

from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stages.concerto.config import ConcertoConfig
from stages.concerto.geometry import Cells, Geometry, SortedCloud, build_geometry, pool_cells, sort_cloud
from stages.concerto.pooling import pool_max, torch_scatter_installed
from stages.concerto.sparse import (
    SparseBackend,
    SparseChoice,
    SubmanifoldConv3d,
    check_sparse_choice,
    resolve_sparse,
)


@dataclass(frozen=True, kw_only=True, eq=False)
class Level:
    """What one stage gives.

    Attributes:
        feat: [N,C]. coord: [N,3]. grid_coord: int64 [N,3]. offset: int64 [B], cumulative counts.
        inverse: int64, the row here of every row one level finer; for the first level, of every input point.
    """

    feat: Tensor
    coord: Tensor
    grid_coord: Tensor
    inverse: Tensor
    offset: Tensor


@dataclass(frozen=True, kw_only=True, eq=False)
class Plan:
    """Where everything of a batch is at every level, before any feature is computed: sizes, orders, neighbours.

    Attributes:
        levels: finest first. rows: int64 [N], which input row each voxel of the first level is.
        inverse: for each level the row there of every row one level finer; for the first, of every input point.
    """

    levels: tuple[Geometry, ...]
    rows: Tensor
    inverse: tuple[Tensor, ...]


class PatchAttention(nn.Module):
    """Multi-head attention within patches of the serialized cloud (PTv3, section 4.2)."""

    def __init__(self, channels: int, heads: int, qkv_bias: bool, scale: float | None) -> None:
        super().__init__()
        self.heads = heads
        self.scale = (channels // heads) ** -0.5 if scale is None else scale
        self.qkv = nn.Linear(channels, channels * 3, bias=qkv_bias)
        self.proj = nn.Linear(channels, channels)

    def forward(self, feat_NC: Tensor, geometry: Geometry, order_index: int) -> Tensor:
        """[N,C] -> [N,C], attending along order `order_index`."""
        qkv_N3HD = self.qkv(feat_NC[geometry.order[order_index]]).unflatten(1, (3, self.heads, -1))
        q_NHD, k_NHD, v_NHD = qkv_N3HD.unbind(1)
        out_NHD = geometry.patches.attend(q_NHD, k_NHD, v_NHD, self.scale)
        out_NC: Tensor = self.proj(out_NHD.flatten(1))
        return out_NC[geometry.inverse[order_index]]


class MLP(nn.Module):
    """Two linear layers with a GELU between them."""

    def __init__(self, channels: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(channels, hidden)
        self.fc2 = nn.Linear(hidden, channels)

    def forward(self, feat_NC: Tensor) -> Tensor:
        """[N,C] -> [N,C]."""
        out_NC: Tensor = self.fc2(F.gelu(self.fc1(feat_NC)))
        return out_NC


class LayerScale(nn.Module):
    """A learnt factor a channel."""

    def __init__(self, channels: int, initial: float) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.full((channels,), initial))

    def forward(self, feat_NC: Tensor) -> Tensor:
        """[N,C] -> [N,C]."""
        return feat_NC * self.gamma


class Block(nn.Module):
    """Positional convolution (xCPE), patch attention, feed-forward; each with a shortcut (PTv3, figure 4)."""

    def __init__(self, config: ConcertoConfig, stage: int, order_index: int) -> None:
        super().__init__()
        channels = config.enc_channels[stage]
        scale = config.layer_scale
        self.pre_norm = config.pre_norm
        self.order_index = order_index
        self.cpe = nn.ModuleList([SubmanifoldConv3d(channels), nn.Linear(channels, channels), nn.LayerNorm(channels)])
        self.norm1 = nn.Sequential(nn.LayerNorm(channels))
        self.ls1 = nn.Sequential(nn.Identity() if scale is None else LayerScale(channels, scale))
        self.attn = PatchAttention(
            channels,
            config.enc_num_head[stage],
            config.qkv_bias,
            config.qk_scale,
        )
        self.norm2 = nn.Sequential(nn.LayerNorm(channels))
        self.ls2 = nn.Sequential(nn.Identity() if scale is None else LayerScale(channels, scale))
        self.mlp = nn.Sequential(MLP(channels, int(channels * config.mlp_ratio)))

    def forward(self, feat_NC: Tensor, geometry: Geometry) -> Tensor:
        """[N,C] -> [N,C]."""
        conv, linear, norm = self.cpe
        feat_NC = feat_NC + norm(linear(conv(feat_NC, geometry.neighbours)))
        out_NC: Tensor
        if self.pre_norm:
            feat_NC = feat_NC + self.ls1(self.attn(self.norm1(feat_NC), geometry, self.order_index))
            out_NC = feat_NC + self.ls2(self.mlp(self.norm2(feat_NC)))
        else:
            feat_NC = self.norm1(feat_NC + self.ls1(self.attn(feat_NC, geometry, self.order_index)))
            out_NC = self.norm2(feat_NC + self.ls2(self.mlp(feat_NC)))
        return out_NC


class GridPooling(nn.Module):
    """A projection, then the largest value of each channel over a cell's voxels, then norm and GELU."""

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.stride = stride
        self.proj = nn.Linear(in_channels, out_channels)
        self.norm = nn.Sequential(nn.LayerNorm(out_channels))

    def forward(self, feat_NC: Tensor, cell_N: Tensor, cells: int, *, torch_scatter: bool = False) -> Tensor:
        """[N,C] -> [M,C'] with `cell_N` int64 [N], the cell of each voxel."""
        return F.gelu(self.norm(pool_max(self.proj(feat_NC), cell_N, cells, torch_scatter=torch_scatter)))


class Stage(nn.Module):
    """`down` (but in the first stage), then `block0`, `block1`, ..."""

    def __init__(self, config: ConcertoConfig, stage: int) -> None:
        super().__init__()
        self.depth = config.enc_depths[stage]
        # Only the orders that some block of this stage reads are computed.
        self.orders = config.order[: self.depth]
        self.patch_size = config.enc_patch_size[stage]
        self.down: GridPooling | None = None
        if stage:
            self.down = GridPooling(
                config.enc_channels[stage - 1], config.enc_channels[stage], config.stride[stage - 1]
            )
        for i in range(self.depth):
            self.add_module(f"block{i}", Block(config, stage, i % len(config.order)))

    def forward(self, feat_NC: Tensor, geometry: Geometry) -> Tensor:
        """The blocks: [N,C] -> [N,C]."""
        for i in range(self.depth):
            feat_NC = self.get_submodule(f"block{i}")(feat_NC, geometry)
        return feat_NC


class Embedding(nn.Module):
    """The first linear layer, and the mask token of pre-training, which is loaded and never used."""

    def __init__(self, in_channels: int, channels: int, mask_token: bool) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            OrderedDict(linear=nn.Linear(in_channels, channels), norm=nn.LayerNorm(channels), act=nn.GELU())
        )
        self.mask_token = nn.Parameter(torch.zeros(1, channels)) if mask_token else None

    def forward(self, feat_NC: Tensor) -> Tensor:
        """[N,in] -> [N,C]."""
        out_NC: Tensor = self.stem(feat_NC)
        return out_NC


class PointTransformerV3(nn.Module):
    """Features of a batch of voxelised point clouds at every level.

    A cloud gives the same numbers alone and in any batch, and whatever the order of its points: bit depths, patches and
    convolutions are each cloud's own, and rows are sorted first. Serialization orders are never shuffled.

    `plan` finds out sizes, so that the host must wait on CUDA: once to check the input, twice a pooling, and a few
    times to send small tables. `encode` waits for nothing (built-in convolutions; spconv has synchronisations of its
    own).
    """

    def __init__(self, config: ConcertoConfig, sparse: SparseChoice = "builtin") -> None:
        super().__init__()
        self.config = config
        self.sparse: SparseChoice = sparse
        self.embedding = Embedding(config.in_channels, config.enc_channels[0], config.mask_token)
        self.enc = nn.Sequential(OrderedDict((f"enc{i}", Stage(config, i)) for i in range(len(config.enc_depths))))
        self.apply(_published_init)

    @property
    def sparse_backend(self) -> SparseBackend:
        """What `sparse` comes to on the device that holds the parameters: "builtin" or "spconv"."""
        return resolve_sparse(self.sparse, next(self.parameters()).device)

    def levels(self, cloud: Mapping[str, Tensor]) -> list[Level]:
        """Every stage's features, finest first; the first level has the input's voxels, sorted.

        Args and errors as in `forward`.
        """
        missing = [name for name in ("coord", "grid_coord", "feat", "offset") if name not in cloud]
        if missing:
            raise ValueError(f"the cloud lacks {', '.join(missing)}; it needs coord, grid_coord, feat and offset")
        self._check_feat(cloud["feat"], len(cloud["coord"]))
        plan = self.plan(coord=cloud["coord"], grid_coord=cloud["grid_coord"], offset=cloud["offset"])
        return self.encode(plan, cloud["feat"])

    def plan(self, *, coord: Tensor, grid_coord: Tensor, offset: Tensor) -> Plan:
        """Everything about a batch that does not depend on its features; arguments and errors as in `forward`."""
        backend = resolve_sparse(self.sparse, coord.device)
        start = sort_cloud({"coord": coord, "grid_coord": grid_coord, "offset": offset})
        inverse = torch.empty_like(start.rows)
        inverse[start.rows] = torch.arange(len(inverse), device=inverse.device)
        levels: list[Geometry] = []
        inverses = [inverse]
        for stage in self._stages():
            found: SortedCloud | Cells = start
            if stage.down is not None:
                found = pool_cells(levels[-1], stage.down.stride)
                inverses.append(found.inverse)
            levels.append(
                build_geometry(
                    coord=found.coord,
                    grid_coord=found.grid_coord,
                    cloud=found.cloud,
                    key=found.key,
                    lengths=found.lengths,
                    max_coordinate=found.max_coordinate,
                    orders=stage.orders,
                    patch_size=stage.patch_size,
                    backend=backend,
                )
            )
        return Plan(levels=tuple(levels), rows=start.rows, inverse=tuple(inverses))

    def encode(self, plan: Plan, feat: Tensor) -> list[Level]:
        """Every stage's features of a batch that `plan` knows, finest first. `feat` float [N,in_channels]."""
        self._check_feat(feat, len(plan.rows))
        scatter = resolve_sparse(self.sparse, feat.device) == "spconv" and torch_scatter_installed()
        feat_NC = self.embedding(feat[plan.rows])
        out = []
        for stage, geometry, inverse in zip(self._stages(), plan.levels, plan.inverse, strict=True):
            if stage.down is not None:
                feat_NC = stage.down(feat_NC, inverse, len(geometry.key), torch_scatter=scatter)
            feat_NC = stage(feat_NC, geometry)
            out.append(
                Level(
                    feat=feat_NC,
                    coord=geometry.coord,
                    grid_coord=geometry.grid_coord,
                    inverse=inverse,
                    offset=geometry.offset,
                )
            )
        return out

    def _stages(self) -> list[Stage]:
        return [stage for stage in self.enc if isinstance(stage, Stage)]

    def _check_feat(self, feat: Tensor, points: int) -> None:
        expected = (points, self.config.in_channels)
        if feat.shape != expected:
            raise ValueError(f"feat has shape {tuple(feat.shape)}, expected {list(expected)}")

    def forward(self, cloud: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The coarsest features of a batch of B clouds.

        Args:
            cloud: `coord` float [N,3]; `grid_coord` int [N,3], distinct within a cloud, in [0, 65534];
                `feat` float [N,in_channels]; `offset` int [B], the cumulative ends of the clouds, as the published code
                has them (no leading 0, the last one N).

        Returns:
            `feat` [N',C]; `coord` [N',3], the mean coordinate of each coarse cell; `grid_coord` [N',3] in the input's
            dtype; `inverse` int64 [N], the coarse row of every input point; `offset` int64 [B], cumulative ends. Rows
            are sorted by (cloud, x, y, z).

        Raises:
            ValueError: the cloud lacks an array or holds one that does not fit; the sentence says which.

        """
        return collect(self.levels(cloud), finest=-1, like=cloud["grid_coord"])


def collect(levels: list[Level], finest: int, like: Tensor) -> dict[str, Tensor]:
    """One level as a mapping: index `finest`, with the features of all coarser levels beside its own.

    As the published code does when it goes back up: [finer, coarser], coarser rows repeated over their cell.
    """
    feat = levels[-1].feat
    for i in range(len(levels) - 1, len(levels) + finest, -1):
        finer = levels[i - 1].feat
        feat = torch.cat([finer, feat[levels[i].inverse].to(finer.dtype)], dim=1)
    level = levels[finest]
    inverse = levels[0].inverse
    for coarser in levels[1 : len(levels) + finest + 1]:
        inverse = coarser.inverse[inverse]
    return {
        "feat": feat,
        "coord": level.coord,
        "grid_coord": level.grid_coord.to(like.dtype),
        "inverse": inverse,
        "offset": level.offset,
    }


def build_concerto(config: Mapping[str, Any], *, sparse: str = "builtin") -> PointTransformerV3:
    """The encoder that a checkpoint's `config` describes, with untrained weights.

    Args:
        config: as in the golden files and in published checkpoints; see `ConcertoConfig` and `IGNORED_KEYS`.
        sparse: who computes the sparse convolutions: "builtin" (plain PyTorch, any device), "spconv" (the package), or
            "auto" (spconv for CUDA tensors where it is installed, else built-in). Where spconv runs,
            torch-scatter pools if it is installed.

    Raises:
        ValueError: an unknown key, a value that does not fit, or an unknown `sparse`; the message has the choices.
        ImportError: `sparse="spconv"` and it is not installed.

    """
    return PointTransformerV3(ConcertoConfig.from_dict(config), check_sparse_choice(sparse))


def _published_init(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
