"""Concerto tiny at school: a student, its teacher, and the heads that are thrown away after training.

In the spirit of Sonata and Concerto (Wu et al., CVPR 2025; Zhang et al., NeurIPS 2025): the student sees a cloud with
holes and says what the teacher, the moving average of itself, makes of another, whole view. That alone leaves small
motions out. So linear heads read from the tokens what is in their cells, from the mean token what moves, and, most of
all, from the difference of two frames' mean tokens how what moves has moved.

Shape legend
    T  tokens of the student's B clouds    C  channels    M  cells    D  cell values    S  scene values
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.train.frozen.cell_targets import CELL_VALUES, SCENE_VALUES, value_slice
from pipeline.train.frozen.clouds import PairBatch
from stages.concerto import TINY, PointTransformerV3, init_random
from stages.concerto.sparse import voxel_keys

WEIGHTS: Mapping[str, float] = {
    "cells": 1.0,
    "scene": 1.0,
    "scene_change": 2.0,
    "moving_change": 2.0,
    "token_scene": 0.5,
    "teacher": 0.2,
    "spread": 0.2,
    "overlap": 0.01,
}
"""Of the parts of the loss, by their names in the log."""
VALUE_WEIGHTS: Mapping[str, float] = {"moving": 5.0, "moving_place": 2.0, "occupancy": 0.5}
"""Of the cell values that do not count 1."""
_LEAST_POINTS = 8
"""A cell with no more points than these says little about what the teacher sees there."""
_STEEPEST = 12.0
"""Bound of how much more a change counts than the value that changes."""


class Pretraining(nn.Module):
    """Student, teacher and heads. `forward` gives the parts of the loss; `update_teacher` moves the teacher.

    The means and deviations of the targets are buffers, set once by `set_statistics`.
    """

    cell_mean: Tensor
    cell_std: Tensor
    scene_mean: Tensor
    scene_std: Tensor
    scene_change: Tensor
    moving_change: Tensor
    value_weight: Tensor

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.student, self.teacher = PointTransformerV3(TINY), PointTransformerV3(TINY)
        for network in (self.student, self.teacher):
            init_random(network, seed)
        self.teacher.requires_grad_(False)
        channels, values = TINY.out_channels, sum(CELL_VALUES.values())
        self.cell_head = nn.Linear(channels, values)
        self.scene_head = nn.Linear(channels, SCENE_VALUES)
        self.token_head = nn.Linear(channels, SCENE_VALUES)
        self.predictor = nn.Sequential(nn.Linear(channels, 2 * channels), nn.GELU(), nn.Linear(2 * channels, channels))
        moving = CELL_VALUES["moving"]
        for name, size in (
            ("cell_mean", values),
            ("cell_std", values),
            ("scene_mean", SCENE_VALUES),
            ("scene_std", SCENE_VALUES),
            ("scene_change", SCENE_VALUES),
            ("moving_change", moving),
        ):
            self.register_buffer(name, torch.ones(size))
        weight = torch.cat([torch.full((width,), VALUE_WEIGHTS.get(n, 1.0)) for n, width in CELL_VALUES.items()])
        self.register_buffer("value_weight", weight / weight.mean())

    @torch.no_grad()
    def set_statistics(self, batch: PairBatch) -> None:
        """Take means and deviations of the targets from one large batch."""
        share_M1 = batch.cell_count[:, None] / batch.cell_count.sum()
        mean = (batch.cell_values * share_M1).sum(0)
        self.cell_mean.copy_(mean)
        self.cell_std.copy_((share_M1 * (batch.cell_values - mean) ** 2).sum(0).sqrt().clamp_min(1e-4))
        self.scene_mean.copy_(batch.scene.mean(0))
        self.scene_std.copy_(batch.scene.std(0).clamp_min(1e-4))
        self.scene_change.copy_(_change(batch.scene).std(0).clamp_min(1e-4))
        moving = _mean_of_points(batch.cell_values[:, value_slice("moving")], batch.cell_count, batch.cell_cloud)
        self.moving_change.copy_(_change(moving).std(0).clamp_min(1e-5))

    def forward(self, batch: PairBatch) -> dict[str, Tensor]:
        """The parts of the loss, unweighted, by the names of `WEIGHTS`; `teacher` is 0 where no cloud is taught."""
        tokens = self.student(batch.student.as_cloud())
        feat_TC = tokens["feat"]
        cloud_T = _cloud_of(tokens["offset"])
        row_T = _find(tokens["grid_coord"], cloud_T, batch.cell_grid, batch.cell_cloud)
        values_TD, count_T = batch.cell_values[row_T], batch.cell_count[row_T]
        mean_BC = _mean_of_points(feat_TC, count_T, cloud_T)
        # a token counts by the root of its points: few points are noise, and the floor's many say one thing
        weight_T = count_T.sqrt() / count_T.sqrt().mean()
        said_TD = self.cell_head(feat_TC)
        cells_TD = F.smooth_l1_loss(said_TD, (values_TD - self.cell_mean) / self.cell_std, reduction="none")
        scene_BS = (batch.scene - self.scene_mean) / self.scene_std
        scene_said_BS = self.scene_head(mean_BC)
        steepness_S = (self.scene_std / self.scene_change).clamp_max(_STEEPEST)
        token_TS = F.smooth_l1_loss(self.token_head(feat_TC), scene_BS[cloud_T], reduction="none")
        return {
            "cells": ((cells_TD * self.value_weight).mean(1) * weight_T).mean(),
            "scene": F.smooth_l1_loss(scene_said_BS, scene_BS),
            "scene_change": _size(_change(scene_said_BS - scene_BS) * steepness_S),
            "moving_change": self._moving_change(mean_BC, values_TD, count_T, cloud_T),
            "token_scene": (token_TS.mean(1) * weight_T).mean(),
            "teacher": self._teacher(batch, feat_TC, tokens["grid_coord"], cloud_T, count_T),
            **_variety(feat_TC),
        }

    @torch.no_grad()
    def update_teacher(self, momentum: float) -> None:
        """Teacher = momentum x teacher + (1 - momentum) x student."""
        for mine, other in zip(self.teacher.parameters(), self.student.parameters(), strict=True):
            mine.lerp_(other, 1 - momentum)

    def _moving_change(self, mean_BC: Tensor, values_TD: Tensor, count_T: Tensor, cloud_T: Tensor) -> Tensor:
        """The head is linear, so what it says of the mean token is the mean of what it says of the points."""
        where = value_slice("moving")
        said = self.cell_head(mean_BC)[:, where] * self.cell_std[where]
        truth = _mean_of_points(values_TD[:, where], count_T, cloud_T)
        return _size((_change(said) - _change(truth)) / self.moving_change)

    def _teacher(self, batch: PairBatch, feat_TC: Tensor, grid_T3: Tensor, cloud_T: Tensor, count_T: Tensor) -> Tensor:
        if batch.teacher is None:
            return feat_TC.new_zeros(())
        with torch.no_grad():
            taught = self.teacher(batch.teacher.as_cloud())
        key = voxel_keys(batch.taught[_cloud_of(taught["offset"])], taught["grid_coord"])
        wanted = voxel_keys(cloud_T, grid_T3)
        row_T = torch.searchsorted(key, wanted).clamp_max(len(key) - 1)
        both_T = (key[row_T] == wanted) & (count_T > _LEAST_POINTS)
        if not bool(both_T.any()):
            return feat_TC.new_zeros(())
        target = F.layer_norm(taught["feat"][row_T[both_T]], feat_TC.shape[1:])
        return (1 - F.cosine_similarity(self.predictor(feat_TC[both_T]), target)).mean()


def total(parts: Mapping[str, Tensor]) -> Tensor:
    """The loss: the weighted sum of its parts."""
    return torch.stack([WEIGHTS[name] * part for name, part in parts.items()]).sum()


def _cloud_of(offset: Tensor) -> Tensor:
    return torch.searchsorted(offset, torch.arange(int(offset[-1]), device=offset.device), right=True)


def _find(grid_T3: Tensor, cloud_T: Tensor, grid_M3: Tensor, cloud_M: Tensor) -> Tensor:
    """The row among the M cells, sorted by (cloud, x, y, z), of each of T that are among them."""
    return torch.searchsorted(voxel_keys(cloud_M, grid_M3), voxel_keys(cloud_T, grid_T3))


def _mean_of_points(value_TX: Tensor, count_T: Tensor, cloud_T: Tensor) -> Tensor:
    """[B,X]: means over the points of each cloud, `count_T` of which share a value. Clouds are numbered from 0."""
    clouds = int(cloud_T[-1]) + 1
    points_B = count_T.new_zeros(clouds).index_add_(0, cloud_T, count_T)
    share_T1 = (count_T / points_B[cloud_T])[:, None]
    return value_TX.new_zeros(clouds, value_TX.shape[1]).index_add_(0, cloud_T, value_TX * share_T1)


def _change(value_BX: Tensor) -> Tensor:
    """[B/2,X]: the second cloud of each pair minus the first."""
    return value_BX[1::2] - value_BX[::2]


def _size(error: Tensor) -> Tensor:
    return F.smooth_l1_loss(error, torch.zeros_like(error))


def _variety(feat_TC: Tensor) -> dict[str, Tensor]:
    """Channels that vary, each in its own way (VICReg; Bardes et al., ICLR 2022)."""
    away = feat_TC - feat_TC.mean(0)
    covariance = away.T @ away / len(away)
    overlap = (covariance - covariance.diag().diag()).square().sum() / feat_TC.shape[1]
    return {"spread": F.relu(1 - away.std(0)).mean(), "overlap": overlap}
