"""The physics: a scene, a hand that is sent by 7 numbers at 20 Hz, and what may be asked about it.

Action f4 [7] in [-1, 1], LIBERO's convention: (dx, dy, dz) in the world frame, 1 = 0.05 m; (droll, dpitch, dyaw)
as an axis-angle vector in the world frame, 1 = 0.5 rad; gripper, +1 closes and -1 opens. The deltas move the pose
that the hand is sent to, which stays inside `HAND_LOW`..`HAND_HIGH`; between -1 and +1 the fingers are sent to a
width in proportion.

State f4 [8]: position of the grip point between the fingertips (metres, world), its orientation as axis-angle
(radians; zero when the hand points straight down with the fingers closing along y, so that it never meets the jump
at pi), and the two fingers' positions (metres; +0.04 and -0.04 open, 0 closed: LIBERO's signs).
"""

import mujoco
import numpy as np
from numpy.typing import NDArray

from pipeline.sim.geometry import Floats, euler_matrix, matrix_euler, matrix_rotvec, rotvec_matrix
from pipeline.sim.layout import Scene
from pipeline.sim.mjcf import (
    CONTROL_HZ,
    FINGER_TRAVEL,
    HAND_HIGH,
    HAND_LOW,
    PHYSICS_HZ,
    SNAPSHOT_HZ,
    TILT_LIMIT,
    YAW_LIMIT,
    build_mjcf,
)

ACTION_DIM = 7
STATE_DIM = 8
POSITION_SCALE = 0.05  # metres for an action of 1
ROTATION_SCALE = 0.5  # radians for an action of 1
_SUBSTEPS = PHYSICS_HZ // CONTROL_HZ
_PER_SNAPSHOT = PHYSICS_HZ // SNAPSHOT_HZ
_HAND = ("x", "y", "z", "yaw", "pitch", "roll")


