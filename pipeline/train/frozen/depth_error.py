"""How far the depth and cameras of a VGGT are from the simulator's.

Shape legend
    B  windows    S  frames of a window    H, W  sides of the image
"""

from collections.abc import Iterable
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from pipeline.train.frozen.windows import Windows, relative
from stages.vggt.geometry import extrinsic_from_pose
from stages.vggt.model import VGGT

NEAR = 1.25
"""Ratio of depths that counts as right for `delta`."""


@dataclass(frozen=True, kw_only=True)
class GeometryError:
    """Means over windows.

    Attributes:
        abs_rel: |d - d*| / d* after one scale for the window, the ratio of the medians.
        delta: share of pixels with max(d / d*, d* / d) < 1.25.
        rotation: of the cameras after the first against it, degrees.
        translation: of the same, centimetres after the same scale.
        view: of the field of view, degrees.
    """

    abs_rel: float
    delta: float
    rotation: float
    translation: float
    view: float


@torch.inference_mode()
def geometry_error(model: VGGT, batches: Iterable[Windows]) -> GeometryError:
    """The errors of `model` on windows; rotation and translation are 0 for windows of one frame."""
    rows = []
    for batch in batches:
        out = model(batch.images, ("pose_enc", "depth"))
        rows.append(window_errors(out["depth"].squeeze(-1), out["pose_enc"], batch))
    return mean_error(rows)


def mean_error(rows: Iterable[Tensor]) -> GeometryError:
    """The mean of rows [B,5] of `window_errors`."""
    means = torch.cat(list(rows)).double().mean(0).tolist()
    return GeometryError(**dict(zip((field.name for field in fields(GeometryError)), means, strict=True)))


def window_errors(depth: Tensor, pose: Tensor, truth: Windows) -> Tensor:
    """The errors [B,5] of each window, in the order of `GeometryError`, for depth [B,S,H,W] and pose [B,S,9]."""
    windows = zip(depth, truth.depth, pose, truth.pose, truth.scale, strict=True)
    return torch.stack([_errors(*window) for window in windows])


def _errors(depth: Tensor, true_depth: Tensor, pose: Tensor, true_pose: Tensor, metres: Tensor) -> Tensor:
    known = true_depth > 0
    scale = true_depth[known].median() / depth[known].median()
    ratio = scale * depth[known] / true_depth[known]
    # relative to the first camera as predicted, which VGGT is free to put anywhere
    moved, still = relative(extrinsic_from_pose(pose)), relative(extrinsic_from_pose(true_pose))
    distance = (scale * moved[1:, :, 3] - still[1:, :, 3]).norm(dim=-1)
    return torch.stack(
        [
            (ratio - 1).abs().mean(),
            (torch.maximum(ratio, 1 / ratio) < NEAR).float().mean(),
            _angle(moved[1:, :, :3], still[1:, :, :3]),
            100 * metres * distance.sum() / max(1, len(distance)),
            torch.rad2deg((pose[:, 7:] - true_pose[:, 7:]).abs().mean()),
        ]
    )


def _angle(one_N33: Tensor, other_N33: Tensor) -> Tensor:
    """Mean angle between rotations, degrees; 0 of none."""
    # from the chord, which is exact for small angles where the arc cosine of the trace is not
    chord = (one_N33.double() - other_N33.double()).flatten(1).norm(dim=1) / 8**0.5
    angle = torch.rad2deg(2 * torch.asin(chord.clamp(max=1)))
    return (angle.sum() / max(1, len(angle))).to(one_N33.dtype)
