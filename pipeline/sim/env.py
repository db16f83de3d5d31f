"""The tabletop world as a Gymnasium environment."""

from typing import Any, SupportsFloat

import gymnasium
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from pipeline.sim.camera import VIEWS, check_view
from pipeline.sim.layout import Scene, sample_scene
from pipeline.sim.mjcf import CONTROL_HZ
from pipeline.sim.render import Picture, Renderer
from pipeline.sim.tasks import find_tasks, succeeded
from pipeline.sim.world import ACTION_DIM, STATE_DIM, World

Observation = dict[str, Any]  # of arrays


class TabletopEnv(gymnasium.Env[Observation, NDArray[np.float32]]):
    """A gripper at a table, 20 steps a second.

    Observation: a dictionary with an image u1 [size,size,3] for each of `views`, with `depth=True` also
    `<view>_depth` f4 [size,size] in metres, and `state` f4 [8]. State and action are those of `pipeline.sim.world`.
    `info` has `instruction` (English), `task` and `success`. The reward is 1 in the step in which the task is done,
    which ends the episode, and 0 before; after `max_steps` it is truncated.

    `reset(seed=s)` starts the same scene with the same bytes every time; `reset()` goes on to another.
    """

    metadata: dict[str, Any] = {"render_modes": ["rgb_array"], "render_fps": CONTROL_HZ}  # noqa: RUF012 (Gymnasium's)

    def __init__(
        self,
        tasks: str = "all",
        *,
        views: tuple[str, ...] = VIEWS,
        size: int = 224,
        depth: bool = False,
        max_steps: int = 200,
        render_mode: str | None = None,
    ) -> None:
        if render_mode not in (None, "rgb_array"):
            raise ValueError(f"Unknown render_mode {render_mode!r}; choose 'rgb_array' or None.")
        if size < 1 or max_steps < 1:
            raise ValueError(f"Expected size and max_steps of at least 1, got {size} and {max_steps}.")
        self.render_mode = render_mode
        self._tasks = find_tasks(tasks)
        self._views = tuple(check_view(view) for view in views)
        self._size, self._depth, self._max_steps = size, depth, max_steps
        self._steps = 0
        self._world: World | None = None
        self._renderer: Renderer | None = None
        self.action_space = spaces.Box(-1.0, 1.0, (ACTION_DIM,), np.float32)
        boxes: dict[str, spaces.Space[Any]] = {"state": spaces.Box(-np.inf, np.inf, (STATE_DIM,), np.float32)}
        for view in self._views:
            boxes[view] = spaces.Box(0, 255, (size, size, 3), np.uint8)
            if depth:
                boxes[f"{view}_depth"] = spaces.Box(0.0, 6.5535, (size, size), np.float32)
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
        rng = np.random.default_rng(self.np_random.integers(2**63))
        self._start(sample_scene(tasks[rng.integers(len(tasks))], rng))
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
        return self._renderer.render(self.world.qpos, check_view(view), self._size, self._size)

    def _start(self, scene: Scene) -> None:
        self._world = World(scene)
        self._renderer = Renderer(scene, self._world.model)
        self._steps = 0

    def _observe(self) -> Observation:
        observation: Observation = {"state": self.world.state()}
        for view in self._views:
            picture = self.picture(view)
            observation[view] = picture.rgb
            if self._depth:
                observation[f"{view}_depth"] = picture.depth
        return observation

    def _info(self) -> dict[str, Any]:
        scene = self.world.scene
        return {"instruction": scene.instruction, "task": scene.task.name, "success": succeeded(self.world)}
