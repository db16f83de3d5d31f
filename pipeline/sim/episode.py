"""One demonstration: a scene, what the expert did in it, and its pictures, made when they are asked for.

An episode depends on (seed, index, tasks) and nothing else. Only successful demonstrations are kept, as in LIBERO:
a scene in which the expert fails is replaced by the next of the same index (`attempt` says which it was).

With `perturb`, what is executed is the expert's action plus noise and what is kept as `action` is the expert's
(`pipeline.sim.perturb`); the noise has a stream of its own, so that 0 gives the episode without it, bit for bit.

A moving camera and distractors change how an episode is seen and nothing in it: states and actions are those of the
episode without them, bit for bit, and each is drawn from the episode's seed alone, whether the other is there or not.
"""

from dataclasses import dataclass, field
from functools import cached_property

import mujoco
import numpy as np
from numpy.typing import NDArray

from data_specs.actions import accumulate
from data_specs.records import Trajectory
from pipeline.sim.camera_motion import CameraMotion, sample_camera_motion
from pipeline.sim.distractors import Distractor, sample_distractors
from pipeline.sim.experts import expert
from pipeline.sim.geometry import Floats
from pipeline.sim.layout import Scene, sample_scene
from pipeline.sim.mjcf import CONTROL_HZ, SNAPSHOT_HZ, build_mjcf
from pipeline.sim.perturb import Perturber
from pipeline.sim.render import Picture, Renderer
from pipeline.sim.tasks import TASKS, Task, succeeded
from pipeline.sim.world import ACTION_DIM, World

MAX_STEPS = 10 * CONTROL_HZ
ATTEMPTS = 32
VAL_EVERY = 10  # every tenth index is validation
_LINGER = 2 * CONTROL_HZ  # steps that a reach under noise stays at its end


@dataclass(frozen=True, kw_only=True, eq=False)
class Episode:
    """A demonstration of K actions, seen at K + 1 moments, 20 a second.

    Attributes:
        seed, index, attempt: where it comes from.
        scene: what stands where, with the instruction.
        snapshots: f8 [3 K + 1, nq] generalised coordinates at 60 Hz.
        state: f4 [K+1, 8] proprioception (see `pipeline.sim.world`).
        action: f4 [K+1, 7]; `action[i]` leads from moment i on; the last is padding: no motion, the same gripper.
        executed: f4 [K+1, 7], what the world was given in place of `action`: the same without `perturb`.
        is_pad: bool [K+1], True for the last.
        success: whether the task was done at the last moment.
        camera_motion: how the agent camera moves, or None.
        distractors: what moves in view and takes no part.
        perturb: the scale of the noise on what was executed.
    """

    seed: int
    index: int
    attempt: int
    scene: Scene
    snapshots: Floats
    state: NDArray[np.float32]
    action: NDArray[np.float32]
    executed: NDArray[np.float32]
    is_pad: NDArray[np.bool_]
    success: bool
    world: World = field(repr=False)
    camera_motion: CameraMotion | None = None
    distractors: tuple[Distractor, ...] = ()
    perturb: float = 0.0

    @property
    def key(self) -> str:
        """Sorts by index: "s1-000012-push"."""
        return episode_key(self.seed, self.index, self.scene.task)

    @property
    def time(self) -> Floats:
        """f8 [K+1], seconds."""
        return np.arange(len(self.state)) / CONTROL_HZ

    @property
    def action_sum(self) -> NDArray[np.float32]:
        """f4 [K+1, 7], the sum of the executed actions before each moment (see `accumulate`)."""
        return accumulate(self.executed)

    def trajectory(self, frames: NDArray[np.int64]) -> Trajectory:
        """The K control steps whole, of a clip that shows the moments `frames` i8 [F]."""
        step = np.asarray(frames, dtype=np.int64)
        return Trajectory(state=self.state[:-1], action=self.action[:-1], step=step, hz=CONTROL_HZ)

    @property
    def seconds(self) -> float:
        """How long it lasts."""
        return (len(self.state) - 1) / CONTROL_HZ

    def moments(self, fps: float = CONTROL_HZ) -> NDArray[np.int64]:
        """Which of the K + 1 moments are seen at `fps` frames a second, at most 20: those nearest to k / fps.

        The earlier of a tie, as in `pipeline.sources.frames`; at 20 all of them.
        """
        assert 0 < fps <= CONTROL_HZ, fps
        steps = np.arange(len(self.state)) * (CONTROL_HZ / fps)
        nearest = np.ceil(steps - 0.5 - 1e-6).astype(np.int64)
        return np.asarray(nearest[nearest < len(self.state)])

    def at(self, time: float) -> Floats:
        """The generalised coordinates [nq] at `time`, which must be a multiple of 1/60 s."""
        tick = round(time * SNAPSHOT_HZ)
        assert abs(tick - time * SNAPSHOT_HZ) < 1e-6, time
        return np.array(self.snapshots[tick])

    @cached_property
    def renderer(self) -> Renderer:
        """Renders this episode's scene. Distractors are in a model of its own: physics never knows of them."""
        model = self.world.model
        if self.distractors:
            model = mujoco.MjModel.from_xml_string(build_mjcf(self.scene, self.distractors))
        return Renderer(self.scene, model, camera_motion=self.camera_motion, distractors=self.distractors)

    def picture(self, time: float, view: str, height: int, width: int) -> Picture:
        """What `view` sees at `time`."""
        return self.renderer.render(self.at(time), view, height, width, time)


