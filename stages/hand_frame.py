"""Actions in the yaw frame of the hand: a policy that does not care how the scene is turned about the vertical.

Shape legend: B moments, H steps, S dimensions of a state, A of an action.
The world's z axis is up. R is the hand's orientation, and its yaw the heading of its x axis, atan2(R10, R00): smooth
for hands that point down, whichever of the two conventions (no rotation, or half a turn about x) they have there.
"""

import torch
from torch import Tensor

from stages.normalise import Statistics, View, fixed_statistics
from stages.rotations import axis_angle_to_matrix

BEFORE_FINGERS = 6
"""A state begins with position (3) and axis-angle orientation (3) in the world: tabletop's and LIBERO's `ee_states`."""

_TURNED = ((0, 1), (3, 4))
"""Horizontal components of an action: of its translation, and of its rotation as an axis-angle delta."""


class HandFrame(View):
    """Turns an action's deltas by minus the hand's yaw at the start of the chunk, and back; hides x, y and yaw.

    Both vectors of an action are turned: the translation (dimensions 0:3) and, where there are at least 6 dimensions,
    the rotation vector (3:6), for both are deltas in the world's axes; so turning world, hand and actions together
    changes nothing that the network sees. Absolute positions are not meant for it. All steps of a chunk take the
    yaw at its start, the only one that is known at inference.

    The state becomes [z, the world's up axis in the hand's frame (3: its tilt, free of yaw), dimensions 6 and more].
    """

    def __init__(self, state: int, action: int) -> None:
        if state < BEFORE_FINGERS or action < 3:
            raise ValueError(
                f"frame=hand needs states that begin with position and axis-angle orientation, got {state} dimensions, "
                f"and actions that begin with 3 deltas of position, got {action}: use frame=world"
            )
        self._pairs = _TURNED if action >= 6 else _TURNED[:1]

    def state_width(self, state: int) -> int:
        """S - 2: without x and y; up is 3 numbers as the orientation was."""
        return state - 2

    def statistics(self, statistics: Statistics) -> Statistics:
        """Horizontal components get one spread about 0, whatever way they are turned."""
        state, action = statistics["state"], statistics["action"]
        tilt = fixed_statistics(3)
        seen = {key: [state[key][2], *tilt[key], *state[key][BEFORE_FINGERS:]] for key in tilt}
        moved = {key: list(action[key]) for key in tilt}
        for pair in self._pairs:
            square = sum(action["mean"][i] ** 2 + action["std"][i] ** 2 for i in pair) / 2  # kept by any turn
            greatest = {
                sides: max(abs(action[side][i]) for i in pair for side in sides)
                for sides in (("min", "max"), ("q01", "q99"))
            }
            for i in pair:
                moved["mean"][i], moved["std"][i] = 0.0, square**0.5
                for (low, high), value in greatest.items():
                    moved[low][i], moved[high][i] = -value, value
        return {**statistics, "state": seen, "action": moved}

    def state(self, state_BS: Tensor) -> Tensor:
        """[B, S-2]."""
        up_B3 = axis_angle_to_matrix(state_BS[..., 3:BEFORE_FINGERS])[..., 2, :]
        return torch.cat([state_BS[..., 2:3], up_B3, state_BS[..., BEFORE_FINGERS:]], dim=-1)

    def action(self, action_BHA: Tensor, state_BS: Tensor | None) -> Tensor:
        """In the hand's frame."""
        return self._turn(action_BHA, -self._yaw(state_BS))

    def undo_action(self, action_BHA: Tensor, state_BS: Tensor | None) -> Tensor:
        """In the world's frame."""
        return self._turn(action_BHA, self._yaw(state_BS))

    def _yaw(self, state_BS: Tensor | None) -> Tensor:
        if state_BS is None:
            raise ValueError("frame=hand turns actions by the state's yaw, and the batch has no state")
        return yaw_of(state_BS)

    def _turn(self, action_BHA: Tensor, yaw_B: Tensor) -> Tensor:
        sine, cosine = yaw_B.sin()[:, None], yaw_B.cos()[:, None]
        columns = list(action_BHA.unbind(-1))
        for x, y in self._pairs:
            columns[x], columns[y] = (
                cosine * columns[x] - sine * columns[y],
                sine * columns[x] + cosine * columns[y],
            )
        return torch.stack(columns, dim=-1)


def yaw_of(state_BS: Tensor) -> Tensor:
    """The heading of the hand's x axis, radians [B], of states with the axis-angle orientation in dimensions 3:6."""
    matrix = axis_angle_to_matrix(state_BS[..., 3:BEFORE_FINGERS].float())
    return torch.atan2(matrix[..., 1, 0], matrix[..., 0, 0])


def turned(way: Tensor, yaw: Tensor) -> Tensor:
    """Ways [..., 3] of the world in the frame of a hand of that yaw [...]."""
    cosine, sine = yaw.cos(), yaw.sin()
    x, y, z = way.unbind(-1)
    return torch.stack([cosine * x + sine * y, cosine * y - sine * x, z], dim=-1)
