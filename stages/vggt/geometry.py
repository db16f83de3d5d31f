"""From pose encodings to cameras, and from depth and camera to points. OpenCV axes: x right, y down, z forward.

Shape legend
    ...  any leading dimensions    N  frames    H, W  sides of the image in pixels
"""

import torch
from torch import Tensor

from stages.constants import constant


def extrinsic_from_pose(pose_enc: Tensor) -> Tensor:
    """Pose encoding [...,9] → camera-from-world [...,3,4]. The quaternion xyzw may have any length but 0."""
    x, y, z, w = pose_enc[..., 3:7].unbind(-1)
    s = 2.0 / pose_enc[..., 3:7].square().sum(-1)
    rotation = torch.stack(
        (
            torch.stack((1 - s * (y * y + z * z), s * (x * y - z * w), s * (x * z + y * w)), dim=-1),
            torch.stack((s * (x * y + z * w), 1 - s * (x * x + z * z), s * (y * z - x * w)), dim=-1),
            torch.stack((s * (x * z - y * w), s * (y * z + x * w), 1 - s * (x * x + y * y)), dim=-1),
        ),
        dim=-2,
    )
    return torch.cat((rotation, pose_enc[..., :3, None]), dim=-1)


def intrinsic_from_pose(pose_enc: Tensor, height: int, width: int) -> Tensor:
    """Pose encoding [...,9] → pinhole camera [...,3,3] in pixels, with the principal point in the middle.

    A field of view of 0 gives an infinite focal length, one that is not finite gives NaN: nothing is raised here,
    the frame is bad data and whoever uses it checks.
    """
    half_size = constant((width / 2, height / 2), pose_enc.device, pose_enc.dtype)
    focal = half_size / torch.tan(pose_enc[..., 7:9].flip(-1) / 2)
    intrinsic = pose_enc.new_zeros((*pose_enc.shape[:-1], 3, 3))
    intrinsic[..., 0, 0] = focal[..., 0]
    intrinsic[..., 1, 1] = focal[..., 1]
    intrinsic[..., :2, 2] = half_size
    intrinsic[..., 2, 2].fill_(1.0)  # an assignment would send the number from the host
    return intrinsic


def pose_from_camera(extrinsic: Tensor, intrinsic: Tensor, height: int, width: int) -> Tensor:
    """Camera-from-world [...,3,4] and pinhole camera [...,3,3] in pixels → pose encoding [...,9] of their dtype.

    The inverse of `extrinsic_from_pose` and `intrinsic_from_pose`, but for the principal point, which the encoding
    takes for the middle of the image. The quaternion has length 1 and w >= 0: equal rotations are equal numbers.
    """
    half_size = intrinsic.new_tensor((height / 2, width / 2))
    focal = torch.stack((intrinsic[..., 1, 1], intrinsic[..., 0, 0]), dim=-1)
    field_of_view = 2 * torch.atan(half_size / focal)
    return torch.cat((extrinsic[..., 3], _quaternion(extrinsic[..., :3]), field_of_view), dim=-1)


def _quaternion(rotation: Tensor) -> Tensor:
    """Unit quaternion xyzw [...,4] of rotation matrices [...,3,3], w >= 0.

    It is the eigenvector of the largest eigenvalue of a symmetric matrix (Bar-Itzhack, J. Guidance 2000): no cases, and
    no loss of digits near half a turn.
    """
    (xx, xy, xz), (yx, yy, yz), (zx, zy, zz) = (row.unbind(-1) for row in rotation.double().unbind(-2))
    rows = (
        (xx - yy - zz, xy + yx, xz + zx, zy - yz),
        (xy + yx, yy - xx - zz, yz + zy, xz - zx),
        (xz + zx, yz + zy, zz - xx - yy, yx - xy),
        (zy - yz, xz - zx, yx - xy, xx + yy + zz),
    )
    matrix = torch.stack([torch.stack(row, dim=-1) for row in rows], dim=-2)
    quaternion = torch.linalg.eigh(matrix).eigenvectors[..., -1]
    quaternion = torch.where(quaternion[..., 3:] < 0, -quaternion, quaternion)
    return quaternion.to(rotation.dtype)
