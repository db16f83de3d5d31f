"""LIBERO's suites by `hf-libero`, with the protocol that published results share.

An episode starts from one of the 50 recorded initial states of its task (Liu et al., NeurIPS 2023), things settle for
10 steps in which the hand stands still and open, and an episode fails at the suite's cap, a little over its longest
demonstration (Kim et al., "OpenVLA", CoRL 2024): 220, 280, 300, 520 and 400 steps for spatial, object, goal, 10 and 90.

State f4 [8] is that of the demonstrations: the hand's position, its orientation as axis-angle, two fingers. Action
f4 [7] in [-1, 1], the last +1 to close. Pictures come upside down and are turned by 180 degrees, as those of the
demonstrations are.
"""

import importlib.util
import os
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np

from data_specs.arrays import Array
from pipeline.config import FailedError, RequestError
from pipeline.evaluate.policy.aloha import episode_seed
from pipeline.evaluate.policy.environment import EnvironmentOptions, EnvironmentSpec, Observation, Step, View
from pipeline.evaluate.policy.graphics import opengl, opengl_fails
from pipeline.foreign import UNREADABLE

SETTLING_STEPS = 10
SIZE = 128
"""Pixels of the demonstrations' pictures."""

_CAPS = {"libero_spatial": 220, "libero_object": 280, "libero_goal": 300, "libero_10": 520, "libero_90": 400}
_COUNTS = {suite: 90 if suite == "libero_90" else 10 for suite in _CAPS}
_GROUPS = {suite: tuple(f"{suite}:{number}" for number in range(count)) for suite, count in _COUNTS.items()}
_CAMERAS = {"agentview": "agentview", "eye_in_hand": "robot0_eye_in_hand"}
_STILL = np.array([0, 0, 0, 0, 0, 0, -1], dtype=np.float32)

LIBERO = EnvironmentSpec(
    name="libero",
    tasks=tuple(task for tasks in _GROUPS.values() for task in tasks),
    groups=_GROUPS,
    default_tasks=_GROUPS["libero_spatial"],
    views=tuple(_CAMERAS),
    also_called={
        "image": "agentview",
        "agent": "agentview",
        "image2": "eye_in_hand",
        "wrist_image": "eye_in_hand",
        "wrist": "eye_in_hand",
    },
    state_dim=8,
    action_dim=7,
    low=(-1.0,) * 7,
    high=(1.0,) * 7,
    hz=20.0,
    max_steps={task: _CAPS[suite] for suite, tasks in _GROUPS.items() for task in tasks},
    slots=4,
)


class LiberoEnvironment:
    """One episode at a time. A task's simulator is built when an episode of another task starts: seconds."""

    def __init__(self, options: EnvironmentOptions) -> None:
        opengl()
        _answer_the_question()
        try:
            with _quiet():
                from libero.libero import benchmark, get_libero_path
                from libero.libero.envs import OffScreenRenderEnv
        except ModuleNotFoundError as error:
            raise RequestError(
                f"Environment libero needs hf-libero, which is not installed ({error}): pip install 'concerto-laq[sim]'"
            ) from None
        except (ImportError, RuntimeError, AttributeError) as error:
            raise opengl_fails("libero", error) from error
        self._options = options
        self._suites, self._path, self._open = benchmark.get_benchmark_dict(), get_libero_path, OffScreenRenderEnv
        self._simulator: Any = None
        self._task, self._instruction, self._steps = "", "", 0
        self._starts: Array = np.zeros((0, 0))
        self._seen: dict[str, Any] = {}

    @property
    def spec(self) -> EnvironmentSpec:
        """What it is."""
        return LIBERO

    def reset(self, *, seed: int, index: int, task: str) -> Observation:
        """Start from recorded state `index`, from the first again after the last, and let things settle."""
        with _quiet():
            self._load(task)
            self._simulator.seed(episode_seed(seed, index))
            self._simulator.reset()
        self._seen = self._simulator.set_init_state(self._starts[index % len(self._starts)])
        for _ in range(SETTLING_STEPS):
            self._seen, _, _, _ = self._simulator.step(_STILL)
        self._steps = 0
        return self.observe()

    def step(self, action: Array, *, look: bool = True) -> Step:
        """Act f4 [7] for 1/20 s."""
        self._seen, _, _, _ = self._simulator.step(np.clip(action, -1.0, 1.0))
        self._steps += 1
        success = bool(self._simulator.check_success())
        done = success or self._steps >= (self._options.max_steps or LIBERO.cap(self._task))
        return Step(observation=self.observe() if look else None, success=success, done=done)

    def observe(self) -> Observation:
        """The present moment."""
        views = {name: View(rgb=self._picture(name)) for name in self._options.views}
        return Observation(views=views, state=robot_state(self._seen), instruction=self._instruction)

    def picture(self) -> Array:
        """What the camera before the table sees."""
        return self._picture(LIBERO.views[0])

    def expert(self) -> Iterator[Array]:
        """There is none."""
        raise RequestError("Environment libero has no scripted expert.")

    def close(self) -> None:
        """Close the simulator."""
        if self._simulator is not None:
            self._simulator.close()
            self._simulator = None

    def _picture(self, view: str) -> Array:
        return np.ascontiguousarray(self._seen[f"{_CAMERAS[view]}_image"][::-1, ::-1], dtype=np.uint8)

    def _load(self, name: str) -> None:
        if name == self._task and self._simulator is not None:
            return
        self.close()
        suite, _, number = name.partition(":")
        tasks = self._suites[suite]()
        task = tasks.get_task(int(number))
        folder = Path(self._path("init_states")) / task.problem_folder
        self._starts = read_initial_states(folder / task.init_states_file)
        size = self._options.render_size or SIZE
        try:
            self._simulator = self._open(
                bddl_file_name=tasks.get_task_bddl_file_path(int(number)),
                camera_heights=size,
                camera_widths=size,
            )
        except FileNotFoundError as error:
            raise FailedError(
                f"LIBERO's meshes and textures are not there ({error}): hf-libero downloads them when it first runs. "
                "Without a network, copy them from another machine to ~/.cache/libero/assets."
            ) from error
        except (ImportError, RuntimeError, AttributeError) as error:
            raise opengl_fails("libero", error) from error
        self._task, self._instruction = name, task.language


