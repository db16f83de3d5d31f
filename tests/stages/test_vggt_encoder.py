"""The encoder's interface, and the geometry that it adds to VGGT."""

import dataclasses
import math

import pytest
import torch
from torch import Tensor

from stages.points import unproject
from stages.vggt import VGGT, VGGT_TINY, VGGTEncoder, build_vggt, init_random
from stages.vggt.geometry import extrinsic_from_pose, intrinsic_from_pose


@pytest.fixture(scope="module")
def vggt() -> VGGT:
    model = build_vggt(VGGT_TINY)
    init_random(model, 0)
    return model


def frames(count: int, side: int = 56) -> Tensor:
    return torch.rand(count, 3, side, side, generator=torch.Generator().manual_seed(0))


def test_shapes_are_those_of_the_description(vggt: VGGT) -> None:
    out = VGGTEncoder(vggt)(frames(2, 224))
    assert out.depth_map.shape == out.depth_conf.shape == out.point_conf.shape == (2, 224, 224)
    assert out.intrinsic.shape == (2, 3, 3)
    assert out.extrinsic.shape == (2, 4, 4)
    assert out.point_map.shape == (2, 224, 224, 3)
    assert out.tokens is None
    assert torch.equal(out.extrinsic[:, 3], torch.tensor([[0.0, 0.0, 0.0, 1.0]]).expand(2, 4))
    with pytest.raises(dataclasses.FrozenInstanceError):
        out.tokens = out.depth_map  # type: ignore[misc]


def test_the_points_project_to_their_pixels(vggt: VGGT) -> None:
    out = VGGTEncoder(vggt).encode_window(frames(3))
    rotation, translation = out.extrinsic[:, :3, :3], out.extrinsic[:, :3, 3]
    camera = torch.einsum("bij,bhwj->bhwi", rotation, out.point_map) + translation[:, None, None]
    torch.testing.assert_close(camera[..., 2], out.depth_map, rtol=0, atol=1e-5)
    image = torch.einsum("bij,bhwj->bhwi", out.intrinsic, camera / camera[..., 2:])
    row, column = torch.meshgrid(torch.arange(56.0), torch.arange(56.0), indexing="ij")
    torch.testing.assert_close(image[..., 0], column.expand(3, -1, -1), rtol=0, atol=1e-3)
    torch.testing.assert_close(image[..., 1], row.expand(3, -1, -1), rtol=0, atol=1e-3)


def test_frames_on_their_own_do_not_see_each_other_and_a_window_does(vggt: VGGT) -> None:
    encoder, rgb = VGGTEncoder(vggt), frames(3)
    together, alone, window = encoder(rgb), encoder(rgb[1:2]), encoder.encode_window(rgb)
    torch.testing.assert_close(together.point_map[1], alone.point_map[0], rtol=0, atol=1e-5)
    assert (window.depth_map[1] - alone.depth_map[0]).abs().max() > 1e-3
    # a window of one frame is a frame on its own
    torch.testing.assert_close(encoder.encode_window(rgb[1:2]).depth_map, alone.depth_map, rtol=0, atol=0)


def test_one_frame_a_run_makes_bytes_independent_of_the_batch(vggt: VGGT) -> None:
    encoder, rgb = VGGTEncoder(vggt, tokens=True, frames_per_run=1), frames(5)
    together, alone = encoder(rgb), encoder(rgb[3:4])
    for field in dataclasses.fields(together):
        assert torch.equal(getattr(together, field.name)[3], getattr(alone, field.name)[0]), field.name
    by_two = VGGTEncoder(vggt, frames_per_run=2)(rgb)
    assert by_two.tokens is None
    torch.testing.assert_close(by_two.point_map, together.point_map, rtol=0, atol=1e-5)


def test_the_point_head_and_the_tokens_come_on_request(vggt: VGGT) -> None:
    rgb = frames(2)
    out = VGGTEncoder(vggt, point_source="head", tokens=True)(rgb)
    with torch.inference_mode():
        raw = vggt(rgb[:, None], ("point_map", "point_conf", "last_tokens"))
    assert torch.equal(out.point_map, raw["point_map"][:, 0])
    assert torch.equal(out.point_conf, raw["point_conf"][:, 0])
    assert out.tokens is not None
    assert torch.equal(out.tokens, raw["last_tokens"][:, 0])
    assert out.tokens.shape == (2, 5 + 16, 2 * VGGT_TINY.embed_dim)
    assert not torch.equal(out.point_map, VGGTEncoder(vggt)(rgb).point_map)


def test_the_model_is_frozen() -> None:
    model = build_vggt(VGGT_TINY).train()
    encoder = VGGTEncoder(model)
    assert not model.training
    assert not any(p.requires_grad for p in encoder.parameters())


def test_wrong_requests_are_named(vggt: VGGT) -> None:
    with pytest.raises(ValueError, match="point_source is 'sensor', expected one of depth, head"):
        VGGTEncoder(vggt, point_source="sensor")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="frames_per_run is 0, expected at least 1"):
        VGGTEncoder(vggt, frames_per_run=0)
    with pytest.raises(ValueError, match="multiples of the patch size 14"):
        VGGTEncoder(vggt)(torch.zeros(1, 3, 224, 225))
    with pytest.raises(ValueError, match="expected \\[frames, 3, height, width\\]"):
        VGGTEncoder(vggt).encode_window(torch.zeros(1, 2, 3, 56, 56))


def test_a_camera_follows_from_its_pose_encoding() -> None:
    half = math.sqrt(0.5)
    # a quarter turn about z, at twice the length; 90 degrees high, 60 degrees wide
    pose = torch.tensor([1.0, 2.0, 3.0, 0.0, 0.0, 2 * half, 2 * half, math.pi / 2, math.pi / 3])
    expected = torch.tensor([[0.0, -1.0, 0.0, 1.0], [1.0, 0.0, 0.0, 2.0], [0.0, 0.0, 1.0, 3.0]])
    torch.testing.assert_close(extrinsic_from_pose(pose), expected)
    camera = intrinsic_from_pose(pose, height=100, width=200)
    expected = torch.tensor([[100 * math.sqrt(3), 0.0, 100.0], [0.0, 50.0, 50.0], [0.0, 0.0, 1.0]])
    torch.testing.assert_close(camera, expected)


def test_rotations_are_orthonormal_for_any_quaternion() -> None:
    pose = torch.randn(50, 9, generator=torch.Generator().manual_seed(0))
    rotation = extrinsic_from_pose(pose)[:, :, :3]
    torch.testing.assert_close(rotation @ rotation.mT, torch.eye(3).expand(50, 3, 3), rtol=0, atol=1e-5)
    torch.testing.assert_close(torch.linalg.det(rotation), torch.ones(50))


def test_an_infinite_focal_length_does_not_crash_the_unprojection() -> None:
    pose = torch.tensor([[0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0]])
    camera = intrinsic_from_pose(pose, 4, 4)
    assert torch.isinf(camera[0, 0, 0])
    points = unproject(torch.ones(1, 4, 4), camera, extrinsic_from_pose(pose))
    assert points.shape == (1, 4, 4, 3)