def episode_task(index: int, tasks: tuple[Task, ...] = TASKS) -> Task:
    """The task of episode `index`: they take turns."""
    return tasks[index % len(tasks)]


def episode_key(seed: int, index: int, task: Task) -> str:
    """The key of an episode."""
    return f"s{seed}-{index:06d}-{task.name}"


def episode_split(index: int) -> str:
    """ "train" or "val": every tenth."""
    return "val" if index % VAL_EVERY == VAL_EVERY - 1 else "train"


def demonstrate(
    seed: int,
    index: int,
    tasks: tuple[Task, ...] = TASKS,
    *,
    camera_motion: bool = False,
    distractors: bool = False,
    perturb: float = 0.0,
) -> Episode:
    """Episode `index` of `seed`; RuntimeError if the expert fails in `ATTEMPTS` scenes in a row.

    `camera_motion` and `distractors` have it seen by a camera that moves and among things that move; `perturb` scales
    the noise on what is executed.
    """
    for attempt in range(ATTEMPTS):
        episode = attempt_episode(
            seed,
            index,
            attempt,
            episode_task(index, tasks),
            camera_motion=camera_motion,
            distractors=distractors,
            perturb=perturb,
        )
        if episode.success:
            return episode
    raise RuntimeError(f"the expert failed {ATTEMPTS} times at {episode_key(seed, index, episode_task(index, tasks))}")


def attempt_episode(
    seed: int,
    index: int,
    attempt: int,
    task: Task,
    *,
    camera_motion: bool = False,
    distractors: bool = False,
    perturb: float = 0.0,
) -> Episode:
    """One try of the expert, whether it succeeds or not."""
    scene_rng, expert_rng, camera_rng, distractor_rng, noise_rng = (
        np.random.default_rng([seed, index, attempt, stream]) for stream in range(5)
    )
    perturbed = Perturber(perturb, noise_rng)
    scene = sample_scene(task, scene_rng)
    world = World(scene)
    snapshots, states = [world.qpos[None]], [world.state()]
    actions: list[NDArray[np.float32]] = []
    executed: list[NDArray[np.float32]] = []
    for action in expert(world, expert_rng, linger=_LINGER if perturb else 0):
        if len(actions) == MAX_STEPS:
            break
        actions.append(action)
        executed.append(perturbed(action))
        snapshots.append(world.step(executed[-1]))
        states.append(world.state())
    last = np.zeros(ACTION_DIM, dtype=np.float32)
    last[-1] = world.gripper_command
    is_pad = np.zeros(len(states), dtype=bool)
    is_pad[-1] = True
    return Episode(
        seed=seed,
        index=index,
        attempt=attempt,
        scene=scene,
        snapshots=np.concatenate(snapshots),
        state=np.stack(states),
        action=np.stack([*actions, last]),
        executed=np.stack([*executed, last]),
        is_pad=is_pad,
        success=succeeded(world),
        world=world,
        camera_motion=sample_camera_motion(camera_rng) if camera_motion else None,
        distractors=sample_distractors(scene, distractor_rng) if distractors else (),
        perturb=perturb,
    )
