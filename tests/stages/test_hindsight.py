import numpy as np
import pytest
import torch
from torch import Tensor

from data_specs.pointing import GOAL, THING
from stages.hindsight import hindsight_targets, leave_frames
from stages.motion import nearest_depth
from stages.points import unproject

SIZE, HEIGHT = 96, 1.0
FROM, TO = (-0.12, 0.02), (0.14, -0.06)
HALF, TALL = 0.03, 0.06
END = (FROM[0] + 0.001, FROM[1] + 0.001, 0.121)


def camera(frames: int) -> tuple[Tensor, Tensor]:
    """Looks straight down from `HEIGHT`."""
    focal, middle = SIZE * 1.2, (SIZE - 1) / 2
    intrinsic = torch.tensor([[focal, 0, middle], [0, focal, middle], [0, 0, 1]])
    extrinsic = torch.tensor([[1.0, 0, 0, 0], [0, -1, 0, 0], [0, 0, -1, HEIGHT]])
    return intrinsic.expand(frames, 3, 3), extrinsic.expand(frames, 3, 4)


def depth(boxes: list[list[tuple[float, float, float]]]) -> Tensor:
    """Depth [F,H,W] of boxes by frame, each at x, y with the height of its top over a table at z = 0."""
    row, column = torch.meshgrid(torch.arange(SIZE), torch.arange(SIZE), indexing="ij")
    out = torch.full((len(boxes), SIZE, SIZE), HEIGHT)
    for i, things in enumerate(boxes):
        for x, y, top in things:
            far = HEIGHT - top
            mine = ((column - (SIZE - 1) / 2) / (SIZE * 1.2) * far - x).abs() < HALF
            mine &= ((row - (SIZE - 1) / 2) / (SIZE * 1.2) * far + y).abs() < HALF
            out[i] = torch.where(mine, out[i].clamp(max=far), out[i])
    return out


def targets(boxes: list[list[tuple[float, float, float]]], grip: list[tuple[float, float, float]]) -> Tensor:
    seen = depth(boxes)
    intrinsic, extrinsic = camera(len(boxes))
    points = unproject(seen, intrinsic, extrinsic).flatten(1, 2)
    hand = torch.tensor(grip, dtype=torch.float32)
    return hindsight_targets(points[0], points[-1], hand, hand[-1] + 0.001, seen, intrinsic, extrinsic, margin=0.025)


def moved(ways: np.ndarray) -> tuple[list[list[tuple[float, float, float]]], list[tuple[float, float, float]]]:
    """A box that is `ways` [F] of the way from `FROM` to `TO`, with the hand over it, and one that stands still."""
    places = [tuple(np.array(FROM) + way * (np.array(TO) - np.array(FROM))) for way in ways]
    boxes = [[(x, y, TALL), (0.0, 0.2, TALL)] for x, y in places]
    grip = [(x, y, TALL + 0.04) for x, y in places]
    grip[0] = (-0.2, -0.2, 0.25)
    grip[-1] = (TO[0], TO[1], 0.2)
    return boxes, grip


@pytest.mark.parametrize("leaves", [2, 4])
def test_a_thing_that_is_moved_shows_where_it_stood_and_where_it_is_brought(leaves: int) -> None:
    out = targets(*moved(np.array([0.0] * leaves + [0.4, 0.8, 1.0, 1.0])))
    assert out.shape == (leaves + 4, 2, 4)
    # known until the frame before it is seen to have moved, and nothing after that
    assert out[..., 3].tolist() == [[1.0, 1.0]] * leaves + [[0.0, 0.0]] * 4
    assert not out[leaves:].any()
    assert (out[:leaves] == out[0]).all()
    torch.testing.assert_close(out[0, THING, :3], torch.tensor([*FROM, TALL]), atol=0.012, rtol=0)
    torch.testing.assert_close(out[0, GOAL, :3], torch.tensor([*TO, TALL]), atol=0.012, rtol=0)


def test_where_nothing_leaves_the_hand_comes_to_the_thing() -> None:
    boxes = [[(*FROM, TALL), (0.0, 0.2, TALL)]] * 4
    grip = [(-0.2, -0.2, 0.25), (-0.2, -0.1, 0.2), (-0.15, 0.0, 0.15), (*FROM, 0.12)]
    out = targets(boxes, grip)
    torch.testing.assert_close(out[:, THING], torch.tensor([*END, 1.0]).expand(4, 4))
    assert not out[:, GOAL].any()


def test_what_moves_far_from_the_hand_is_not_what_it_handles() -> None:
    boxes = [[(*FROM, TALL), (0.1 - 0.1 * i, 0.2, TALL)] for i in range(4)]
    grip = [(-0.2, -0.2, 0.25), (-0.2, -0.1, 0.2), (-0.15, 0.0, 0.15), (*FROM, 0.12)]
    torch.testing.assert_close(targets(boxes, grip)[:, THING], torch.tensor([*END, 1.0]).expand(4, 4))
    boxes, grip = moved(np.array([0.0, 0.0, 0.5, 1.0, 1.0]))
    alone = targets(boxes, grip)
    for i, things in enumerate(boxes):  # another comes by itself where the hand never is
        things.append((-0.25, 0.25 - 0.03 * i, 0.05))
    assert alone[0, GOAL, 3] == 1
    torch.testing.assert_close(targets(boxes, grip), alone)


def test_a_thing_that_is_lifted_and_kept_has_no_goal() -> None:
    boxes, grip = moved(np.array([0.0, 0.0, 0.0, 0.0, 0.0]))
    grip[1:] = [(*FROM, 0.06), (*FROM, 0.16), (FROM[0] + 0.1, FROM[1], 0.26), (FROM[0] + 0.1, FROM[1], 0.26)]
    boxes[2] = [(*FROM, 0.16), (0.0, 0.2, TALL)]  # hides the place where it stood
    boxes[3:] = [[(FROM[0] + 0.1, FROM[1], 0.26), (0.0, 0.2, TALL)]] * 2
    out = targets(boxes, grip)
    assert out[..., 3].tolist() == [[1.0, 0.0], [1.0, 0.0], [0.0, 0.0], [0.0, 0.0], [0.0, 0.0]]
    torch.testing.assert_close(out[0, THING, :3], torch.tensor([*FROM, TALL]), atol=0.012, rtol=0)


def test_a_thing_of_too_few_points_is_not_known() -> None:
    boxes, grip = moved(np.array([0.0, 0.0, 0.5, 1.0, 1.0]))
    seen = depth(boxes)
    intrinsic, extrinsic = camera(len(boxes))
    first = torch.tensor([[*FROM, TALL]] * 3)
    hand = torch.tensor(grip, dtype=torch.float32)
    assert not hindsight_targets(first, first, hand, hand[-1], seen, intrinsic, extrinsic, margin=0.025).any()


def test_points_leave_when_a_frame_first_sees_through_them() -> None:
    boxes, _ = moved(np.array([0.0, 0.0, 0.5, 1.0]))
    boxes.append(boxes[0])  # it comes back
    seen = depth(boxes)
    intrinsic, extrinsic = camera(5)
    points = torch.tensor([[*FROM, TALL], [0.0, 0.2, TALL], [*FROM, 0.0], [9.0, 9.0, 0.1]])
    assert leave_frames(points, nearest_depth(seen), intrinsic, extrinsic, margin=0.025).tolist() == [2, 5, 5, 5]
