"""What a policy is judged in: one interface over simulators.

Shape legend: H, W of a picture, S dimensions of the state, A of an action.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Literal, Protocol

from data_specs.arrays import Array
from pipeline.config import RequestError, suggest

CameraChoice = Literal["seen", "unseen", "moving"]
CAMERAS: tuple[CameraChoice, ...] = ("seen", "unseen", "moving")


@dataclass(frozen=True, kw_only=True, eq=False)
class View:
    """What a camera sees: `rgb` u1 [H,W,3]; where there is a depth sensor also `depth` f4 [H,W] in metres (0: no
    reading), `intrinsic` f4 [3,3] in pixels and `extrinsic` f4 [3,4], OpenCV camera-from-world.
    """

    rgb: Array
    depth: Array | None = None
    intrinsic: Array | None = None
    extrinsic: Array | None = None


@dataclass(frozen=True, kw_only=True, eq=False)
class Observation:
    """A moment: `views` by name, those that were asked for; `state` f4 [S], in the dataset's units; `instruction`."""

    views: dict[str, View]
    state: Array
    instruction: str


@dataclass(frozen=True, kw_only=True, eq=False)
class Step:
    """After an action: `observation` is None where nobody looks; `done` at success and at the cap of steps."""

    observation: Observation | None
    success: bool
    done: bool


@dataclass(frozen=True, kw_only=True)
class EnvironmentSpec:
    """What is known of an environment before its simulator is loaded.

    Attributes:
        name: as `--env` says it. tasks: what `--tasks` may name; `default_tasks` without it; `groups` of tasks have
            names of their own.
        views: its cameras; the first is the one that films and stores are made of. also_called: names that datasets
            have for them.
        state_dim, action_dim: S, A. low, high: of an action that is drawn at random, by dimension.
        hz: control steps a second. max_steps: the cap, by task; of every task under "".
        slots: episodes that run at once, however many processes there are, so that a batch of the policy, and with it
            every rounding, is the same for any number of them.
        any_size: whether pictures are rendered at the size that a store keeps, and not at that of recordings.
        sensors: whether views have depth and cameras. disturbances: whether cameras can be unseen ones, and things
            can move in view. expert: whether there is a scripted one.
    """

    name: str
    tasks: tuple[str, ...]
    default_tasks: tuple[str, ...]
    views: tuple[str, ...]
    state_dim: int
    action_dim: int
    low: tuple[float, ...]
    high: tuple[float, ...]
    hz: float
    max_steps: dict[str, int]
    slots: int
    groups: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    also_called: Mapping[str, str] = field(default_factory=dict)
    any_size: bool = False
    sensors: bool = False
    disturbances: bool = False
    expert: bool = False

    def cap(self, task: str) -> int:
        """Steps after which an episode of `task` has failed."""
        return self.max_steps.get(task, self.max_steps.get("", 0))

    def check_tasks(self, names: str) -> tuple[str, ...]:
        """The tasks of `names` ("a,b", "all", or empty for the default); RequestError for one that is unknown."""
        said = [name.strip() for name in names.split(",")] if names.strip() else list(self.default_tasks)
        if said == ["all"]:
            return self.tasks
        for name in said:
            if name not in self.tasks and name not in self.groups:
                known = (*self.groups, *self.tasks)
                shown = ", ".join(known[:12]) + (", …" if len(known) > 12 else "")
                raise RequestError(
                    f"Environment {self.name} has no task {name!r}.{suggest(name, known)} There are: {shown}, all."
                )
        wanted = [task for name in said for task in self.groups.get(name, (name,))]
        if len(set(wanted)) != len(wanted):
            raise RequestError(f"Expected each task once, got {', '.join(wanted)}.")
        return tuple(wanted)


@dataclass(frozen=True, kw_only=True)
class EnvironmentOptions:
    """How episodes are shown.

    `views` are rendered when somebody looks, `render_size` pixels square where the simulator can choose (None: as its
    demonstrations are); `max_steps` replaces the cap of every task; `camera` stands where training cameras do, where
    none did, or moves; `distractors` move in view and take no part.
    """

    views: tuple[str, ...] = ()
    render_size: int | None = None
    max_steps: int | None = None
    camera: CameraChoice = "seen"
    distractors: bool = False


class Environment(Protocol):
    """An environment that runs one episode at a time. Episodes depend on seed, index and task and on nothing before."""

    @property
    def spec(self) -> EnvironmentSpec:
        """What it is."""

    def reset(self, *, seed: int, index: int, task: str) -> Observation:
        """Start episode `index` of `seed` of a task."""

    def step(self, action: Array, *, look: bool = True) -> Step:
        """Act f4 [A] for a control step. Without `look` nothing is rendered."""

    def observe(self) -> Observation:
        """The present moment."""

    def picture(self) -> Array:
        """What the first camera sees now, u1 [H,W,3], for films."""

    def expert(self) -> Iterator[Array]:
        """Actions of a scripted expert that do the task from here; RequestError where there is none."""

    def close(self) -> None:
        """Give everything back."""


ENVIRONMENTS = ("tabletop", "aloha", "libero")


def environment_spec(name: str) -> EnvironmentSpec:
    """What `name` is, without loading its simulator. RequestError when there is no such environment."""
    if name == "tabletop":
        from pipeline.evaluate.policy.tabletop import TABLETOP

        return TABLETOP
    if name == "aloha":
        from pipeline.evaluate.policy.aloha import ALOHA

        return ALOHA
    if name == "libero":
        from pipeline.evaluate.policy.libero import LIBERO

        return LIBERO
    raise RequestError(
        f"There is no environment {name!r}: choose from {', '.join(ENVIRONMENTS)}.{suggest(name, ENVIRONMENTS)}"
    )


def check_options(spec: EnvironmentSpec, options: EnvironmentOptions) -> None:
    """RequestError for options that the environment does not have."""
    if options.camera not in CAMERAS:
        raise RequestError(
            f"--camera {options.camera} is unknown: choose from {', '.join(CAMERAS)}.{suggest(options.camera, CAMERAS)}"
        )
    if not spec.disturbances and (options.camera != "seen" or options.distractors):
        raise RequestError(f"Environment {spec.name} has neither --camera nor --distractors: they are the tabletop's.")
    for view in options.views:
        if view not in spec.views:
            raise RequestError(
                f"Environment {spec.name} has no camera {view!r}; it has {', '.join(spec.views)}."
                f"{suggest(view, spec.views)}"
            )


def open_environment(name: str, options: EnvironmentOptions) -> Environment:
    """Load a simulator. RequestError when there is no such environment, or the extra that brings it is missing."""
    spec = environment_spec(name)
    check_options(spec, options)
    if name == "aloha":
        from pipeline.evaluate.policy.aloha import AlohaEnvironment

        return AlohaEnvironment(options)
    if name == "libero":
        from pipeline.evaluate.policy.libero import LiberoEnvironment

        return LiberoEnvironment(options)
    from pipeline.evaluate.policy.tabletop import TabletopEnvironment

    return TabletopEnvironment(options)
