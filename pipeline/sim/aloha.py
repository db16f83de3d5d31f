"""The tabletop world as the HDF5 files of ACT's ALOHA simulation.

sim_tabletop_scripted/episode_0.hdf5      attribute sim = True
    observations/{qpos,qvel}              f4 [T,14]
    observations/images/{agent,wrist}     u1 [T,480,640,3], a chunk a picture
    action                                f4 [T,14]

The world has one arm, and it is the left one: its six joints x, y, z (metres) and yaw, pitch, roll (radians) stand
where ALOHA has waist to wrist, and its gripper is the opening of the fingers from 0 (closed) to 1, as ALOHA
normalises it. The right arm's seven numbers are always `RIGHT_ARM` in `qpos` and `action` and 0 in `qvel`.
As in ALOHA `action` is absolute: the pose and the opening that the arm is sent to. Row t is what was seen before
`action[t]`. The files of ALOHA do not say how many rows a second has: ALOHA has 50, these have 20 (read them with
`dataset.hz=20`).
"""

from typing import Any

import numpy as np

from data_specs.arrays import Array
from pipeline.sim.geometry import Floats
from pipeline.sim.mjcf import FINGER_TRAVEL
from pipeline.sim.plan import Plan
from pipeline.sim.replay import replay

FOLDER = "sim_tabletop_scripted"
VIEWS, SIZES = ("agent", "wrist"), (480, 640)
RIGHT_ARM = (0.0, -0.96, 1.16, 0.0, -0.3, 0.0, 0.0)
"""ALOHA's resting pose with the gripper closed."""


def prepare(plan: Plan) -> None:
    """As in `pipeline.sim.plan.Format`."""
    (plan.out / FOLDER).mkdir()


def write(plan: Plan, index: int) -> dict[str, Any]:
    """Write one episode, whole or not at all."""
    import h5py

    episode = plan.episode(index)
    again = replay(episode)
    steps = len(again.target)
    final = plan.out / FOLDER / f"episode_{index}.hdf5"
    unfinished = final.with_name(f".{final.name}.tmp")
    with h5py.File(unfinished, "w") as file:
        file.attrs["sim"] = True
        observations = file.create_group("observations")
        images = observations.create_group("images")
        for view in plan.views:
            shape = (plan.height, plan.width, 3)
            data = images.create_dataset(view, (steps, *shape), dtype="uint8", chunks=(1, *shape))
            for step, time in enumerate(episode.time[:-1]):
                data[step] = episode.picture(float(time), view, plan.height, plan.width).rgb
        observations["qpos"] = _both(_left(again.joints[:-1]), RIGHT_ARM)
        observations["qvel"] = _both(_left(again.speeds[:-1]), (0.0,) * 7)
        file["action"] = _both(again.target, RIGHT_ARM)
    unfinished.rename(final)
    return {"steps": steps}


def finish(plan: Plan, rows: list[dict[str, Any]]) -> None:
    """Nothing comes last: each episode stands for itself."""


def _left(joints: Floats) -> Floats:
    """Six joints and the opening of the fingers [T,7], of the joints [T,8] with both fingers."""
    opening = joints[:, 6:8].mean(axis=1, keepdims=True) / FINGER_TRAVEL
    return np.concatenate([joints[:, :6], opening], axis=1)


def _both(left: Floats, right: tuple[float, ...]) -> Array:
    return np.concatenate([left, np.tile(right, (len(left), 1))], axis=1).astype(np.float32)
