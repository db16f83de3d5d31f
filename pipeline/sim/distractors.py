"""Things that move in view and are not the gripper: one to three, on paths of their own.

They touch nothing and nothing touches them (no contact physics, and a place each where neither the hand nor the arm
nor the task comes): the far corners of the table, the air over these, and the room behind the table. What the expert
does is the same, bit for bit, with and without them.

    roll, slide    along a line on the table, to and fro, a sliding thing turning a little
    swing          like a thing on a string, in an arc with the period of its length
    float          along a smooth closed curve in the air, turning
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np

from pipeline.sim.geometry import Floats, euler_matrix, matrix_quaternion
from pipeline.sim.layout import COLOURS, Scene, Thing, sample_thing
from pipeline.sim.sway import REST, Sway, Wave, sway_at
from pipeline.sim.tasks import Shape

Kind = Literal["roll", "slide", "swing", "float"]

MOST = 3
_GRAVITY = 9.81
_SHAPES: dict[Kind, tuple[Shape, ...]] = {
    "roll": ("ball",),
    "slide": ("cube", "block", "cylinder"),
    "swing": ("ball", "cube", "cylinder"),
    "float": ("cube", "block", "cylinder", "ball"),
}


@dataclass(frozen=True, kw_only=True)
class Place:
    """A box that a distractor never leaves: corners `low` and `high`, metres; on the table where `low` has z = 0."""

    low: tuple[float, float, float]
    high: tuple[float, float, float]
    scale: float = 1.0  # of the things in it

    @property
    def on_table(self) -> bool:
        """Whether what is in it lies on the table."""
        return self.low[2] == 0.0


PLACES: tuple[Place, ...] = (
    Place(low=(-0.58, -0.50, 0.0), high=(-0.33, -0.20, 0.10), scale=1.25),
    Place(low=(-0.58, 0.20, 0.0), high=(-0.33, 0.50, 0.10), scale=1.25),
    Place(low=(-0.56, -0.46, 0.11), high=(-0.33, -0.22, 0.31), scale=1.25),
    Place(low=(-0.56, 0.22, 0.11), high=(-0.33, 0.46, 0.31), scale=1.25),
    Place(low=(-1.25, -0.45, -0.05), high=(-0.72, 0.45, 0.30), scale=2.0),
)


@dataclass(frozen=True, kw_only=True)
class Distractor:
    """A thing on a path: its middle is at `centre` + `path`, metres; its heading is `yaw` + `turn`, radians."""

    kind: Kind
    thing: Thing
    place: Place
    centre: tuple[float, float, float]
    path: Sway
    turn: tuple[Wave, ...]

    @property
    def name(self) -> str:
        """What it is and does: "distractor: rolling red ball"."""
        doing = {"roll": "rolling", "slide": "sliding", "swing": "swinging", "float": "floating"}[self.kind]
        return f"distractor: {doing} {self.thing.name}"

    def pose(self, time: float) -> tuple[Floats, Floats]:
        """Middle [3] and orientation [4] (unit quaternion) at `time`, seconds."""
        yaw = self.thing.yaw + sum(wave.at(time) for wave in self.turn)
        return np.array(self.centre) + sway_at(self.path, time), matrix_quaternion(euler_matrix(yaw, 0.0, 0.0))


def sample_distractors(scene: Scene, rng: np.random.Generator) -> tuple[Distractor, ...]:
    """One to three distractors in places of their own and in colours that no thing of `scene` has."""
    count = int(rng.integers(1, MOST + 1))
    free = [colour for colour in COLOURS if colour not in {thing.colour for thing in scene.things}]
    colours, places = rng.permutation(free)[:count], rng.permutation(len(PLACES))[:count]
    return tuple(_sample(PLACES[place], str(colour), rng) for place, colour in zip(places, colours, strict=True))


def _sample(place: Place, colour: str, rng: np.random.Generator) -> Distractor:
    kinds: tuple[Kind, ...] = ("roll", "slide") if place.on_table else ("swing", "float")
    kind = kinds[rng.integers(len(kinds))]
    shape = _SHAPES[kind][rng.integers(len(_SHAPES[kind]))]
    thing = sample_thing(shape, colour, rng, scale=place.scale)
    half = np.array([thing.radius, thing.radius, thing.size[2]])
    low, high = np.array(place.low) + half, np.array(place.high) - half
    reach = rng.uniform(0.55, 1.0, 3) * (high - low) / 2  # how far it goes from the middle of its path
    path, turn = _path(kind, reach, rng)
    spread = np.array([sum(abs(wave.amplitude) for wave in waves) for waves in path])
    middle = rng.uniform(low + spread, high - spread)
    if place.on_table:
        middle[2] = thing.size[2]
    return Distractor(
        kind=kind,
        thing=thing,
        place=place,
        centre=(float(middle[0]), float(middle[1]), float(middle[2])),
        path=path,
        turn=turn,
    )


def _path(kind: Kind, reach: Floats, rng: np.random.Generator) -> tuple[Sway, tuple[Wave, ...]]:
    """A path that goes no further than `reach` [3] from its middle, and how its thing turns on it."""
    phase, other, third, turning = rng.uniform(0.0, 2 * np.pi, 4)
    if kind == "float":
        x, y, z = (
            (Wave(amplitude=float(far), period=rng.uniform(2.0, 4.5), phase=float(start)),)
            for far, start in zip(reach, (phase, other, third), strict=True)
        )
        turn = Wave(amplitude=rng.uniform(0.3, 1.2), period=rng.uniform(2.0, 4.5), phase=float(turning))
        return (x, y, z), (turn,)
    swings = kind == "swing"
    period = rng.uniform(1.2, 1.8) if swings else rng.uniform(1.6, 3.6)
    # a line across the view, more or less: the sign says which way it slants
    ahead = reach[:2] * np.array([rng.uniform(-1.0, 1.0), 1.0])
    x, y = ((Wave(amplitude=float(far), period=period, phase=float(phase)),) for far in ahead)
    if swings:
        # A pendulum of this period rises by s^2 / 2L where it is s off its middle: at the ends, twice in a period.
        length = _GRAVITY * (period / (2 * np.pi)) ** 2
        rise = min(float(ahead @ ahead) / (4 * length), float(reach[2]))
        return (x, y, (Wave(amplitude=rise, period=period / 2, phase=float(2 * phase - np.pi / 2)),)), ()
    turns = kind == "slide"
    turn = Wave(amplitude=rng.uniform(0.1, 0.5), period=rng.uniform(1.6, 3.6), phase=float(turning))
    return (x, y, REST[2]), (turn,) if turns else ()
