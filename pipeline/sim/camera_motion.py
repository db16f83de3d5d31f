"""An agent camera that moves while the clip runs, as if held in a hand or carried by a moving base.

The camera sways around where the still camera of the scene stands, in one of three ways, each with a tremor:

    orbit      sideways and up around its target, which it keeps in the middle
    dolly      to and fro along its line of sight, panning slowly
    handheld   along all three axes, panning, tilting and rolling

Within a second it moves by at most `MOST_MOVED` and turns by at most `MOST_TURNED`; over a clip it stays within about
8 cm of its place, so that the table stays in view.
"""

from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

from pipeline.sim.camera import Camera, look_at
from pipeline.sim.geometry import rotvec_matrix
from pipeline.sim.layout import Look
from pipeline.sim.sway import Sway, Wave, sway_at

Kind = Literal["orbit", "dolly", "handheld"]

MOST_MOVED = 0.08  # metres within a second
MOST_TURNED = 6.0  # degrees within a second


@dataclass(frozen=True, kw_only=True)
class CameraMotion:
    """How the agent camera moves: `move` in metres and `turn` in radians, both along the camera's own axes (right,
    down, forward); an orbit looks at its target from wherever it is before it is turned.
    """

    kind: Kind
    move: Sway
    turn: Sway

    def camera(self, look: Look, time: float) -> Camera:
        """The camera at `time`, seconds."""
        eye, target = np.array(look.camera_position), np.array(look.camera_target)
        up = np.array([0.0, 0.0, 1.0])
        still = look_at(eye, target, up, look.camera_fov)
        position = eye + still.rotation.T @ sway_at(self.move, time)
        rotation = look_at(position, target, up, look.camera_fov).rotation if self.kind == "orbit" else still.rotation
        return Camera(
            position=position, rotation=rotvec_matrix(sway_at(self.turn, time)) @ rotation, fov=look.camera_fov
        )


def sample_camera_motion(rng: np.random.Generator) -> CameraMotion:
    """A random motion; equal for equal states of `rng`."""
    kind: Kind = get_args(Kind)[rng.integers(len(get_args(Kind)))]
    # (least, most) metres and degrees within a second, by axis
    move, turn = {
        "orbit": (((0.040, 0.060), (0.0, 0.015), (0.0, 0.0)), ((0.0, 0.0), (0.0, 0.0), (0.0, 0.0))),
        "dolly": (((0.0, 0.015), (0.0, 0.0), (0.040, 0.068)), ((1.0, 3.0), (1.0, 3.0), (0.0, 0.0))),
        "handheld": (((0.020, 0.039),) * 3, ((1.0, 3.0), (1.0, 3.0), (0.3, 1.2))),
    }[kind]
    return CameraMotion(
        kind=kind,
        move=_sway(move, rng, tremor=(0.001, 0.0025), unit=1.0),
        turn=_sway(turn, rng, tremor=(0.1, 0.3), unit=np.pi / 180),
    )


def _sway(
    paces: tuple[tuple[float, float], ...], rng: np.random.Generator, *, tremor: tuple[float, float], unit: float
) -> Sway:
    """A slow wave of each pace and a quick one for each axis. `tremor`: least and most amplitude of the quick ones."""

    def axis(least: float, most: float) -> tuple[Wave, ...]:
        slow = Wave.paced(unit * rng.uniform(least, most), period=rng.uniform(3.0, 6.0), phase=_phase(rng))
        quick = Wave(amplitude=unit * rng.uniform(*tremor), period=rng.uniform(0.4, 0.9), phase=_phase(rng))
        return (slow, quick)

    x, y, z = (axis(*pace) for pace in paces)
    return (x, y, z)


def _phase(rng: np.random.Generator) -> float:
    return float(rng.uniform(0.0, 2 * np.pi))
