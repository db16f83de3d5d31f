"""Rays through a scene with `mj_multiRay`, and only those that could hit something.

A ray is cast at moving geoms only where it passes through the sphere around one of them; what stands still is cast
once for a camera that stands still. The tests are conservative: no result depends on them (a test compares).
"""

from dataclasses import dataclass

import mujoco
import numpy as np
from numpy.typing import NDArray

from pipeline.sim.geometry import Floats
from pipeline.sim.mjcf import GROUP_MOVING, GROUP_ROOM, GROUP_STILL

Mask = NDArray[np.bool_]

_FAR = 20.0  # metres
_SLACK = 4e-6  # of a cosine in float32
_TABLE_TOP = -0.001  # points over this are not in the table's shadow, metres


@dataclass(frozen=True, eq=False)
class Hits:
    """What N rays hit: `geom` i4 [N] (-1: nothing), `distance` [N], `normal` [N,3], `point` [N,3]; world, metres."""

    geom: NDArray[np.int32]
    distance: Floats
    normal: Floats
    point: Floats


class Caster:
    """Casts rays into `data`, whose kinematics its owner keeps up to date, from eyes and from a round level lamp."""

    def __init__(self, model: mujoco.MjModel, data: mujoco.MjData, lamp: Floats, lamp_radius: float) -> None:
        self._model, self._data = model, data
        self._lamp, self._lamp_radius = lamp, lamp_radius
        group = np.asarray(model.geom_group)
        self._moving = np.flatnonzero(group == GROUP_MOVING)
        table = model.geom("table").id
        self._occluders = np.flatnonzero((group != GROUP_ROOM) & (np.arange(model.ngeom) != table))

    def first_hits(self, origin: Floats, directions_N3: Floats, still: Hits | None = None) -> Hits:
        """The nearest hits of unit rays; `still` are those of the same rays with what stands still, if known."""
        still = still or self.still_hits(origin, directions_N3)
        radius = np.asarray(self._model.geom_rbound)[self._moving]
        near = np.flatnonzero(self._near(directions_N3, origin, self._moving, radius))
        moving = self._cast(origin, directions_N3[near], (GROUP_MOVING,))
        closer = (moving.geom >= 0) & ((still.geom[near] < 0) | (moving.distance < still.distance[near]))
        changed = near[closer]
        hits = Hits(still.geom.copy(), still.distance.copy(), still.normal.copy(), still.point.copy())
        hits.geom[changed] = moving.geom[closer]
        hits.distance[changed] = moving.distance[closer]
        hits.normal[changed] = moving.normal[closer]
        hits.point[changed] = moving.point[closer]
        return hits

    def still_hits(self, origin: Floats, directions_N3: Floats) -> Hits:
        """The nearest hits of unit rays with what stands still."""
        return self._cast(origin, directions_N3, (GROUP_STILL, GROUP_ROOM))

    def may_be_shaded(self, points_N3: Floats) -> Mask:
        """Points [N] between which and some part of the lamp something may be; the rest see all of it."""
        out = np.empty(len(points_N3), dtype=bool)
        low = points_N3[:, 2] < _TABLE_TOP
        out[low] = True  # few: the wall's foot, the floor, the table's edge
        high = np.flatnonzero(~low)
        way = points_N3[high] - self._lamp
        way /= np.sqrt(np.einsum("ij,ij->i", way, way))[:, None]
        # Lines to the lamp's middle and to its rim are apart by a part of its radius: the part of the way from the
        # point up to the lamp that the top of the occluder is at. A point on the table is the lowest one.
        rbound = np.asarray(self._model.geom_rbound)[self._occluders]
        top = np.asarray(self._data.geom_xpos)[self._occluders, 2] + rbound
        apart = self._lamp_radius * np.clip((top - _TABLE_TOP) / (self._lamp[2] - _TABLE_TOP), 0.0, 1.0)
        out[high] = self._near(way, self._lamp, self._occluders, rbound + apart)
        return out

    def count_lamp(self, lamp_L3: Floats, points_N3: Floats) -> NDArray[np.int64]:
        """How many of the lamp's points [L,3] each of the points [N,3] sees."""
        count = np.zeros(len(points_N3), dtype=np.int64)
        distance = np.empty(len(points_N3))
        geom = np.empty(len(points_N3), dtype=np.int32)
        for origin in lamp_L3:
            way = points_N3 - origin
            length = np.sqrt(np.einsum("ij,ij->i", way, way))
            way /= length[:, None]
            mujoco.mj_multiRay(
                self._model, self._data, origin, way.reshape(-1), _groups(GROUP_MOVING, GROUP_STILL), 1, -1,
                geom, distance, None, len(points_N3), _FAR,
            )  # fmt: skip
            count += (distance < 0) | (distance > length - 1e-3)
        return count

    def _cast(self, origin: Floats, directions_N3: Floats, groups: tuple[int, ...]) -> Hits:
        count = len(directions_N3)
        geom = np.empty(count, dtype=np.int32)
        distance = np.empty(count)
        normal = np.zeros((count, 3))
        mujoco.mj_multiRay(
            self._model, self._data, origin, directions_N3.reshape(-1), _groups(*groups), 1, -1,
            geom, distance, normal.reshape(-1), count, _FAR,
        )  # fmt: skip
        return Hits(geom, distance, normal, origin + distance[:, None] * directions_N3)

    def _near(self, directions_N3: Floats, origin: Floats, geoms: NDArray[np.int64], radius: Floats) -> Mask:
        """Whether unit rays from `origin` pass through a sphere of `radius` around one of `geoms`."""
        to_centre = np.asarray(self._data.geom_xpos)[geoms] - origin
        distance = np.sqrt(np.einsum("ij,ij->i", to_centre, to_centre))
        sine = np.minimum(radius / distance, 1.0)
        least = np.where(radius < distance, np.sqrt(1.0 - sine * sine), -1.0) - _SLACK
        axes = (to_centre / distance[:, None]).astype(np.float32)
        rays = directions_N3.astype(np.float32)
        out = np.zeros(len(rays), dtype=bool)
        for axis, cosine in zip(axes, least.astype(np.float32), strict=True):
            out |= rays[:, 0] * axis[0] + rays[:, 1] * axis[1] + rays[:, 2] * axis[2] > cosine
        return out


def _groups(*groups: int) -> NDArray[np.uint8]:
    """MuJoCo's six flags for geom groups."""
    flags = np.zeros(6, dtype=np.uint8)
    flags[list(groups)] = 1
    return flags
