"""The tabletop world to be judged in. Physics is cheap and pictures are not: nothing is rendered that nobody sees."""

from collections.abc import Iterator
from dataclasses import replace

import mujoco
import numpy as np

from data_specs.arrays import Array
from pipeline.config import FailedError
from pipeline.evaluate.policy.environment import EnvironmentOptions, EnvironmentSpec, Observation, Step, View
from pipeline.sim.camera import VIEWS
from pipeline.sim.camera_motion import sample_camera_motion
from pipeline.sim.distractors import Distractor, sample_distractors
from pipeline.sim.episode import ATTEMPTS, MAX_STEPS
from pipeline.sim.experts import expert
from pipeline.sim.layout import Scene, sample_scene
from pipeline.sim.mjcf import CONTROL_HZ, build_mjcf
from pipeline.sim.render import Picture, Renderer
from pipeline.sim.tasks import TASKS, find_tasks, succeeded
from pipeline.sim.unseen_camera import unseen_camera
from pipeline.sim.world import ACTION_DIM, STATE_DIM, World

SIZE = 224
"""Pixels of a picture's side, unless another is asked for."""

_NAMES = tuple(task.name for task in TASKS)
_JUDGED = 0x6A756467
"""Ends every seed here: no scene that is judged in is one that a recording shows, whatever the two seeds are."""

_SCENE, _EXPERT, _CAMERA, _DISTRACTORS = range(4)

TABLETOP = EnvironmentSpec(
    name="tabletop",
    tasks=_NAMES,
    default_tasks=("reach", "push", "pick"),
    views=VIEWS,
    also_called={"agentview": "agent", "top": "agent", "eye_in_hand": "wrist"},
    state_dim=STATE_DIM,
    action_dim=ACTION_DIM,
    low=(-1.0,) * ACTION_DIM,
    high=(1.0,) * ACTION_DIM,
    hz=CONTROL_HZ,
    any_size=True,
    max_steps={"": MAX_STEPS},
    slots=16,
    sensors=True,
    disturbances=True,
    expert=True,
)


class TabletopEnvironment:
    """One episode at a time; it ends in the step in which the task is done, or at the cap.

    Scenes are drawn as those of demonstrations are: one that the scripted expert cannot do is replaced by the next.
    How it is seen (`camera`, `distractors`) changes nothing in it.
    """

    def __init__(self, options: EnvironmentOptions) -> None:
        self._options = options
        self._steps = 0
        self._seen: dict[str, Picture] = {}
        self._world: World | None = None
        self._renderer: Renderer | None = None
        self._entropy: tuple[int, ...] = (0,)

    @property
    def spec(self) -> EnvironmentSpec:
        """What it is."""
        return TABLETOP

    @property
    def world(self) -> World:
        """The physics of the present episode."""
        assert self._world is not None, "call reset() first"
        return self._world

    def reset(self, *, seed: int, index: int, task: str) -> Observation:
        """Start episode `index` of `seed` of a task; its first moment is rendered."""
        (found,) = find_tasks([task])
        for attempt in range(ATTEMPTS):
            self._entropy = (seed, index, _NAMES.index(task), attempt)
            scene = sample_scene(found, self._rng(_SCENE))
            self._world = World(scene)
            if self._expert_succeeds():
                return self.start(scene)
        raise FailedError(f"The expert failed in {ATTEMPTS} scenes in a row at {task}, seed {seed}, episode {index}.")

    def start(self, scene: Scene) -> Observation:
        """Start an episode in a scene of one's own; its first moment is rendered."""
        self._world = World(scene)
        self._steps, self._seen = 0, {}
        self._renderer = self._make_renderer(scene)
        return self.observe()

    def step(self, action: Array, *, look: bool = True) -> Step:
        """Act f4 [7] for 1/20 s."""
        self.world.step(action)
        self._steps += 1
        self._seen = {}
        success = succeeded(self.world)
        cap = self._options.max_steps or TABLETOP.cap(self.world.scene.task.name)
        return Step(observation=self.observe() if look else None, success=success, done=success or self._steps >= cap)

    def observe(self) -> Observation:
        """The present moment, in the views that were asked for."""
        views = {}
        for name in self._options.views:
            picture = self._picture(name)
            views[name] = View(
                rgb=picture.rgb, depth=picture.depth, intrinsic=picture.intrinsic, extrinsic=picture.extrinsic
            )
        return Observation(views=views, state=self.world.state(), instruction=self.world.scene.instruction)

    def picture(self) -> Array:
        """What the agent camera sees now."""
        return self._picture(VIEWS[0]).rgb

    def expert(self) -> Iterator[Array]:
        """The actions of the scripted expert; each must be done before the next is asked for."""
        return expert(self.world, self._rng(_EXPERT))

    def close(self) -> None:
        """Nothing is held."""

    def _picture(self, view: str) -> Picture:
        assert self._renderer is not None, "call reset() first"
        if view not in self._seen:
            size = self._options.render_size or SIZE
            self._seen[view] = self._renderer.render(self.world.qpos, view, size, size, self._steps / CONTROL_HZ)
        return self._seen[view]

    def _make_renderer(self, scene: Scene) -> Renderer:
        options = self._options
        model = self.world.model
        distractors: tuple[Distractor, ...] = ()
        if options.distractors:
            distractors = sample_distractors(scene, self._rng(_DISTRACTORS))
            model = mujoco.MjModel.from_xml_string(build_mjcf(scene, distractors))
        if options.camera == "unseen":
            scene = replace(scene, look=unseen_camera(scene.look, self._rng(_CAMERA)))
        motion = sample_camera_motion(self._rng(_CAMERA)) if options.camera == "moving" else None
        return Renderer(scene, model, camera_motion=motion, distractors=distractors)

    def _expert_succeeds(self) -> bool:
        for steps, action in enumerate(expert(self.world, self._rng(_EXPERT))):
            if steps == MAX_STEPS:
                return False
            self.world.step(action)
            if succeeded(self.world):
                return True
        return False

    def _rng(self, stream: int) -> np.random.Generator:
        return np.random.default_rng([*self._entropy, stream, _JUDGED])
