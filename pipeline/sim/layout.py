"""What stands where: a random scene drawn from a seed. No physics and no pictures here."""

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from pipeline.sim.tasks import Shape, Task

Vec3 = tuple[float, float, float]

# sRGB in [0, 1]; far enough apart to be told from each other by their names under any of the lights.
COLOURS: dict[str, Vec3] = {
    "red": (0.82, 0.13, 0.12),
    "orange": (0.96, 0.50, 0.10),
    "yellow": (0.96, 0.80, 0.16),
    "green": (0.16, 0.60, 0.26),
    "blue": (0.13, 0.34, 0.78),
    "purple": (0.48, 0.22, 0.66),
    "pink": (0.94, 0.52, 0.66),
    "cyan": (0.20, 0.72, 0.78),
}
TABLES: tuple[tuple[Vec3, int], ...] = (  # sRGB and the pattern's number in `shade`
    ((0.80, 0.64, 0.45), 1),
    ((0.70, 0.52, 0.36), 1),
    ((0.86, 0.76, 0.62), 1),
    ((0.78, 0.78, 0.76), 0),
    ((0.62, 0.65, 0.68), 0),
)
WALLS: tuple[Vec3, ...] = ((0.80, 0.83, 0.87), (0.86, 0.84, 0.80), (0.76, 0.82, 0.80), (0.72, 0.76, 0.84))
ACCENTS: tuple[Vec3, ...] = ((0.90, 0.45, 0.12), (0.16, 0.42, 0.72), (0.20, 0.22, 0.25), (0.10, 0.55, 0.52))

WORKSPACE = ((-0.14, 0.15), (-0.21, 0.21))  # where things may stand, metres from the middle of the table
CLEARANCE = 0.05  # between the circles around two things, so that open fingers fit between them
PUSH_DISTANCE = (0.13, 0.26)  # metres from object to mat
_PLACES = 20  # tried for a thing
_LAYOUTS = 100  # tried before one thing is left out


@dataclass(frozen=True, kw_only=True)
class Thing:
    """One thing on the table: half extents `size` in metres, centre `xy`, `yaw` in radians, sRGB `rgb`."""

    shape: Shape
    colour: str
    rgb: Vec3
    size: Vec3
    xy: tuple[float, float]
    yaw: float

    @property
    def name(self) -> str:
        """How an instruction calls it: "red cube"."""
        return f"{self.colour} {self.shape}"

    @property
    def movable(self) -> bool:
        """Whether physics moves it; mats and trays are fixed to the table."""
        return self.shape not in ("mat", "tray")

    @property
    def radius(self) -> float:
        """Of the circle around its footprint, metres."""
        return self.size[0] if self.shape in ("cylinder", "ball") else float(np.hypot(*self.size[:2]))


@dataclass(frozen=True, kw_only=True)
class Look:
    """Colours, light and the agent camera of a scene; metres, degrees, sRGB."""

    table_rgb: Vec3
    table_pattern: int
    wall_rgb: Vec3
    accent_rgb: Vec3
    light_position: Vec3
    light_rgb: Vec3
    ambient: float
    camera_position: Vec3
    camera_target: Vec3
    camera_fov: float


@dataclass(frozen=True, kw_only=True)
class Scene:
    """A scene and what is asked for in it. `things[0]` is the object {a}, `things[1]` the goal {b} if any."""

    task: Task
    things: tuple[Thing, ...]
    instruction: str
    look: Look
    hand_position: Vec3
    hand_yaw: float

    @property
    def placeholders(self) -> tuple[str, ...]:
        """The names in the instruction, as Something-Something V2 lists them."""
        first = self.things[0].name
        if self.task.name == "reach":
            return ("robot gripper", first)
        return (first, self.things[1].name) if self.task.goals else (first,)


def sample_scene(task: Task, rng: np.random.Generator) -> Scene:
    """A random scene for `task`; equal for equal states of `rng`."""
    things = _sample_things(task, rng)
    names = {"a": things[0].name, "b": things[1].name}
    phrase = task.phrases[rng.integers(len(task.phrases))]
    return Scene(
        task=task,
        things=things,
        instruction=phrase.format(**names),
        look=_sample_look(rng),
        hand_position=(rng.uniform(-0.14, 0.02), rng.uniform(-0.12, 0.12), rng.uniform(0.17, 0.24)),
        hand_yaw=rng.uniform(-0.35, 0.35),
    )


def _sample_things(task: Task, rng: np.random.Generator) -> tuple[Thing, ...]:
    movables: tuple[Shape, ...] = ("cube", "block", "cylinder", "ball")
    shapes: list[Shape] = [task.movers[rng.integers(len(task.movers))]]
    if task.goals:
        shapes.append(task.goals[rng.integers(len(task.goals))])
    wanted = int(rng.integers(3, 6))
    while len(shapes) < wanted:
        shapes.append(movables[rng.integers(len(movables))])
    if not task.goals and rng.random() < 0.5:
        shapes[-1] = "mat" if rng.random() < 0.5 else "tray"
    colours = rng.permutation(list(COLOURS))[: len(shapes)]  # all different: a name means one thing
    needed = 2 if task.goals else 1
    while True:
        for _ in range(_LAYOUTS):
            things = _stand(shapes, [str(colour) for colour in colours], rng)
            if things and (task.name != "push" or _push_is_free(things)):
                return tuple(things)
        assert len(shapes) > needed, f"no room for {shapes} on the table"
        shapes.pop()  # too crowded: one thing less that is only there to be told from the others


