"""How things lie, and which points say so."""

import math

import pytest
import torch

from stages.outlines import LIES, Around, lies, nearest, settled, weigh


def footprint(length: float, width: float, angle: float) -> torch.Tensor:
    """Points [n,3] of a rectangle's area, turned by an angle."""
    x, y = torch.meshgrid(torch.linspace(-1, 1, 9), torch.linspace(-1, 1, 9), indexing="ij")
    flat = torch.stack([x.flatten() * length / 2, y.flatten() * width / 2, torch.zeros(81)], dim=-1)
    cosine, sine = math.cos(angle), math.sin(angle)
    return flat @ torch.tensor([[cosine, sine, 0.0], [-sine, cosine, 0.0], [0.0, 0.0, 1.0]])


def told(points: torch.Tensor, yaw: float = 0.0) -> torch.Tensor:
    around = Around(share=torch.full((1, 1, len(points)), 1 / len(points)), offset=points[None, None])
    return lies(around, torch.zeros(1, 1, 3), torch.tensor([yaw]))[0, 0]


@pytest.mark.parametrize("degrees", [-80, -30, 0, 10, 65])
def test_a_hand_that_turns_by_the_angle_lies_along_what_is_long(degrees: int) -> None:
    found = told(footprint(0.08, 0.04, math.radians(degrees)))
    assert len(found) == LIES
    assert math.degrees(found[2]) == pytest.approx(degrees, abs=0.5)
    assert found[3] > 0.5
    turned = told(footprint(0.08, 0.04, math.radians(degrees)), yaw=math.radians(degrees))
    assert math.degrees(turned[2]) == pytest.approx(0, abs=0.5)


@pytest.mark.parametrize("degrees", [-40, -15, 0, 20, 44])
def test_a_hand_that_turns_by_the_angle_lies_along_the_faces_of_what_is_square(degrees: int) -> None:
    found = told(footprint(0.05, 0.05, math.radians(degrees)))
    assert math.degrees(found[6]) == pytest.approx(degrees, abs=0.5)
    assert found[7] > 0.2 and found[3] < 0.01


def test_what_is_round_lies_no_way() -> None:
    angle = torch.arange(64) / 64 * 2 * math.pi
    found = told(0.03 * torch.stack([angle.cos(), angle.sin(), torch.zeros(64)], dim=-1))
    assert found[3] < 1e-3 and found[7] < 1e-3


def test_moments_have_gradients_where_a_cloud_is_one_point() -> None:
    points = torch.zeros(1, 1, 4, 3, requires_grad=True)
    told = lies(Around(share=torch.full((1, 1, 4), 0.25), offset=points), torch.zeros(1, 1, 3), torch.zeros(1))
    told.sum().backward()
    assert points.grad is not None and bool(points.grad.isfinite().all())


def test_the_nearest_points_are_real_ones() -> None:
    xyz = torch.zeros(2, 6, 3)
    xyz[:, :, 0] = torch.arange(6.0)
    index = nearest(xyz, torch.tensor([6, 3]), torch.tensor([[[5.0, 0, 0]], [[5.0, 0, 0]]]), 2)
    assert sorted(index[0, 0].tolist()) == [4, 5] and sorted(index[1, 0].tolist()) == [1, 2]
    assert nearest(xyz, torch.tensor([6, 6]), torch.zeros(2, 1, 3), 20).shape == (2, 1, 6)


def test_points_count_by_the_root_of_attention_within_the_radius() -> None:
    offset = torch.tensor([[[[0.0, 0, 0], [0.05, 0, 0], [0.2, 0, 0], [0.01, 0, 0]]]])
    logit = torch.tensor([[[2 * math.log(3.0), 0.0, 9.0, 9.0]]])
    real = torch.tensor([[[True, True, True, False]]])
    torch.testing.assert_close(weigh(logit, offset, real, 0.1).share[0, 0], torch.tensor([0.75, 0.25, 0.0, 0.0]))


def test_a_slot_that_attends_to_two_things_settles_on_the_one_with_more_attention() -> None:
    one, other = footprint(0.05, 0.05, 0.0), footprint(0.10, 0.10, 0.3) + torch.tensor([0.3, 0.1, 0.0])
    xyz = torch.cat([one, other])[None]
    weight = torch.cat([torch.full((81,), 0.45 / 81), torch.full((81,), 0.55 / 81)])[None, None]
    kept = settled(weight, xyz, 0.09)
    assert float(kept.sum()) == pytest.approx(1) and not kept[0, 0, :81].any()
    torch.testing.assert_close((kept @ xyz)[0, 0], torch.tensor([0.3, 0.1, 0.0]), atol=1e-5, rtol=0)
    few = weight.clone()
    few[0, 0, 3] = few.amax() * 2  # the point attended to most is of the other thing
    assert not settled(few / few.sum(), xyz, 0.09)[0, 0, :81].any()


def test_attention_to_one_thing_stays_as_it_is_and_learns() -> None:
    xyz = footprint(0.08, 0.04, 0.2)[None]
    logit = torch.randn(1, 2, 81, generator=torch.Generator().manual_seed(0)).requires_grad_()
    weight = logit.softmax(-1)
    kept = settled(weight, xyz, 0.09)
    torch.testing.assert_close(kept, weight)
    (kept @ xyz).sum().backward()
    assert logit.grad is not None and bool(logit.grad.isfinite().all()) and bool(logit.grad.any())
