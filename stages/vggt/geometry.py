"""From pose encodings to cameras, and from depth and camera to points. OpenCV axes: x right, y down, z forward.

Shape legend
    ...  any leading dimensions    N  frames    H, W  sides of the image in pixels
"""

import torch
from torch import Tensor


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
    half_size = pose_enc.new_tensor((width / 2, height / 2))
    focal = half_size / torch.tan(pose_enc[..., [8, 7]] / 2)
    intrinsic = pose_enc.new_zeros((*pose_enc.shape[:-1], 3, 3))
    intrinsic[..., 0, 0] = focal[..., 0]
    intrinsic[..., 1, 1] = focal[..., 1]
    intrinsic[..., :2, 2] = half_size
    intrinsic[..., 2, 2] = 1.0
    return intrinsic
