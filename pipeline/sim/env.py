"""The tabletop world as a Gymnasium environment."""

from dataclasses import replace
from typing import Any, SupportsFloat

import gymnasium
import mujoco
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from pipeline.config import suggest
from pipeline.sim.camera import VIEWS, check_view
from pipeline.sim.distractors import Distractor, sample_distractors
from pipeline.sim.layout import Scene, sample_scene, unseen_camera
from pipeline.sim.mjcf import CONTROL_HZ, build_mjcf
from pipeline.sim.render import Picture, Renderer
from pipeline.sim.tasks import find_tasks, succeeded
from pipeline.sim.world import ACTION_DIM, STATE_DIM, World

CAMERAS = ("seen", "unseen")
Observation = dict[str, Any]  # of arrays


class TabletopEnv(gymnasium.Env[Observation, NDArray[np.float32]]):
    """A gripper at a table, 20 steps a second.

    Observation: a dictionary with an image u1 [size,size,3] for each of `views`, with `depth=True` also
    `<view>_depth` f4 [size,size] in metres, and `state` f4 [8]. State and action are those of `pipeline.sim.world`.
    `info` has `instruction` (English), `task` and `success`. The reward is 1 in the step in which the task is done,
    which ends the episode, and 0 before; after `max_steps` it is truncated.

    With `cameras=True` also `<view>_intrinsic` f4 [3,3] (pixels) and `<view>_extrinsic` f4 [3,4] (OpenCV
    camera-from-world), as a clip of the dataset has them.

    `reset(seed=s)` starts the same scene with the same bytes every time; `reset()` goes on to another. The same seed
    gives the same scene and physics whatever the views, with `camera="unseen"` (the agent's camera stands where no
    recorded episode has it: see `pipeline.sim.layout.unseen_camera`) and with `distractors=True` (things move in view
    that take no part) as without.
    """

    metadata: dict[str, Any] = {"render_modes": ["rgb_array"], "render_fps": CONTROL_HZ}  # noqa: RUF012 (Gymnasium's)

    def __init__(
        self,
        tasks: str = "all",
        *,
        views: tuple[str, ...] = VIEWS,
        size: int = 224,
        depth: bool = False,
        cameras: bool = False,
        camera: str = "seen",
        distractors: bool = False,
        max_steps: int = 200,
        render_mode: str | None = None,
    ) -> None:
        if render_mode not in (None, "rgb_array"):
            raise ValueError(f"Unknown render_mode {render_mode!r}; choose 'rgb_array' or None.")
        if camera not in CAMERAS:
            raise ValueError(f"Unknown camera {camera!r}; choose from {', '.join(CAMERAS)}.{suggest(camera, CAMERAS)}")
        if size < 1 or max_steps < 1:
            raise ValueError(f"Expected size and max_steps of at least 1, got {size} and {max_steps}.")
        self.render_mode = render_mode
        self._tasks = find_tasks(tasks)
        self._views = tuple(check_view(view) for view in views)
        self._size, self._depth, self._cameras, self._max_steps = size, depth, cameras, max_steps
        self._unseen, self._distracted = camera == "unseen", distractors
        self._steps = 0
        self._world: World | None = None
        self._renderer: Renderer | None = None
        self.action_space = spaces.Box(-1.0, 1.0, (ACTION_DIM,), np.float32)
        boxes: dict[str, spaces.Space[Any]] = {"state": spaces.Box(-np.inf, np.inf, (STATE_DIM,), np.float32)}
        for view in self._views:
            boxes[view] = spaces.Box(0, 255, (size, size, 3), np.uint8)
            if depth:
                boxes[f"{view}_depth"] = spaces.Box(0.0, 6.5535, (size, size), np.float32)
            if cameras:
                boxes[f"{view}_intrinsic"] = spaces.Box(-np.inf, np.inf, (3, 3), np.float32)
                boxes[f"{view}_extrinsic"] = spaces.Box(-np.inf, np.inf, (3, 4), np.float32)
        self.observation_space: spaces.Space[Observation] = spaces.Dict(boxes)

    @property
    def world(self) -> World:
        """The physics of the present episode, for experts and tests."""
        if self._world is None:
            raise RuntimeError("call reset() first")
        return self._world

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        """Start an episode; `options={"task": "push"}` picks the task, which is otherwise drawn from `tasks`."""
        super().reset(seed=seed)
        tasks = find_tasks((options or {}).get("task", [task.name for task in self._tasks]))
        number = int(self.np_random.integers(2**63))
        rng = np.random.default_rng(number)
        scene = sample_scene(tasks[rng.integers(len(tasks))], rng)
        if self._unseen:
            scene = replace(scene, look=unseen_camera(scene.look, np.random.default_rng([number, 1])))
        self._start(scene, sample_distractors(scene, np.random.default_rng([number, 2])) if self._distracted else ())
        return self._observe(), self._info()

    def step(self, action: NDArray[np.float32]) -> tuple[Observation, SupportsFloat, bool, bool, dict[str, Any]]:
        """Act for 1/20 s."""
        self.world.step(np.asarray(action))
        self._steps += 1
        info = self._info()
        done = bool(info["success"])
        return self._observe(), float(done), done, self._steps >= self._max_steps, info

    def render(self) -> NDArray[np.uint8] | None:
        """The agent view u1 [size,size,3], or None without a render mode."""
        return None if self.render_mode is None else self.picture("agent").rgb

    def picture(self, view: str) -> Picture:
        """Everything that `view` sees now: colour, depth, normals, segments, camera."""
        assert self._renderer is not None, "call reset() first"
        time = self._steps / CONTROL_HZ
        return self._renderer.render(self.world.qpos, check_view(view), self._size, self._size, time)

    def _start(self, scene: Scene, distractors: tuple[Distractor, ...]) -> None:
        self._world = World(scene)
        model = self._world.model
        if distractors:  # seen and not felt: physics never knows of them
            model = mujoco.MjModel.from_xml_string(build_mjcf(scene, distractors))
        self._renderer = Renderer(scene, model, distractors=distractors)
        self._steps = 0

    def _observe(self) -> Observation:
        observation: Observation = {"state": self.world.state()}
        for view in self._views:
            picture = self.picture(view)
            observation[view] = picture.rgb
            if self._depth:
                observation[f"{view}_depth"] = picture.depth
            if self._cameras:
                observation[f"{view}_intrinsic"] = picture.intrinsic
                observation[f"{view}_extrinsic"] = picture.extrinsic
        return observation

    def _info(self) -> dict[str, Any]:
        scene = self.world.scene
        return {"instruction": scene.instruction, "task": scene.task.name, "success": succeeded(self.world)}
