import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from pipeline.sim.geometry import euler_matrix, matrix_euler, matrix_quaternion, matrix_rotvec, rotvec_matrix, wrap

angle = st.floats(-1.5, 1.5)


@given(yaw=st.floats(-3.1, 3.1), pitch=angle, roll=angle)
def test_yaw_pitch_roll_come_back(yaw: float, pitch: float, roll: float) -> None:
    matrix = euler_matrix(yaw, pitch, roll)
    np.testing.assert_allclose(matrix @ matrix.T, np.eye(3), atol=1e-12)
    np.testing.assert_allclose(matrix_euler(matrix), (yaw, pitch, roll), atol=1e-9)


@given(x=angle, y=angle, z=angle)
def test_axis_angle_comes_back(x: float, y: float, z: float) -> None:
    vector = np.array([x, y, z])
    np.testing.assert_allclose(matrix_rotvec(rotvec_matrix(vector)), vector, atol=1e-7)


@given(yaw=st.floats(-3.1, 3.1), pitch=angle, roll=angle)
def test_quaternion_is_the_same_rotation(yaw: float, pitch: float, roll: float) -> None:
    import mujoco

    matrix, out = euler_matrix(yaw, pitch, roll), np.empty(9)
    mujoco.mju_quat2Mat(out, matrix_quaternion(matrix))
    np.testing.assert_allclose(out.reshape(3, 3), matrix, atol=1e-6)


def test_half_turn_quaternion() -> None:
    np.testing.assert_allclose(np.abs(matrix_quaternion(np.diag([-1.0, 1.0, -1.0]))), [0, 0, 1, 0], atol=1e-12)


def test_wrap() -> None:
    assert wrap(3.5 * np.pi) == -0.5 * np.pi
    assert abs(wrap(0.6 * np.pi, np.pi) + 0.4 * np.pi) < 1e-12