class World:
    """A scene in motion. Deterministic: equal scenes and equal actions give equal states, bit for bit."""

    def __init__(self, scene: Scene) -> None:
        self.scene = scene
        self.model = mujoco.MjModel.from_xml_string(build_mjcf(scene))
        self.data = mujoco.MjData(self.model)
        self._hand_qpos = [int(self.model.joint(name).qposadr[0]) for name in _HAND]
        self._finger_qpos = [int(self.model.joint(name).qposadr[0]) for name in ("left", "right")]
        self._bodies = [int(self.model.body(f"thing{i}").id) for i in range(len(scene.things))]
        self._fingers = {int(self.model.body(f"{side}_finger").id) for side in ("left", "right")}
        self._table = int(self.model.geom("table").id)
        self.reset()

    def reset(self) -> None:
        """Back to the start of the scene: fingers open, things at rest."""
        mujoco.mj_resetData(self.model, self.data)
        self._command = np.array([*self.scene.hand_position, self.scene.hand_yaw, 0.0, 0.0])
        self._width = FINGER_TRAVEL
        self.data.qpos[self._hand_qpos] = self._command
        self.data.qpos[self._finger_qpos] = FINGER_TRAVEL
        self.data.ctrl[:6] = self._command
        self.data.ctrl[6:] = FINGER_TRAVEL
        mujoco.mj_step(self.model, self.data, _SUBSTEPS)  # contacts settle within micrometres
        self.data.qvel[:] = 0.0
        mujoco.mj_forward(self.model, self.data)

    def step(self, action: NDArray[np.floating]) -> Floats:
        """Act for 1/20 s; the `qpos` [3, nq] of the three 60 Hz snapshots on the way, the last being the present."""
        start, start_width = self._command.copy(), self._width
        self._command, self._width = self.aimed(action)
        snapshots = np.empty((_SUBSTEPS // _PER_SNAPSHOT, self.model.nq))
        for k in range(_SUBSTEPS):
            blend = (k + 1) / _SUBSTEPS  # the servo follows a ramp: 20 Hz steps would shake what is held
            self.data.ctrl[:6] = start + blend * (self._command - start)
            self.data.ctrl[6:] = start_width + min(1.0, 2 * blend) * (self._width - start_width)
            mujoco.mj_step(self.model, self.data)
            if (k + 1) % _PER_SNAPSHOT == 0:
                snapshots[k // _PER_SNAPSHOT] = self.data.qpos
        mujoco.mj_forward(self.model, self.data)
        return snapshots

    def aimed(self, action: NDArray[np.floating]) -> tuple[Floats, float]:
        """Where `action` would send the hand from now: its `command` [6], and each finger's position in metres."""
        if action.shape != (ACTION_DIM,) or not np.isfinite(action).all():
            raise ValueError(f"an action is {ACTION_DIM} finite numbers in [-1, 1], got {action!r}")
        wanted = np.asarray(np.clip(action, -1.0, 1.0), dtype=np.float64)
        position = np.clip(self._command[:3] + POSITION_SCALE * wanted[:3], HAND_LOW, HAND_HIGH)
        rotation = rotvec_matrix(ROTATION_SCALE * wanted[3:6]) @ euler_matrix(*self._command[3:])
        yaw, pitch, roll = matrix_euler(rotation)
        command = np.array(
            [
                *position,
                np.clip(yaw, -YAW_LIMIT, YAW_LIMIT),
                np.clip(pitch, -TILT_LIMIT, TILT_LIMIT),
                np.clip(roll, -TILT_LIMIT, TILT_LIMIT),
            ]
        )
        return command, FINGER_TRAVEL * 0.5 * (1.0 - float(wanted[6]))

    @property
    def hand(self) -> tuple[Floats, Floats]:
        """Positions [8] and velocities [8] of the hand's joints: x, y, z, yaw, pitch, roll, left and right finger."""
        names = (*_HAND, "left", "right")
        dofs = [int(self.model.joint(name).dofadr[0]) for name in names]
        return np.array(self.data.qpos[[*self._hand_qpos, *self._finger_qpos]]), np.array(self.data.qvel[dofs])

    @property
    def qpos(self) -> Floats:
        """A copy of the generalised coordinates [nq]: all that a picture needs."""
        return np.array(self.data.qpos)

    @property
    def command(self) -> Floats:
        """Where the hand is sent [6]: x, y, z, yaw, pitch, roll."""
        return self._command.copy()

    @property
    def gripper_command(self) -> float:
        """The gripper number of the last action: +1 closed, -1 open."""
        return 1.0 - 2.0 * self._width / FINGER_TRAVEL

    @property
    def grip_position(self) -> Floats:
        """The grip point [3], metres."""
        return np.array(self.data.qpos[self._hand_qpos[:3]])

    def state(self) -> NDArray[np.float32]:
        """The proprioceptive state [8] described above."""
        hand = self.data.qpos[self._hand_qpos]
        left, right = self.data.qpos[self._finger_qpos]
        rotvec = matrix_rotvec(euler_matrix(*hand[3:]))
        return np.array([*hand[:3], *rotvec, left, -right], dtype=np.float32)

    def position(self, index: int) -> Floats:
        """Centre [3] of thing `index`, metres."""
        return np.array(self.data.xpos[self._bodies[index]])

    def yaw(self, index: int) -> float:
        """Heading of thing `index`'s x axis, radians."""
        matrix = self.data.xmat[self._bodies[index]]
        return float(np.arctan2(matrix[3], matrix[0]))

    def half_height(self, index: int) -> float:
        """Half the height of thing `index` as it stands, metres."""
        return self.scene.things[index].size[2]

    def in_frame_of(self, index: int, point: Floats) -> Floats:
        """`point` [3] in the frame of thing `index`."""
        body = self._bodies[index]
        return np.array(self.data.xmat[body].reshape(3, 3).T @ (point - self.data.xpos[body]))

    def speed(self, index: int) -> float:
        """How fast the centre of movable thing `index` moves, m/s."""
        address = int(self.model.body_dofadr[self._bodies[index]])
        return float(np.linalg.norm(self.data.qvel[address : address + 3]))

    def touching(self, one: int, other: int) -> bool:
        """Whether things `one` and `other` are in contact."""
        return self._bodies[other] in self._contacts(one)

    def touches_table(self, index: int) -> bool:
        """Whether thing `index` is in contact with the table."""
        return self._table in self._contact_geoms(index)

    def is_held(self, index: int) -> bool:
        """Whether both fingers touch thing `index`."""
        return self._fingers <= self._contacts(index)

    def _contact_geoms(self, index: int) -> set[int]:
        """The geoms in contact with thing `index`."""
        pairs = np.asarray(self.data.contact.geom).reshape(-1, 2)
        bodies = np.asarray(self.model.geom_bodyid)[pairs]
        mine = bodies == self._bodies[index]
        return {int(g) for g in pairs[mine[:, ::-1]]}

    def _contacts(self, index: int) -> set[int]:
        """The bodies in contact with thing `index`."""
        return {int(self.model.geom_bodyid[g]) for g in self._contact_geoms(index)}
