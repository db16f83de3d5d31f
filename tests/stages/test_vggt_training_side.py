"""What only training needs of VGGT: pose encodings of cameras, some frames' depth, no point head."""

import math

import pytest
import torch

from stages.vggt import VGGT_TINY, build_vggt, init_random
from stages.vggt.geometry import extrinsic_from_pose, intrinsic_from_pose, pose_from_camera
from stages.vggt.model import DEPTH, OUTPUTS


def test_cameras_become_the_encoding_that_they_come_from() -> None:
    generator = torch.Generator().manual_seed(0)
    pose = torch.randn(4, 25, 9, dtype=torch.float64, generator=generator)
    pose[..., 3:7] = torch.nn.functional.normalize(pose[..., 3:7], dim=-1)
    pose[..., 3:7] *= pose[..., 6:7].sign()
    pose[..., 7:] = 0.2 + 2 * torch.rand(4, 25, 2, dtype=torch.float64, generator=generator)
    again = pose_from_camera(extrinsic_from_pose(pose), intrinsic_from_pose(pose, 120, 200), 120, 200)
    torch.testing.assert_close(again, pose, rtol=0, atol=1e-12)


@pytest.mark.parametrize("axis", range(3))
def test_half_a_turn_keeps_its_digits(axis: int) -> None:
    quaternion = torch.zeros(4, dtype=torch.float64)
    quaternion[axis], quaternion[3] = math.cos(1e-5), math.sin(1e-5)
    pose = torch.cat((torch.zeros(3), quaternion, torch.ones(2)))
    again = pose_from_camera(extrinsic_from_pose(pose), intrinsic_from_pose(pose, 10, 10), 10, 10)
    torch.testing.assert_close(again, pose, rtol=0, atol=1e-12)


@torch.inference_mode()
def test_some_frames_have_the_depth_that_they_have_among_all() -> None:
    model = build_vggt(VGGT_TINY).eval()
    init_random(model, 0)
    images = torch.rand(2, 4, 3, 28, 28)
    chosen = torch.tensor([1, 3])
    some, every = model(images, OUTPUTS, dense_frames=chosen), model(images, OUTPUTS)
    for name in OUTPUTS:
        dense = name in (*DEPTH, "point_map", "point_conf")
        torch.testing.assert_close(some[name], every[name][:, chosen] if dense else every[name], rtol=0, atol=1e-5)


@torch.inference_mode()
def test_without_a_point_head_all_else_is_as_before() -> None:
    whole = build_vggt(VGGT_TINY).eval()
    init_random(whole, 0)
    less = build_vggt({**VGGT_TINY.to_dict(), "point_head": False}).eval()
    less.load_state_dict({k: v for k, v in whole.state_dict().items() if not k.startswith("point_head.")}, strict=True)
    images = torch.rand(1, 2, 3, 28, 28)
    assert torch.equal(less(images)["depth"], whole(images)["depth"])
    with pytest.raises(ValueError, match="no point head: unproject"):
        less(images, ("point_conf",))
