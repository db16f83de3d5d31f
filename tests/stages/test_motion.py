"""What moves: a box over a floor, seen by a still and by a moving camera."""

import math

import pytest
import torch
from torch import Tensor

from data_specs.motion import PARTS, STATISTICS_WIDTH
from stages.motion import motion_cells, motion_statistics, moving_points, unwrap_headings

SIZE = 56
FOCAL = 60.0


def camera(x: float, yaw: float = 0.0) -> Tensor:
    """Camera-from-world [3,4] at (x, 0, 0), turned by `yaw` about the image's vertical axis; looks along z."""
    cosine, sine = math.cos(yaw), math.sin(yaw)
    rotation = torch.tensor([[cosine, 0.0, sine], [0.0, 1.0, 0.0], [-sine, 0.0, cosine]])
    return torch.cat([rotation, -rotation @ torch.tensor([[x], [0.0], [0.0]])], dim=1)


def intrinsic() -> Tensor:
    middle = (SIZE - 1) / 2
    return torch.tensor([[FOCAL, 0.0, middle], [0.0, FOCAL, middle], [0.0, 0.0, 1.0]])


def look(extrinsic: Tensor, box: tuple[float, float]) -> tuple[Tensor, Tensor, Tensor]:
    """Depth [H,W], world points [H*W,3] and which of them are of the box: it spans `box` in x at depth 1; wall at 2."""
    row, column = torch.meshgrid(torch.arange(SIZE), torch.arange(SIZE), indexing="ij")
    rays = torch.stack([column, row, torch.ones_like(row)], -1).float() @ torch.linalg.inv(intrinsic()).T
    rotation, translation = extrinsic[:, :3], extrinsic[:, 3]
    origin, world_rays = -rotation.T @ translation, rays @ rotation
    near = origin + world_rays * ((1.0 - origin[2]) / world_rays[..., 2:])
    on_box = (near[..., 0] > box[0]) & (near[..., 0] < box[1]) & (near[..., 1].abs() < 0.2)
    far = origin + world_rays * ((2.0 - origin[2]) / world_rays[..., 2:])
    points = torch.where(on_box[..., None], near, far)
    depth = (points @ rotation.T + translation)[..., 2]
    return depth, points.flatten(0, 1), on_box.flatten()


@pytest.mark.parametrize("shift", [0.0, 0.05], ids=["still", "moving"])
def test_what_moved_is_found_and_what_stands_is_not(shift: float) -> None:
    extrinsics = [camera(shift * i, 0.02 * i * (shift > 0)) for i in range(3)]
    boxes = [(-0.4 + 0.25 * i, -0.2 + 0.25 * i) for i in range(3)]
    seen = [look(extrinsic, box) for extrinsic, box in zip(extrinsics, boxes, strict=True)]
    moving = moving_points(
        [points for _, points, _ in seen],
        torch.stack([depth for depth, _, _ in seen]),
        torch.stack([intrinsic()] * 3),
        torch.stack(extrinsics),
        margin=0.025,
    )
    for mask, (_, _, on_box) in zip(moving, seen, strict=True):
        assert mask[on_box].float().mean() > 0.95
        assert mask[~on_box].float().mean() < 0.01


def test_unknown_depth_shows_nothing_to_be_free() -> None:
    depth, points, _ = look(camera(0.0), (-0.1, 0.1))
    unknown = torch.stack([depth, torch.zeros_like(depth), torch.full_like(depth, torch.nan)])
    moving = moving_points(
        [points] * 3, unknown, torch.stack([intrinsic()] * 3), torch.stack([camera(0.0)] * 3), margin=0.025
    )
    assert not moving[0].any()


def test_cells_hold_share_and_place_of_what_moves() -> None:
    pixel = torch.tensor([0, 1, 2, 14 * 14 - 1])  # of a frame of 14 pixels: a pixel a cell
    coord = torch.arange(12.0).view(4, 3)
    cells = motion_cells(coord, pixel, torch.tensor([False, True, False, True]), 14)
    assert cells.shape == (196, 4)
    assert cells[1].tolist() == [1.0, 3.0, 4.0, 5.0]
    assert cells[195].tolist() == [1.0, 9.0, 10.0, 11.0]
    assert not cells[[0, *range(2, 195)]].any()


def test_statistics_follow_a_shift_and_a_turn() -> None:
    generator = torch.Generator().manual_seed(0)
    cloud = torch.randn(500, 3, generator=generator) * torch.tensor([0.2, 0.05, 0.1])
    everything, area = torch.ones(500, dtype=torch.bool), torch.ones(500)
    parts = dict(zip([name for name, *_ in PARTS], _split(motion_statistics(cloud, area, everything)), strict=True))
    shifted = dict(
        zip([name for name, *_ in PARTS], _split(motion_statistics(cloud + 0.3, area, everything)), strict=True)
    )
    torch.testing.assert_close(shifted["mean"] - parts["mean"], torch.full((3,), 0.3))
    torch.testing.assert_close(shifted["low_mean"] - parts["low_mean"], torch.full((3,), 0.3))
    torch.testing.assert_close(shifted["spread"], parts["spread"], atol=1e-5, rtol=0)
    assert parts["spread"][[0, 3, 5]].tolist() == pytest.approx([0.2, 0.05, 0.1], rel=0.1)


@pytest.mark.parametrize("angle", [-1.2, 0.0, 0.7])
def test_the_heading_is_that_of_the_long_axis_over_the_lowest_points(angle: float) -> None:
    generator = torch.Generator().manual_seed(1)
    bar = (torch.rand(400, 3, generator=generator) - 0.5) * torch.tensor([0.16, 0.03, 0.04]) + torch.tensor(
        [0, 0, 0.09]
    )
    finger = (torch.rand(100, 3, generator=generator) - 0.5) * torch.tensor([0.01, 0.01, 0.02])
    cosine, sine = math.cos(angle), math.sin(angle)
    turned = torch.cat([bar, finger]) @ torch.tensor([[cosine, sine, 0.0], [-sine, cosine, 0.0], [0.0, 0.0, 1.0]])
    statistics = motion_statistics(turned, torch.ones(500), torch.ones(500, dtype=torch.bool))
    assert statistics[-1].item() == pytest.approx(angle, abs=0.05)
    assert math.isnan(statistics[-2])  # nothing is between finger and bar


def test_headings_go_on_over_half_turns_and_gaps() -> None:
    statistics = torch.zeros(5, STATISTICS_WIDTH)
    statistics[:, -1] = torch.tensor([torch.nan, 1.4, -1.5, torch.nan, -1.2])
    statistics[:, -2] = torch.nan
    unwrapped = unwrap_headings(statistics)
    assert unwrapped[:, -1].tolist() == pytest.approx([1.4, 1.4, math.pi - 1.5, math.pi - 1.5, math.pi - 1.2])
    assert not unwrapped[:, :-1].any()


def test_a_frame_in_which_hardly_anything_moves_has_no_statistics() -> None:
    mask = torch.zeros(500, dtype=torch.bool)
    mask[:5] = True
    assert motion_statistics(torch.rand(500, 3), torch.ones(500), mask).tolist() == [0.0] * STATISTICS_WIDTH


def _split(statistics: Tensor) -> list[Tensor]:
    return list(statistics.split([width for _, width, _ in PARTS]))