def _stand(shapes: list[Shape], colours: list[str], rng: np.random.Generator) -> list[Thing]:
    """The things one after the other where there is room, or none of them if there is not."""
    things: list[Thing] = []
    for shape, colour in zip(shapes, colours, strict=False):
        for _ in range(_PLACES):
            thing = sample_thing(shape, colour, rng)
            if all(_apart(thing, other) for other in things):
                things.append(thing)
                break
        else:
            return []
    return things


def sample_thing(shape: Shape, colour: str, rng: np.random.Generator, *, scale: float = 1.0) -> Thing:
    """A thing of a random size, shade and pose in the workspace, `scale` times as large as things there are."""
    match shape:
        case "cube":
            half = rng.uniform(0.021, 0.026)
            size = (half, half, half)
        case "block":
            size = (rng.uniform(0.032, 0.040), rng.uniform(0.018, 0.022), rng.uniform(0.018, 0.022))
        case "cylinder":
            radius = rng.uniform(0.020, 0.026)
            size = (radius, radius, rng.uniform(0.022, 0.030))
        case "ball":
            radius = rng.uniform(0.021, 0.027)
            size = (radius, radius, radius)
        case "mat":
            half = rng.uniform(0.050, 0.060)
            size = (half, half, 0.001)
        case "tray":
            size = (rng.uniform(0.060, 0.070), rng.uniform(0.055, 0.065), 0.016)
    radius = float(np.hypot(*size[:2])) if shape in ("mat", "tray") else 0.0
    (x_low, x_high), (y_low, y_high) = WORKSPACE
    rgb = np.clip(np.array(COLOURS[colour]) + rng.uniform(-0.03, 0.03, 3), 0.0, 1.0)
    return Thing(
        shape=shape,
        colour=colour,
        rgb=_vec3(rgb),
        size=(scale * size[0], scale * size[1], scale * size[2]),
        xy=(
            rng.uniform(x_low + 0.4 * radius, x_high - 0.4 * radius),
            rng.uniform(y_low + 0.4 * radius, y_high - 0.4 * radius),
        ),
        yaw=rng.uniform(-0.3, 0.3) if shape in ("mat", "tray") else rng.uniform(-np.pi / 2, np.pi / 2),
    )


def _apart(one: Thing, other: Thing) -> bool:
    distance = np.hypot(one.xy[0] - other.xy[0], one.xy[1] - other.xy[1])
    return bool(distance > one.radius + other.radius + CLEARANCE)


def _push_is_free(things: list[Thing]) -> bool:
    """Whether nothing stands on the way of hand and object from behind the object to the mat."""
    start, goal = np.array(things[0].xy), np.array(things[1].xy)
    way = goal - start
    length = float(np.linalg.norm(way))
    if not PUSH_DISTANCE[0] < length < PUSH_DISTANCE[1]:
        return False
    way /= length
    for other in things[2:]:
        offset = np.array(other.xy) - start
        along = float(np.clip(offset @ way, -0.10, length))
        if np.linalg.norm(offset - along * way) < other.radius + 0.05:
            return False
    return True


def _sample_look(rng: np.random.Generator) -> Look:
    table_rgb, pattern = TABLES[rng.integers(len(TABLES))]
    azimuth = rng.uniform(-0.22, 0.22)
    distance, height = rng.uniform(0.72, 0.82), rng.uniform(0.46, 0.56)
    warm = rng.uniform(-0.04, 0.04)
    side = rng.choice([-1.0, 1.0])
    return Look(
        table_rgb=_vec3(np.clip(np.array(table_rgb) + rng.uniform(-0.03, 0.03), 0, 1)),
        table_pattern=pattern,
        wall_rgb=WALLS[rng.integers(len(WALLS))],
        accent_rgb=ACCENTS[rng.integers(len(ACCENTS))],
        light_position=(rng.uniform(0.2, 0.7), side * rng.uniform(0.4, 0.9), rng.uniform(1.3, 1.7)),
        light_rgb=(1.0 + warm, 1.0, 1.0 - warm),
        ambient=rng.uniform(0.38, 0.5),
        camera_position=(distance * np.cos(azimuth), distance * np.sin(azimuth), height),
        camera_target=(rng.uniform(-0.08, -0.03), rng.uniform(-0.02, 0.02), rng.uniform(0.07, 0.10)),
        camera_fov=rng.uniform(43.0, 47.0),
    )


def unseen_camera(look: Look, rng: np.random.Generator) -> Look:
    """`look` with the agent's camera where no episode has it: azimuth, distance and height are each outside of the
    ranges that `sample_scene` draws from, and wider. Target and field of view stay.
    """
    azimuth = rng.choice([-1.0, 1.0]) * rng.uniform(0.30, 0.75)
    distance = rng.uniform(0.62, 0.68) if rng.random() < 0.5 else rng.uniform(0.86, 1.0)
    height = rng.uniform(0.34, 0.44) if rng.random() < 0.5 else rng.uniform(0.60, 0.75)
    return replace(
        look, camera_position=_vec3(np.array([distance * np.cos(azimuth), distance * np.sin(azimuth), height]))
    )


def _vec3(values: NDArray[np.float64]) -> Vec3:
    return (float(values[0]), float(values[1]), float(values[2]))
