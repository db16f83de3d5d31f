"""ALOHA's simulated tasks by `gym-aloha`, with the protocol of ACT (Zhao et al., RSS 2023).

Two arms of 6 joints and a gripper each, 50 control steps a second, 400 steps an episode; success is the reward's
greatest value, 4. State and action f4 [14] are absolute joint positions, the grippers between 0 (closed) and 1.

gym-aloha renders three cameras at every step, whoever looks. Here a step renders nothing, and a look what is asked for.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np

from data_specs.arrays import Array
from pipeline.config import RequestError
from pipeline.evaluate.policy.environment import EnvironmentOptions, EnvironmentSpec, Observation, Step, View
from pipeline.evaluate.policy.graphics import opengl, opengl_fails

_DIMS = 14
_CAMERAS = {"top": "top", "angle": "angle", "vis": "front_close"}  # ACT's names of the simulator's cameras
_HEIGHT, _WIDTH = 480, 640
_TASKS = {
    # gym-aloha's name, and the instruction that LeRobot's copies of the demonstrations have
    "transfer_cube": ("AlohaTransferCube-v0", "Pick up the cube with the right arm and transfer it to the left arm."),
    "insertion": ("AlohaInsertion-v0", "Insert the peg into the socket."),
}
_BEST_REWARD = 4

ALOHA = EnvironmentSpec(
    name="aloha",
    tasks=tuple(_TASKS),
    default_tasks=("transfer_cube",),
    views=tuple(_CAMERAS),
    also_called={"cam_high": "top"},
    state_dim=_DIMS,
    action_dim=_DIMS,
    low=(-1.0,) * _DIMS,
    high=(1.0,) * _DIMS,
    hz=50.0,
    max_steps={"": 400},
    slots=4,
)


class AlohaEnvironment:
    """One episode at a time, of either task."""

    def __init__(self, options: EnvironmentOptions) -> None:
        opengl()
        try:
            import gym_aloha  # noqa: F401  it registers its environments
            import gymnasium
        except ModuleNotFoundError as error:
            raise RequestError(
                f"Environment aloha needs gym-aloha, which is not installed ({error}): pip install 'concerto-laq[sim]'"
            ) from None
        except (ImportError, RuntimeError, AttributeError) as error:
            raise opengl_fails("aloha", error) from error
        self._options, self._make = options, gymnasium.make
        self._environments: dict[str, Any] = {}
        self._task, self._steps = "", 0
        self._state: Array = np.zeros(_DIMS, np.float32)

    @property
    def spec(self) -> EnvironmentSpec:
        """What it is."""
        return ALOHA

    def reset(self, *, seed: int, index: int, task: str) -> Observation:
        """Start episode `index` of `seed`: where cube, peg and socket lie."""
        self._task, self._steps = task, 0
        seen, _ = self._environment().reset(seed=episode_seed(seed, index))
        self._state = np.asarray(seen["agent_pos"], dtype=np.float32)
        return self.observe()

    def step(self, action: Array, *, look: bool = True) -> Step:
        """Send the joints to f4 [14] for 1/50 s."""
        seen, reward, _, _, _ = self._environment().step(np.asarray(action))
        self._state = np.asarray(seen["agent_pos"], dtype=np.float32)
        self._steps += 1
        success = bool(reward == _BEST_REWARD)
        done = success or self._steps >= (self._options.max_steps or ALOHA.cap(self._task))
        return Step(observation=self.observe() if look else None, success=success, done=done)

    def observe(self) -> Observation:
        """The present moment."""
        views = {name: View(rgb=self._render(name)) for name in self._options.views}
        return Observation(views=views, state=self._state.copy(), instruction=_TASKS[self._task][1])

    def picture(self) -> Array:
        """What the camera over the table sees."""
        return self._render(ALOHA.views[0])[::2, ::2]

    def expert(self) -> Iterator[Array]:
        """There is none."""
        raise RequestError("Environment aloha has no scripted expert.")

    def close(self) -> None:
        """Close the simulators."""
        for environment in self._environments.values():
            environment.close()
        self._environments.clear()

    def _environment(self) -> Any:
        """The simulator of the present task; its own observations show nothing."""
        if self._task not in self._environments:
            name = f"gym_aloha/{_TASKS[self._task][0]}"
            made = self._make(name, obs_type="pixels_agent_pos", disable_env_checker=True, max_episode_steps=10**9)
            simulator: Any = made.unwrapped
            task = simulator._env.task
            nothing = np.zeros((0, 0, 3), np.uint8)
            task.get_observation = lambda physics: {"qpos": task.get_qpos(physics), "images": {"top": nothing}}
            self._environments[self._task] = made
        return self._environments[self._task]

    def _render(self, view: str) -> Array:
        physics = self._environment().unwrapped._env.physics
        try:
            return np.array(physics.render(height=_HEIGHT, width=_WIDTH, camera_id=_CAMERAS[view]), dtype=np.uint8)
        except (ImportError, RuntimeError, AttributeError) as error:
            raise opengl_fails("aloha", error) from error


def episode_seed(seed: int, index: int) -> int:
    """The seed of an episode, as simulators that take one number want it: below 2**32, unlike that of any neighbour."""
    return int(np.random.SeedSequence([seed, index]).generate_state(1)[0])
