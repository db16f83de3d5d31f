"""The arm that is seen: shoulder and elbow bent so that the wrist meets the hand's flange. It touches nothing."""

import mujoco
import numpy as np

from pipeline.sim.geometry import Floats, matrix_quaternion
from pipeline.sim.mjcf import BASE, FLANGE, LINK, SHOULDER_HEIGHT


def place_arm(model: mujoco.MjModel, data: mujoco.MjData) -> None:
    """Set the mocap poses of turret, upper arm and forearm from the hand's pose, then update the kinematics.

    Two-link inverse kinematics in the vertical plane through base and flange, elbow up.
    """
    mujoco.mj_kinematics(model, data)
    hand = data.body("hand")
    flange = hand.xpos + hand.xmat.reshape(3, 3) @ np.array([0.0, 0.0, FLANGE])
    shoulder = np.array(BASE) + np.array([0.0, 0.0, SHOULDER_HEIGHT])
    out = flange - shoulder
    turn = float(np.arctan2(out[1], out[0]))
    across, up = float(np.hypot(out[0], out[1])), float(out[2])
    distance = min(float(np.hypot(across, up)), 2 * LINK - 1e-6)
    lift = float(np.arctan2(up, across)) + float(np.arccos(distance / (2 * LINK)))
    forward = np.array([np.cos(turn), np.sin(turn), 0.0])
    upper = np.cos(lift) * forward + np.sin(lift) * np.array([0.0, 0.0, 1.0])
    elbow = shoulder + LINK * upper
    fore = (flange - elbow) / np.linalg.norm(flange - elbow)
    _place(model, data, "turret", np.array(BASE), forward)
    _place(model, data, "upper", shoulder, upper)
    _place(model, data, "fore", elbow, fore)
    mujoco.mj_kinematics(model, data)


def _place(model: mujoco.MjModel, data: mujoco.MjData, name: str, position: Floats, x_axis: Floats) -> None:
    """Put mocap body `name` at `position` with its x axis along `x_axis` and its y axis level."""
    mocap = model.body(name).mocapid[0]
    y_axis = np.cross([0.0, 0.0, 1.0], x_axis)
    y_axis /= np.linalg.norm(y_axis)
    data.mocap_pos[mocap] = position
    data.mocap_quat[mocap] = matrix_quaternion(np.stack([x_axis, y_axis, np.cross(x_axis, y_axis)], axis=1))
