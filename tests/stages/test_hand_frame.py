import math

import pytest
import torch
from torch import Tensor

from stages.hand_frame import HandFrame, yaw_of
from stages.normalise import ActionStateNormaliser
from stages.rotations import axis_angle_to_matrix, matrix_to_axis_angle


def turn_about_z(angle: float) -> Tensor:
    return axis_angle_to_matrix(torch.tensor([0.0, 0.0, angle]))


def turned(state: Tensor, action: Tensor, angle: float) -> tuple[Tensor, Tensor]:
    """The same moments in a scene that is turned about z: hand, orientation, and both vectors of the actions."""
    turn = turn_about_z(angle)
    orientation = matrix_to_axis_angle(turn @ axis_angle_to_matrix(state[:, 3:6]))
    return (
        torch.cat([state[:, :3] @ turn.T, orientation, state[:, 6:]], dim=1),
        torch.cat([action[..., :3] @ turn.T, action[..., 3:6] @ turn.T, action[..., 6:]], dim=-1),
    )


def moments(tilt: float = 0.2, down: bool = False) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    state = torch.randn(5, 8, generator=generator)
    lean = axis_angle_to_matrix(torch.randn(5, 3, generator=generator) * tilt)
    heading = torch.stack([turn_about_z(angle) for angle in (-2.0, -0.5, 0.0, 0.9, 3.0)])
    flipped = axis_angle_to_matrix(torch.tensor([math.pi, 0.0, 0.0])) if down else torch.eye(3)
    state[:, 3:6] = matrix_to_axis_angle(heading @ lean @ flipped)
    return state, torch.randn(5, 10, 7, generator=generator)


def statistics(state: Tensor, action: Tensor) -> dict[str, dict[str, list[float]]]:
    def of(values: Tensor) -> dict[str, list[float]]:
        flat = values.flatten(0, -2).double()
        columns = {"mean": flat.mean(0), "std": flat.std(0), "min": flat.amin(0), "max": flat.amax(0)}
        columns |= {"q01": columns["min"], "q99": columns["max"]}
        return {name: column.tolist() for name, column in columns.items()}

    return {"state": of(state), "action": of(action)}


def made(state: Tensor, action: Tensor, mode: str = "quantile") -> ActionStateNormaliser:
    normaliser = ActionStateNormaliser(state=8, action=7, mode=mode, views=[HandFrame(8, 7)])  # type: ignore[arg-type]
    normaliser.set_statistics(statistics(state, action))
    return normaliser


@pytest.mark.parametrize("mode", ["mean_std", "min_max", "quantile"])
@pytest.mark.parametrize("down", [False, True], ids=["tabletop", "libero"])
def test_a_turned_scene_looks_the_same_and_is_answered_turned(mode: str, down: bool) -> None:
    state, action = moments(down=down)
    normaliser = made(state, action, mode)
    for angle in (0.3, -1.7, 3.1):
        state_turned, action_turned = turned(state, action, angle)
        for seen, seen_turned in (
            (normaliser.normalise_state(state), normaliser.normalise_state(state_turned)),
            (normaliser.normalise_action(action, state), normaliser.normalise_action(action_turned, state_turned)),
        ):
            torch.testing.assert_close(seen_turned, seen, atol=2e-4, rtol=0)
        answer = torch.randn(5, 10, 7)
        _, expected = turned(state, normaliser.restore_action(answer, state), angle)
        torch.testing.assert_close(normaliser.restore_action(answer, state_turned), expected, atol=5e-4, rtol=0)


def test_the_state_hides_where_the_hand_is_and_nothing_else() -> None:
    state, action = moments()
    normaliser = made(state, action)
    seen = normaliser.normalise_state(state)
    assert seen.shape == (5, 6)
    moved = state.clone()
    moved[:, :2] += 1
    assert torch.equal(normaliser.normalise_state(moved), seen)
    for dimension in (2, 3, 6, 7):
        changed = state.clone()
        changed[:, dimension] += 0.1
        assert not torch.allclose(normaliser.normalise_state(changed), seen, atol=1e-3), dimension


def test_actions_point_along_the_hand() -> None:
    state = torch.zeros(1, 8)
    state[0, 5] = math.pi / 2  # the hand's x axis is the world's y axis
    torch.testing.assert_close(yaw_of(state), torch.tensor([math.pi / 2]))
    frame = HandFrame(8, 7)
    along = torch.zeros(1, 1, 7)
    along[..., 1] = 1
    torch.testing.assert_close(frame.action(along, state)[0, 0, :3], torch.tensor([1.0, 0, 0]), atol=1e-6, rtol=0)
    torch.testing.assert_close(frame.undo_action(frame.action(along, state), state), along, atol=1e-6, rtol=0)


def test_yaw_and_tilt_have_no_jump_where_axis_angle_has_one() -> None:
    """A hand that points down as LIBERO writes it leans through an angle of pi: the vector jumps, what is seen not."""
    down = axis_angle_to_matrix(torch.tensor([math.pi, 0.0, 0.0]))
    leans = [axis_angle_to_matrix(torch.tensor([lean, 0.0, 0.0])) for lean in (-1e-3, 1e-3)]
    before, after = (torch.zeros(1, 8) for _ in range(2))
    before[:, 3:6], after[:, 3:6] = (matrix_to_axis_angle(lean @ down) for lean in leans)
    assert (before - after).abs().max() > 6
    frame = HandFrame(8, 7)
    torch.testing.assert_close(frame.state(before), frame.state(after), atol=3e-3, rtol=0)
    torch.testing.assert_close(yaw_of(before), yaw_of(after), atol=1e-3, rtol=0)


def test_components_that_never_move_stay_out_of_the_robot() -> None:
    state, action = moments()
    action[..., 3:5] = 0
    action[..., 2] = 0.25
    restored = made(state, action).restore_action(torch.randn(5, 10, 7), state)
    assert bool((restored[..., 3:5] == 0).all()) and bool((restored[..., 2] == 0.25).all())
    action[..., 0] = 0  # one of a pair: turned, both move
    restored = made(state, action).restore_action(torch.randn(5, 10, 7), state)
    assert bool((restored[..., 0] != 0).any())


def test_robots_without_such_a_state_are_refused() -> None:
    with pytest.raises(ValueError, match="frame=world"):
        HandFrame(2, 7)
    with pytest.raises(ValueError, match="no state"):
        HandFrame(8, 7).action(torch.zeros(1, 1, 7), None)