def robot_state(seen: dict[str, Any]) -> Array:
    """State f4 [8] of robosuite's observation, as LIBERO's demonstrations have it."""
    parts = (seen["robot0_eef_pos"], axis_angle(seen["robot0_eef_quat"]), seen["robot0_gripper_qpos"])
    return np.concatenate([np.asarray(part, dtype=np.float64) for part in parts]).astype(np.float32)


def axis_angle(quaternion: Array) -> Array:
    """A unit quaternion [4] (x, y, z, w) as axis times angle [3], the angle in [0, 2 pi].

    As robosuite, and so the demonstrations, have it: a quaternion and its negative are not made the same, and a hand
    that points down, at an angle of pi, keeps the side that it is on.
    """
    w = float(np.clip(quaternion[3], -1.0, 1.0))
    sine = np.sqrt(1.0 - w * w)
    if np.isclose(sine, 0.0):
        return np.zeros(3)
    turned: Array = np.asarray(quaternion[:3]) * (2.0 * np.arccos(w) / sine)
    return turned


def read_initial_states(path: Path) -> Array:
    """The recorded initial states f8 [N,D] of a task; the file may hold an array and nothing that runs."""
    import torch
    from numpy._core.multiarray import _reconstruct

    allowed: list[Any] = [(_reconstruct, name) for name in _RECONSTRUCT]
    allowed += [np.ndarray, np.dtype, type(np.dtype(np.float64))]
    try:
        with torch.serialization.safe_globals(allowed):
            states = np.asarray(torch.load(path, map_location="cpu", weights_only=True), dtype=np.float64)
    except UNREADABLE as error:
        raise FailedError(
            f"{path}, the initial states of a task, is no array of numbers ({type(error).__name__}): reinstall "
            "hf-libero."
        ) from error
    if states.ndim != 2 or not len(states):
        raise FailedError(
            f"{path} holds an array of shape {states.shape}, expected states (50, D): reinstall hf-libero."
        )
    return states


_RECONSTRUCT = ("numpy.core.multiarray._reconstruct", "numpy._core.multiarray._reconstruct")


def _quiet() -> AbstractContextManager[Any]:
    """LIBERO and robosuite print as they go; stdout is for the answer."""
    return redirect_stdout(sys.stderr)


def _answer_the_question() -> None:
    """Write LIBERO's configuration where it has none: importing it would ask a question on standard input and wait."""
    folder = Path(os.environ.get("LIBERO_CONFIG_PATH", "~/.libero")).expanduser()
    config = folder / "config.yaml"
    package = importlib.util.find_spec("libero")
    if config.is_file() or package is None or not package.submodule_search_locations:
        return
    root = Path(next(iter(package.submodule_search_locations))) / "libero"
    paths = {
        "assets": root / "assets",
        "bddl_files": root / "bddl_files",
        "benchmark_root": root,
        "datasets": root.parent / "datasets",
        "init_states": root / "init_files",
    }
    folder.mkdir(parents=True, exist_ok=True)
    config.write_text("".join(f'{name}: "{path}"\n' for name, path in paths.items()))
