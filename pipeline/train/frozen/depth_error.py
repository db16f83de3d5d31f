"""How far the depth and cameras of a VGGT are from the simulator's.

Shape legend
    B  windows    S  frames of a window    H, W  sides of the image
"""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from pipeline.train.frozen.windows import Windows
from stages.vggt.geometry import extrinsic_from_pose
from stages.vggt.model import VGGT


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
    rows = [_errors(model(batch.images, ("pose_enc", "depth")), batch) for batch in batches]
    means = torch.cat(rows).double().mean(0).tolist()
    return GeometryError(**dict(zip(("abs_rel", "delta", "rotation", "translation", "view"), means, strict=True)))


def _errors(out: dict[str, Tensor], batch: Windows) -> Tensor:
    """[B,5]."""
    rows = []
    for depth, truth, pose, wanted, metres in zip(
        out["depth"].squeeze(-1), batch.depth, out["pose_enc"], batch.pose, batch.scale, strict=True
    ):
        known = truth > 0
        d, t = depth[known], truth[known]
        scale = t.median() / d.median()
        ratio = d * scale / t
        # relative to the first camera as predicted, which VGGT is free to put anywhere
        moved, still = _relative(extrinsic_from_pose(pose)), _relative(extrinsic_from_pose(wanted))
        rows.append(
            torch.stack(
                [
                    (ratio - 1).abs().mean(),
                    (torch.maximum(ratio, 1 / ratio) < 1.25).float().mean(),
                    _angle(moved[1:, :, :3], still[1:, :, :3]),
                    (100 * metres * (scale * moved[1:, :, 3] - still[1:, :, 3]).norm(dim=-1)).sum()
                    / max(1, len(still) - 1),
                    torch.rad2deg((pose[:, 7:] - wanted[:, 7:]).abs().mean()),
                ]
            )
        )
    return torch.stack(rows)


def _relative(extrinsic_S34: Tensor) -> Tensor:
    turned = extrinsic_S34[:, :, :3] @ extrinsic_S34[0, :, :3].T
    return torch.cat((turned, extrinsic_S34[:, :, 3:] - turned @ extrinsic_S34[0, :, 3:]), dim=-1)


def _angle(one_N33: Tensor, other_N33: Tensor) -> Tensor:
    """Mean angle between rotations, degrees; 0 of none."""
    if len(one_N33) == 0:
        return one_N33.new_zeros(())
    # from the chord, which is exact for small angles where the arc cosine of the trace is not
    chord = (one_N33.double() - other_N33.double()).flatten(1).norm(dim=1) / (2 * 2**0.5)
    return torch.rad2deg(2 * torch.asin(chord.clamp(max=1))).mean().to(one_N33.dtype)
