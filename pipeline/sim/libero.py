"""The tabletop world as LIBERO's own HDF5 files.

libero_tabletop/pick_up_the_red_cube_demo.hdf5      a file for every instruction, with all its demonstrations
    data                 attributes problem_info (JSON with the instruction), bddl_file_name, env_args, ...
    data/demo_0          attributes num_samples, model_file, init_state
        actions, states, robot_states, rewards, dones
        obs/{agentview_rgb,eye_in_hand_rgb,ee_states,ee_pos,ee_ori,gripper_states,joint_states}

As in LIBERO, row i of `obs` is what was seen AFTER `actions[i]`, `states[i]` is the simulator's state before it, and
pictures are upside down (turned by 180 degrees). The hand has six joints and LIBERO's arm seven: the last of
`joint_states` is 0. `robot_states` are fingers 2, position 3 and orientation 4 (quaternion x, y, z, w).
"""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np

from data_specs.arrays import Array
from pipeline.sim.geometry import matrix_quaternion, rotvec_matrix
from pipeline.sim.mjcf import CONTROL_HZ, build_mjcf
from pipeline.sim.plan import Plan
from pipeline.sim.replay import replay

SUITE = "libero_tabletop"
VIEWS, SIZES = ("agent", "wrist"), (128, 128)
_CAMERAS = {"agent": "agentview_rgb", "wrist": "eye_in_hand_rgb"}


def prepare(plan: Plan) -> None:
    """As in `pipeline.sim.plan.Format`."""
    (plan.out / SUITE).mkdir()
    plan.parts.mkdir()


def write(plan: Plan, index: int) -> dict[str, Any]:
    """Write one demonstration into a file of its own; `finish` puts those of an instruction together."""
    import h5py

    episode = plan.episode(index)
    again = replay(episode)
    steps = len(again.target)
    after = episode.state[1:].astype(np.float64)
    with h5py.File(_part(plan, index), "w") as file:
        demo = file.create_group("demo")
        demo.attrs["num_samples"] = steps
        demo.attrs["model_file"] = build_mjcf(episode.scene)
        demo.attrs["init_state"] = again.flat[0]
        demo["actions"] = episode.action[:-1].astype(np.float64)
        demo["states"] = again.flat[:-1]
        demo["robot_states"] = np.concatenate([after[:, 6:8], after[:, :3], _quaternions(after[:, 3:6])], axis=1)
        demo["rewards"] = demo["dones"] = np.eye(steps, dtype=np.uint8)[-1]
        obs = demo.create_group("obs")
        obs["ee_states"], obs["ee_pos"], obs["ee_ori"] = after[:, :6], after[:, :3], after[:, 3:6]
        obs["gripper_states"] = after[:, 6:8]
        obs["joint_states"] = np.concatenate([again.joints[1:, :6], np.zeros((steps, 1))], axis=1)
        for view in plan.views:
            pictures = (episode.picture(float(t), view, plan.height, plan.width).rgb for t in episode.time[1:])
            obs[_CAMERAS[view]] = np.stack([rgb[::-1, ::-1] for rgb in pictures])
    return {"instruction": episode.scene.instruction, "task": episode.scene.task.name, "steps": steps}


def finish(plan: Plan, rows: list[dict[str, Any]]) -> None:
    """Put the demonstrations of each instruction into its file."""
    by_instruction: dict[str, list[int]] = {}
    for index, row in enumerate(rows):
        by_instruction.setdefault(row["instruction"], []).append(index)
    for instruction, indices in by_instruction.items():
        _write_file(plan, instruction, indices, [rows[index] for index in indices])
    shutil.rmtree(plan.parts)


def _write_file(plan: Plan, instruction: str, indices: list[int], rows: list[dict[str, Any]]) -> None:
    import h5py

    name = re.sub(r"\W+", "_", instruction)
    unfinished = plan.parts / f"{name}.whole"
    with h5py.File(unfinished, "w") as file:
        data = file.create_group("data")
        bddl = f"{SUITE}/{name}.bddl"
        problem = {"problem_name": "tabletop", "domain_name": "robosuite", "language_instruction": instruction}
        kwargs = {"control_freq": CONTROL_HZ, "camera_heights": plan.height, "camera_widths": plan.width}
        data.attrs["problem_info"] = json.dumps(problem)
        data.attrs["bddl_file_name"] = bddl
        data.attrs["bddl_file_content"] = f"(define (problem tabletop) (:language {instruction}))"
        data.attrs["env_name"] = "TabletopEnv"
        data.attrs["env_args"] = json.dumps(
            {"type": 1, "env_name": "TabletopEnv", "problem_name": "tabletop", "bddl_file": bddl, "env_kwargs": kwargs}
        )
        data.attrs["macros_image_convention"] = "opengl"
        data.attrs["num_demos"] = len(rows)
        data.attrs["total"] = sum(row["steps"] for row in rows)
        for number, index in enumerate(indices):
            with h5py.File(_part(plan, index), "r") as part:
                part.copy("demo", data, name=f"demo_{number}")
    unfinished.rename(plan.out / SUITE / f"{name}_demo.hdf5")


def _part(plan: Plan, index: int) -> Path:
    return plan.parts / f"{index:06d}.hdf5"


def _quaternions(rotvecs: Array) -> Array:
    """Axis-angle [T,3] as unit quaternions [T,4] (x, y, z, w)."""
    quaternions = [matrix_quaternion(rotvec_matrix(rotvec)) for rotvec in rotvecs]
    return np.stack([np.roll(quaternion, -1) for quaternion in quaternions])
