"""Rotations: yaw-pitch-roll, axis-angle and matrices, in radians. R = Rz(yaw) Ry(pitch) Rx(roll)."""

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


def euler_matrix(yaw: float, pitch: float, roll: float) -> Floats:
    """[3,3] rotation Rz(yaw) Ry(pitch) Rx(roll)."""
    cy, sy, cp, sp, cr, sr = (f(a) for a in (yaw, pitch, roll) for f in (np.cos, np.sin))
    return np.array(
        [
            [cy * cp, cy * sp * sr - sy * cr, cy * sp * cr + sy * sr],
            [sy * cp, sy * sp * sr + cy * cr, sy * sp * cr - cy * sr],
            [-sp, cp * sr, cp * cr],
        ]
    )


def matrix_euler(matrix: Floats) -> tuple[float, float, float]:
    """(yaw, pitch, roll) of a rotation whose pitch is inside (-pi/2, pi/2)."""
    pitch = float(np.arcsin(np.clip(-matrix[2, 0], -1.0, 1.0)))
    return float(np.arctan2(matrix[1, 0], matrix[0, 0])), pitch, float(np.arctan2(matrix[2, 1], matrix[2, 2]))


def rotvec_matrix(rotvec: Floats) -> Floats:
    """[3,3] rotation by |rotvec| about rotvec (Rodrigues)."""
    angle = float(np.linalg.norm(rotvec))
    if angle < 1e-12:
        return np.eye(3)
    x, y, z = rotvec / angle
    cross = np.array([[0.0, -z, y], [z, 0.0, -x], [-y, x, 0.0]])
    turned: Floats = np.eye(3) + np.sin(angle) * cross + (1.0 - np.cos(angle)) * (cross @ cross)
    return turned


def matrix_rotvec(matrix: Floats) -> Floats:
    """[3] axis-angle of a rotation by less than pi."""
    twice_sine = np.array([matrix[2, 1] - matrix[1, 2], matrix[0, 2] - matrix[2, 0], matrix[1, 0] - matrix[0, 1]])
    sine = 0.5 * float(np.linalg.norm(twice_sine))
    angle = float(np.arctan2(sine, 0.5 * (np.trace(matrix) - 1.0)))
    return np.zeros(3) if sine < 1e-12 else twice_sine * (angle / (2.0 * sine))


def matrix_quaternion(matrix: Floats) -> Floats:
    """[4] unit quaternion (w, x, y, z)."""
    w = 0.5 * np.sqrt(max(0.0, 1.0 + np.trace(matrix)))
    if w > 1e-4:
        x, y, z = (
            (matrix[2, 1] - matrix[1, 2]) / (4 * w),
            (matrix[0, 2] - matrix[2, 0]) / (4 * w),
            (matrix[1, 0] - matrix[0, 1]) / (4 * w),
        )
        return np.array([w, x, y, z])
    # A half turn: the axis is a column of R + 1.
    column = (matrix + np.eye(3))[:, int(np.argmax(np.diag(matrix)))]
    return np.array([0.0, *(column / np.linalg.norm(column))])


def wrap(angle: float, period: float = 2 * np.pi) -> float:
    """`angle` moved by whole periods into [-period/2, period/2)."""
    return float((angle + period / 2) % period - period / 2)
