"""Packages with the shape of gym-aloha's and hf-libero's programming interfaces, for tests without the real ones."""

from pathlib import Path
from textwrap import dedent

ALOHA = """
import types
import gymnasium
import numpy as np

RENDERED = []


class Physics:
    def __init__(self):
        self.qpos = np.zeros(14)

    def render(self, height, width, camera_id):
        RENDERED.append(camera_id)
        return np.full((height, width, 3), len(camera_id), np.uint8)


class Task:
    def get_qpos(self, physics):
        return physics.qpos.copy()

    def get_observation(self, physics):
        images = {name: physics.render(480, 640, name) for name in ("top", "angle", "front_close")}
        return {"qpos": self.get_qpos(physics), "images": images}


class AlohaEnv(gymnasium.Env):
    metadata = {"render_modes": ["rgb_array"], "render_fps": 50}

    def __init__(self, task, obs_type="pixels", render_mode="rgb_array"):
        assert obs_type == "pixels_agent_pos", obs_type
        self.action_space = gymnasium.spaces.Box(-1, 1, (14,), np.float32)
        self.observation_space = gymnasium.spaces.Dict({})
        self._env = types.SimpleNamespace(task=Task(), physics=Physics())

    def _seen(self):
        raw = self._env.task.get_observation(self._env.physics)
        return {"pixels": {"top": raw["images"]["top"].copy()}, "agent_pos": raw["qpos"]}

    def reset(self, seed=None, options=None):
        super().reset(seed=seed)
        self._env.physics.qpos[:] = np.random.RandomState(seed).uniform(-1, 1, 14)
        return self._seen(), {"is_success": False}

    def step(self, action):
        assert action.shape == (14,), action.shape
        self._env.physics.qpos[:] = action
        reward = 4 if action[13] > 0.5 else 0
        return self._seen(), reward, reward == 4, False, {"is_success": reward == 4}


for name in ("gym_aloha/AlohaTransferCube-v0", "gym_aloha/AlohaInsertion-v0"):
    gymnasium.registry.pop(name, None)  # of another test

for name, task in (("AlohaTransferCube-v0", "transfer_cube"), ("AlohaInsertion-v0", "insertion")):
    gymnasium.register(
        id=f"gym_aloha/{name}", entry_point=AlohaEnv, max_episode_steps=300, nondeterministic=True,
        kwargs={"obs_type": "pixels", "task": task},
    )
"""

LIBERO_INIT = """
import os

folder = os.environ.get("LIBERO_CONFIG_PATH", os.path.expanduser("~/.libero"))
config = os.path.join(folder, "config.yaml")
os.makedirs(folder, exist_ok=True)
if not os.path.exists(config):
    input("Do you want to specify a custom path for the dataset folder? (Y/N): ")


def get_libero_path(key):
    lines = dict(line.split(": ", 1) for line in open(config).read().splitlines())
    return lines[key].strip('"')
"""

LIBERO_BENCHMARK = """
import os
from collections import namedtuple
from libero.libero import get_libero_path

Task = namedtuple("Task", "name language problem problem_folder bddl_file init_states_file")


class Suite:
    def __init__(self, name="libero_spatial"):
        print("[info] using task orders")
        self.name = name

    def get_task(self, number):
        name = f"task_{number}"
        return Task(name, f"do task {number}", "Libero", self.name, f"{name}.bddl", f"{name}.pruned_init")

    def get_task_bddl_file_path(self, number):
        return os.path.join(get_libero_path("bddl_files"), self.name, f"task_{number}.bddl")


def get_benchmark_dict():
    return {"libero_spatial": Suite}
"""

LIBERO_ENVS = """
import numpy as np

LOG = []


class OffScreenRenderEnv:
    def __init__(self, bddl_file_name, camera_heights=128, camera_widths=128):
        LOG.append(("open", bddl_file_name, camera_heights))
        self.size, self.state, self.moved = camera_heights, None, np.zeros(3)

    def seed(self, seed):
        LOG.append(("seed", seed))

    def reset(self):
        self.moved = np.zeros(3)
        return self.see()

    def set_init_state(self, state):
        self.state = state
        LOG.append(("init", float(state[0])))
        return self.see()

    def step(self, action):
        LOG.append(("step", tuple(float(x) for x in action)))
        self.moved = self.moved + action[:3]
        return self.see(), 0.0, self.check_success(), {}

    def check_success(self):
        return bool(self.moved[2] < -2)

    def see(self):
        picture = np.zeros((self.size, self.size, 3), np.uint8)
        picture[0, 0] = 255  # of the upside-down picture
        return {
            "agentview_image": picture,
            "robot0_eye_in_hand_image": picture + 1,
            "robot0_eef_pos": self.moved,
            "robot0_eef_quat": np.array([1.0, 0.0, 0.0, 0.0]),
            "robot0_gripper_qpos": np.array([0.04, -0.04]),
        }

    def close(self):
        LOG.append(("close",))
"""


def write_gym_aloha(folder: Path) -> None:
    """A package `gym_aloha` under `folder`."""
    _write(folder / "gym_aloha" / "__init__.py", ALOHA)


def write_libero(folder: Path, states: int = 3) -> None:
    """A package `libero` under `folder`, with initial states of 10 tasks as hf-libero keeps them."""
    import numpy as np
    import torch

    root = folder / "libero" / "libero"
    _write(folder / "libero" / "__init__.py", "")
    _write(root / "__init__.py", LIBERO_INIT)
    _write(root / "benchmark" / "__init__.py", LIBERO_BENCHMARK)
    _write(root / "envs" / "__init__.py", LIBERO_ENVS)
    (root / "init_files" / "libero_spatial").mkdir(parents=True)
    for task in range(10):
        starts = np.arange(states * 4, dtype=np.float64).reshape(states, 4) + 100 * task
        torch.save(starts, root / "init_files" / "libero_spatial" / f"task_{task}.pruned_init")


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(dedent(text))
