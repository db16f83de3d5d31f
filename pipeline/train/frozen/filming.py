"""Short films of the tabletop world with depth and camera, kept as files: what VGGT tiny learns from.

Three ways of filming take turns, so that neither one view nor one kind of motion is learnt by heart:
`standing` (the scene's own camera), `roaming` (a camera anywhere in front of the table that drifts and shakes) and
`wrist` (the hand's camera). A film depends on (seed, index) and nothing else. A fourth, `swaying`, is the simulator's
own moving camera; it is for judging what was learnt from the others.
"""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from data_specs.arrays import Array
from pipeline.foreign import UNREADABLE, shortened
from pipeline.sim.episode import Episode, demonstrate
from pipeline.sim.geometry import Floats
from pipeline.sim.layout import Look
from pipeline.sim.mjcf import CONTROL_HZ
from pipeline.sim.render import Picture, Renderer, encode_depth

Way = Literal["standing", "roaming", "wrist", "swaying"]
WAYS: tuple[Way, ...] = ("standing", "roaming", "roaming", "standing", "wrist")

FPS = 4
FRAMES = 8
"""As recipe `tiny` extracts: windows of up to 8 frames, 4 a second."""
SIDE = 224

_STREAM = 7  # of the random numbers: the scene takes 0, the expert 1


@dataclass(frozen=True, kw_only=True, eq=False)
class Film:
    """F frames in order: `rgb` u1 [F,H,W,3]; `depth` u2 [F,H,W] tenths of a millimetre, 0 where there is none;
    `intrinsic` f4 [F,3,3] pixels; `extrinsic` f4 [F,3,4] OpenCV camera-from-world, metres.
    """

    rgb: Array
    depth: Array
    intrinsic: Array
    extrinsic: Array

    def save(self, path: Path) -> None:
        """Write `path`, whole or not at all."""
        unfinished = path.with_name(f".{path.name}.tmp")
        with unfinished.open("wb") as file:
            np.savez(file, **{field.name: getattr(self, field.name) for field in dataclasses.fields(self)})
        unfinished.rename(path)

    @classmethod
    def load(cls, path: Path) -> "Film":
        """The film in `path`; ValueError if it is not one."""
        try:
            with np.load(path, allow_pickle=False) as arrays:
                return cls(**{field.name: arrays[field.name] for field in dataclasses.fields(cls)})
        except UNREADABLE as error:
            raise ValueError(f"{path} is no film ({shortened(error)}); delete it, and it is made again.") from None


def way_of(index: int) -> Way:
    """How film `index` is made."""
    return WAYS[index % len(WAYS)]


def film(seed: int, index: int, *, way: Way | None = None, side: int = SIDE, frames: int = FRAMES) -> Film:
    """Film `index` of `seed`: up to `frames` frames, `FPS` a second, from a random moment on, `side` pixels square."""
    way = way or way_of(index)
    episode = demonstrate(seed, index, camera_motion=way == "swaying")
    rng = np.random.default_rng([seed, index, _STREAM])
    step = CONTROL_HZ // FPS
    moments = len(range(0, len(episode.time), step))
    start = int(rng.integers(max(1, moments - frames + 1)))
    times = episode.time[start * step :: step][:frames]
    looks = _roam(episode.scene.look, len(times), rng) if way == "roaming" else None
    return shoot(episode, times, way, looks=looks, side=side)


def shoot(
    episode: Episode, times: Floats, way: Way = "standing", *, looks: Sequence[Look] | None = None, side: int = SIDE
) -> Film:
    """The film of `episode` at `times`, seconds; the agent's camera as in `looks`, one a time, where they are given."""
    looks = looks or [episode.scene.look] * len(times)
    pictures = [_picture(episode, look, float(t), way, side) for look, t in zip(looks, times, strict=True)]
    return Film(
        rgb=np.stack([picture.rgb for picture in pictures]),
        depth=np.stack([encode_depth(picture.depth) for picture in pictures]),
        intrinsic=np.stack([picture.intrinsic for picture in pictures]),
        extrinsic=np.stack([picture.extrinsic for picture in pictures]),
    )


def _picture(episode: Episode, look: Look, time: float, way: Way, side: int) -> Picture:
    if way == "wrist":
        return episode.picture(time, "wrist", side, side)
    if way in ("standing", "swaying"):
        return episode.picture(time, "agent", side, side)
    renderer = Renderer(dataclasses.replace(episode.scene, look=look), episode.world.model)
    return renderer.render(episode.at(time), "agent", side, side)


def _roam(look: Look, frames: int, rng: np.random.Generator) -> list[Look]:
    """A look a frame: the camera starts somewhere on a shell around the table, drifts evenly and shakes a little."""
    # azimuth (radians), distance (metres), height (metres), target x, y, z (metres)
    middle = np.array([0.0, 0.77, 0.51, -0.05, 0.0, 0.08])
    spread = np.array([0.7, 0.17, 0.17, 0.06, 0.08, 0.04])
    drift = np.array([0.22, 0.08, 0.08, 0.05, 0.06, 0.04]) * rng.uniform(0.0, 1.0)  # over the whole film
    shake = np.array([0.006, 0.004, 0.004, 0.004, 0.004, 0.004])
    begin = middle + spread * rng.uniform(-1.0, 1.0, 6)
    along = drift * rng.uniform(-1.0, 1.0, 6)
    fov = rng.uniform(40.0, 58.0)
    looks = []
    for share in np.linspace(0.0, 1.0, frames):
        azimuth, distance, height, *target = begin + share * along + shake * rng.normal(size=6)
        looks.append(
            dataclasses.replace(
                look,
                camera_position=(distance * np.cos(azimuth), distance * np.sin(azimuth), height),
                camera_target=(target[0], target[1], target[2]),
                camera_fov=fov,
            )
        )
    return looks
