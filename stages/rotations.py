"""Rotations as axis-angle, quaternion, 6 numbers and matrix, and which of them a policy sees in an action.

Axis-angle [...,3] is the axis times the angle in radians. Quaternions [...,4] are unit (w, x, y, z); q and -q are the
same rotation. 6D [...,6] is the first two columns of the matrix (Zhou et al., On the Continuity of Rotation
Representations, CVPR 2019): the only one of the three that is continuous everywhere. Matrices are [...,3,3].
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from stages.normalise import Statistics, View, fixed_statistics, spliced

Rotation = Literal["axis_angle", "quaternion", "6d"]
WIDTH: dict[str, int] = {"axis_angle": 3, "quaternion": 4, "6d": 6}


def axis_angle_to_matrix(vector: Tensor) -> Tensor:
    """[...,3] → [...,3,3] (Rodrigues), smooth through the zero rotation."""
    return quaternion_to_matrix(axis_angle_to_quaternion(vector))


def matrix_to_axis_angle(matrix: Tensor) -> Tensor:
    """[...,3,3] → [...,3], angles in [0, pi]."""
    return quaternion_to_axis_angle(matrix_to_quaternion(matrix))


def axis_angle_to_quaternion(vector: Tensor) -> Tensor:
    """[...,3] → [...,4]."""
    half = torch.linalg.vector_norm(vector, dim=-1, keepdim=True) / 2
    # sin(h) / h through 0: sinc(x) is sin(pi x) / (pi x)
    return torch.cat([half.cos(), 0.5 * torch.sinc(half / torch.pi) * vector], dim=-1)


def quaternion_to_axis_angle(quaternion: Tensor) -> Tensor:
    """[...,4] → [...,3], angles in [0, pi]; q and -q give the same."""
    quaternion = torch.where(quaternion[..., :1] < 0, -quaternion, quaternion)
    real, vector = quaternion[..., :1], quaternion[..., 1:]
    sine = torch.linalg.vector_norm(vector, dim=-1, keepdim=True)
    angle = 2 * torch.atan2(sine, real)
    return vector * torch.where(sine > 1e-7, angle / sine.clamp_min(1e-7), 2.0)


def quaternion_to_matrix(quaternion: Tensor) -> Tensor:
    """[...,4] → [...,3,3]; a quaternion that is not quite unit is made so."""
    w, x, y, z = torch.nn.functional.normalize(quaternion, dim=-1).unbind(-1)
    rows = [
        torch.stack([1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)], dim=-1),
        torch.stack([2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)], dim=-1),
        torch.stack([2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)], dim=-1),
    ]
    return torch.stack(rows, dim=-2)


def matrix_to_quaternion(matrix: Tensor) -> Tensor:
    """[...,3,3] → [...,4] with w >= 0.

    Of the four products q q_i, each a column that is free of cancellation where its q_i is large, the largest is taken.
    """
    m = matrix
    xx, yy, zz = m[..., 0, 0], m[..., 1, 1], m[..., 2, 2]
    xw, yw, zw = m[..., 2, 1] - m[..., 1, 2], m[..., 0, 2] - m[..., 2, 0], m[..., 1, 0] - m[..., 0, 1]
    xy, xz, yz = m[..., 1, 0] + m[..., 0, 1], m[..., 0, 2] + m[..., 2, 0], m[..., 2, 1] + m[..., 1, 2]
    products = torch.stack(  # 4 q_i q_j, symmetric
        [
            torch.stack([1 + xx + yy + zz, xw, yw, zw], dim=-1),
            torch.stack([xw, 1 + xx - yy - zz, xy, xz], dim=-1),
            torch.stack([yw, xy, 1 - xx + yy - zz, yz], dim=-1),
            torch.stack([zw, xz, yz, 1 - xx - yy + zz], dim=-1),
        ],
        dim=-2,
    )
    largest = products.diagonal(dim1=-2, dim2=-1).argmax(-1)
    column = torch.take_along_dim(products, largest[..., None, None], dim=-2).squeeze(-2)
    quaternion = torch.nn.functional.normalize(column, dim=-1)
    return torch.where(quaternion[..., :1] < 0, -quaternion, quaternion)


def matrix_to_6d(matrix: Tensor) -> Tensor:
    """[...,3,3] → [...,6]: first column, then second."""
    return matrix[..., :2].transpose(-1, -2).flatten(-2)


def matrix_from_6d(numbers: Tensor) -> Tensor:
    """[...,6] → [...,3,3] by Gram-Schmidt: any two vectors that are not parallel give a rotation."""
    first = torch.nn.functional.normalize(numbers[..., :3], dim=-1)
    second = numbers[..., 3:]
    second = torch.nn.functional.normalize(second - (first * second).sum(-1, keepdim=True) * first, dim=-1)
    return torch.stack([first, second, torch.linalg.cross(first, second)], dim=-1)


def one_hemisphere(quaternion_BH4: Tensor) -> Tensor:
    """The same rotations with the signs of one smooth path a sequence [...,H,4]: the antipodal case.

    The first has its first number of at least 1e-6 in size positive (w, unless it is a half turn); each later one the
    sign that is nearer to the one before. So equal rotations have equal targets, and a turn through w = 0 has no jump
    by a full sphere inside a chunk.
    """
    first = quaternion_BH4[..., 0, :]
    leading = (first.abs() >= 1e-6).float().argmax(-1, keepdim=True)
    start = torch.where(first.gather(-1, leading) < 0, -1.0, 1.0)
    step = (quaternion_BH4[..., 1:, :] * quaternion_BH4[..., :-1, :]).sum(-1)
    turns = torch.where(step < 0, -1.0, 1.0)
    signs = torch.cat([start, turns], dim=-1).cumprod(-1)
    return quaternion_BH4 * signs[..., None].to(quaternion_BH4.dtype)


def to_matrix(values: Tensor, kind: Rotation) -> Tensor:
    """A representation [...,WIDTH[kind]] as matrices [...,3,3]."""
    if kind == "axis_angle":
        return axis_angle_to_matrix(values)
    return quaternion_to_matrix(values) if kind == "quaternion" else matrix_from_6d(values)


def from_matrix(matrix: Tensor, kind: Rotation) -> Tensor:
    """The inverse of `to_matrix`; quaternions with w >= 0."""
    if kind == "axis_angle":
        return matrix_to_axis_angle(matrix)
    return matrix_to_quaternion(matrix) if kind == "quaternion" else matrix_to_6d(matrix)


@dataclass(frozen=True, kw_only=True)
class RotationConfig:
    """An absolute rotation inside an action, and what the network sees of it.

    Rotations that are deltas need none of this: 3 small numbers beside 3 of position, LIBERO's "6 deltas", are kept.

    Attributes:
        start: the action's dimension where the rotation begins; -1 for none.
        stored: how the dataset writes it. seen: what the network is taught and answers.
    """

    start: int = -1
    stored: Rotation = "axis_angle"
    seen: Rotation = "6d"


class RotationView(View):
    """Replaces the absolute rotation of an action by another representation; states are left alone.

    The numbers of a rotation are not normalised (they are in [-1, 1], or radians for axis-angle).
    """

    def __init__(self, config: RotationConfig, action: int) -> None:
        self._config = config
        self._stop = config.start + WIDTH[config.stored]
        if config.start < 0 or self._stop > action:
            raise ValueError(
                f"an action of {action} dimensions has no rotation of {WIDTH[config.stored]} numbers "
                f"({config.stored}) from dimension {config.start} on: set rotation.start and rotation.stored"
            )

    def action_width(self, action: int) -> int:
        """Dimensions with the other representation."""
        return action - WIDTH[self._config.stored] + WIDTH[self._config.seen]

    def statistics(self, statistics: Statistics) -> Statistics:
        """Those of the rotation's numbers leave them as they are."""
        fixed = fixed_statistics(WIDTH[self._config.seen])
        return {**statistics, "action": spliced(statistics["action"], self._config.start, self._stop, fixed)}

    def action(self, action_BHA: Tensor, state_BS: Tensor | None) -> Tensor:
        """As the network sees it."""
        start, config = self._config.start, self._config
        values = from_matrix(to_matrix(action_BHA[..., start : self._stop], config.stored), config.seen)
        if config.seen == "quaternion":
            values = one_hemisphere(values)
        return torch.cat([action_BHA[..., :start], values, action_BHA[..., self._stop :]], dim=-1)

    def undo_action(self, action_BHA: Tensor, state_BS: Tensor | None) -> Tensor:
        """As the dataset writes it."""
        start, config = self._config.start, self._config
        stop = start + WIDTH[config.seen]
        values = from_matrix(to_matrix(action_BHA[..., start:stop], config.seen), config.stored)
        return torch.cat([action_BHA[..., :start], values, action_BHA[..., stop:]], dim=-1)
