import math

import pytest
import torch
from torch import Tensor

from stages.normalise import ActionStateNormaliser
from stages.rotations import (
    WIDTH,
    Rotation,
    RotationConfig,
    RotationView,
    axis_angle_to_matrix,
    axis_angle_to_quaternion,
    from_matrix,
    matrix_to_axis_angle,
    one_hemisphere,
    quaternion_to_axis_angle,
    quaternion_to_matrix,
    to_matrix,
)

KINDS: tuple[Rotation, ...] = ("axis_angle", "quaternion", "6d")


def _rotations() -> Tensor:
    """Axis-angle [n,3], also none at all, nearly none, half turns about every axis and nearly half turns."""
    generator = torch.Generator().manual_seed(0)
    axes = torch.nn.functional.normalize(torch.randn(200, 3, generator=generator, dtype=torch.float64), dim=-1)
    angles = torch.rand(200, 1, generator=generator, dtype=torch.float64) * math.pi
    special = torch.cat([torch.eye(3), -torch.eye(3)]).double()
    sizes = torch.tensor([0.0, 1e-9, 1e-4, math.pi / 2, math.pi - 1e-4, math.pi], dtype=torch.float64)
    return torch.cat([axes * angles, *(special * size for size in sizes), *(axes[:20] * size for size in sizes)])


@pytest.mark.parametrize("kind", KINDS)
def test_every_representation_gives_the_same_matrix_back(kind: Rotation) -> None:
    matrix = axis_angle_to_matrix(_rotations())
    torch.testing.assert_close(matrix @ matrix.mT, torch.eye(3, dtype=torch.float64).expand_as(matrix))
    torch.testing.assert_close(torch.linalg.det(matrix), torch.ones(len(matrix), dtype=torch.float64))
    values = from_matrix(matrix, kind)
    assert values.shape == (len(matrix), WIDTH[kind])
    torch.testing.assert_close(to_matrix(values, kind), matrix, atol=1e-7, rtol=0)


def test_the_matrix_is_that_of_a_turn_about_the_axis() -> None:
    turn = axis_angle_to_matrix(torch.tensor([0.0, 0.0, 0.5]))
    cosine, sine = math.cos(0.5), math.sin(0.5)
    torch.testing.assert_close(turn, torch.tensor([[cosine, -sine, 0], [sine, cosine, 0], [0, 0, 1]]))
    exact = torch.linalg.matrix_exp(torch.tensor([[0, -0.3, 0.2], [0.3, 0, -0.1], [-0.2, 0.1, 0]]))
    torch.testing.assert_close(axis_angle_to_matrix(torch.tensor([0.1, 0.2, 0.3])), exact)


def test_axis_angles_come_back_below_half_a_turn() -> None:
    vectors = _rotations()
    vectors = vectors[torch.linalg.vector_norm(vectors, dim=-1) < math.pi - 1e-3]
    torch.testing.assert_close(matrix_to_axis_angle(axis_angle_to_matrix(vectors)), vectors, atol=1e-7, rtol=0)
    torch.testing.assert_close(quaternion_to_axis_angle(axis_angle_to_quaternion(vectors)), vectors, atol=1e-7, rtol=0)


def test_conversions_have_gradients_also_at_no_rotation() -> None:
    vector = torch.zeros(2, 3, requires_grad=True)
    axis_angle_to_matrix(vector).square().sum().backward()
    assert vector.grad is not None and bool(vector.grad.isfinite().all())


def test_antipodal_quaternions_are_one_rotation() -> None:
    quaternion = axis_angle_to_quaternion(_rotations())
    torch.testing.assert_close(quaternion_to_matrix(-quaternion), quaternion_to_matrix(quaternion))
    beneath = quaternion[quaternion[:, 0] > 1e-3]
    torch.testing.assert_close(quaternion_to_axis_angle(-beneath), quaternion_to_axis_angle(beneath))


def test_a_chunk_has_one_target_whatever_signs_its_quaternions_were_written_with() -> None:
    angles = torch.linspace(math.pi - 0.5, math.pi + 0.5, 10, dtype=torch.float64)  # through w = 0
    smooth = axis_angle_to_quaternion(angles[:, None] * torch.tensor([0.0, 0.6, 0.8], dtype=torch.float64))
    flips = torch.tensor([1, -1, -1, 1, -1, 1, 1, 1, -1, -1], dtype=torch.float64)[:, None]
    for written in (smooth, -smooth, smooth * flips, smooth * -flips):
        torch.testing.assert_close(one_hemisphere(written[None])[0], smooth)
    # taken one by one, each with w >= 0, the same turn jumps to the other side of the sphere
    canonical = from_matrix(quaternion_to_matrix(smooth), "quaternion")
    assert canonical.diff(dim=0).abs().max() > 1
    assert one_hemisphere(canonical[None])[0].diff(dim=0).abs().max() < 0.1
    half = torch.tensor([[[0.0, -0.6, 0.8, 0.0]]])  # at a half turn w says nothing: the next number decides
    torch.testing.assert_close(one_hemisphere(half), one_hemisphere(-half))


@pytest.mark.parametrize("stored", KINDS)
@pytest.mark.parametrize("seen", KINDS)
def test_an_absolute_rotation_is_seen_in_another_way_and_written_back(stored: Rotation, seen: Rotation) -> None:
    rotation = from_matrix(axis_angle_to_matrix(_rotations()[:200]), stored).float().view(20, 10, -1)
    place = torch.rand(20, 10, 4)
    action = torch.cat([place[..., :3], rotation, place[..., 3:]], dim=-1)
    width = action.shape[-1]
    view = RotationView(RotationConfig(start=3, stored=stored, seen=seen), width)
    made = ActionStateNormaliser(state=0, action=width, mode="min_max", views=[view])
    assert made.action_width == 4 + WIDTH[seen]
    flat = action.flatten(0, 1)
    columns = {"mean": flat.mean(0), "std": flat.std(0), "min": flat.amin(0), "max": flat.amax(0)}
    columns |= {"q01": columns["min"], "q99": columns["max"]}
    made.set_statistics({"action": {name: value.tolist() for name, value in columns.items()}})
    normalised = made.normalise_action(action)
    torch.testing.assert_close(normalised[..., :3].amax((0, 1)), torch.ones(3))
    restored = made.restore_action(normalised)
    torch.testing.assert_close(
        to_matrix(restored[..., 3:-1], stored), to_matrix(action[..., 3:-1], stored), atol=1e-3, rtol=0
    )
    torch.testing.assert_close(restored[..., [0, 1, 2, -1]], place, atol=1e-5, rtol=0)


def test_a_rotation_that_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match="no rotation of 4 numbers"):
        RotationView(RotationConfig(start=4, stored="quaternion"), 7)
