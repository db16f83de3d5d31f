"""Pictures without OpenGL: MuJoCo's `mj_multiRay` finds what each pixel sees, NumPy puts light on it."""

from collections.abc import Sequence
from dataclasses import dataclass

import mujoco
import numpy as np
from numpy.typing import NDArray

from pipeline.sim.arm import place_arm
from pipeline.sim.camera import Camera, look_at
from pipeline.sim.camera_motion import CameraMotion
from pipeline.sim.cast import Caster, Hits
from pipeline.sim.distractors import Distractor
from pipeline.sim.geometry import Floats
from pipeline.sim.layout import Scene
from pipeline.sim.shade import Light, Singles, Surface, shade, to_linear, to_srgb

DEPTH_STEP = 1e-4  # metres; the depth sensor counts in tenths of a millimetre, up to 6.5535 m
SEGMENTS = ("nothing", "room", "table", "arm", "gripper")  # the scene's things follow, then the distractors
_LAMP_RADIUS = 0.06
_OFFSETS: Floats = np.array([[-0.125, -0.375], [0.375, -0.125], [0.125, 0.375], [-0.375, 0.125]])  # a rotated grid
_WRIST_EYE = np.array([0.066, 0.0, 0.094])
_WRIST_TARGET = np.array([0.012, 0.0, -0.03])
_WRIST_FOV = 78.0


@dataclass(frozen=True, kw_only=True, eq=False)
class Picture:
    """What a camera sees.

    Attributes:
        rgb: u1 [H,W,3].
        depth: f4 [H,W] metres along the optical axis in steps of 0.1 mm; 0 where there is no reading.
        normal: f4 [H,W,3] unit surface normals in the world frame; 0 where nothing is hit.
        segment: u1 [H,W], numbers of `Renderer.segments`.
        intrinsic, extrinsic: f4 [3,3] pixels (OpenCV: pixel centres at whole numbers), f4 [3,4] camera-from-world.
    """

    rgb: NDArray[np.uint8]
    depth: NDArray[np.float32]
    normal: NDArray[np.float32]
    segment: NDArray[np.uint8]
    intrinsic: NDArray[np.float32]
    extrinsic: NDArray[np.float32]


class Renderer:
    """Renders states of one scene. It has its own MuJoCo data: rendering never touches the physics.

    `model` is that of `build_mjcf(scene, distractors)`; `camera_motion` moves the agent camera, which otherwise stands
    still. Not for two threads at once; make one each.
    """

    def __init__(
        self,
        scene: Scene,
        model: mujoco.MjModel,
        *,
        camera_motion: CameraMotion | None = None,
        distractors: Sequence[Distractor] = (),
    ) -> None:
        self.scene = scene
        self._model = model
        self._data = mujoco.MjData(model)
        self._camera_motion = camera_motion
        self._distractors = [
            (distractor, int(model.body(f"distractor{i}").mocapid[0])) for i, distractor in enumerate(distractors)
        ]
        self.segments: tuple[str, ...] = (
            *SEGMENTS,
            *(thing.name for thing in scene.things),
            *(distractor.name for distractor in distractors),
        )
        self._segment_of = self._segment_table()
        self._surface = Surface(
            rgb=to_linear(model.geom_rgba[:, :3]),
            gloss=model.geom_user[:, 0].astype(np.float32),
            pattern=model.geom_user[:, 1].astype(np.int64),
        )
        look = scene.look
        self._light = Light(
            position=np.array(look.light_position, dtype=np.float32),
            rgb=np.array(look.light_rgb, dtype=np.float32),
            ambient=look.ambient,
        )
        lamp = np.array(look.light_position)
        self._lamp_disc, self._lamp_rim = _lamp_points(lamp)
        self._caster = Caster(model, self._data, lamp, _LAMP_RADIUS)
        self._still: dict[tuple[int, int], Hits] = {}  # of the agent's camera if it stands still, by picture size

    def camera(self, qpos: Floats, view: str, time: float = 0.0) -> Camera:
        """The camera of `view` ("agent" or "wrist") in state `qpos`, at `time` in seconds if it moves by itself."""
        look = self.scene.look
        if view == "agent":
            if self._camera_motion is not None:
                return self._camera_motion.camera(look, time)
            eye, target = np.array(look.camera_position), np.array(look.camera_target)
            return look_at(eye, target, np.array([0.0, 0.0, 1.0]), look.camera_fov)
        assert view == "wrist", view
        self._set(qpos, time)
        hand = self._data.body("hand")
        rotation, origin = hand.xmat.reshape(3, 3), hand.xpos
        return look_at(
            origin + rotation @ _WRIST_EYE, origin + rotation @ _WRIST_TARGET, rotation[:, 0].copy(), _WRIST_FOV
        )

    def render(self, qpos: Floats, view: str, height: int, width: int, time: float = 0.0) -> Picture:
        """What `view` sees in state `qpos` [nq]; `time` in seconds says where camera and distractors are."""
        camera = self.camera(qpos, view, time)
        self._set(qpos, time)
        rows, columns = np.divmod(np.arange(height * width), width)
        pixels = np.stack([columns, rows], axis=1).astype(np.float64)
        directions, cosine = camera.rays(pixels, height, width)
        hits = self._caster.first_hits(
            camera.position, directions, self._still_hits(camera, directions, view, height, width)
        )
        lit = self._lit(hits, height, width)
        linear = self._colour(directions, hits, lit)
        edges = self._edges(hits, lit, height, width)
        if len(edges):
            linear[edges] = self._smooth(camera, pixels[edges], height, width)
        reading = np.where(hits.geom >= 0, hits.distance * cosine, 0.0)
        counts = np.rint(reading / DEPTH_STEP)
        counts[counts > np.iinfo(np.uint16).max] = 0
        return Picture(
            rgb=to_srgb(linear).reshape(height, width, 3),
            depth=decode_depth(counts.astype(np.uint16)).reshape(height, width),
            normal=np.where(hits.geom[:, None] >= 0, hits.normal, 0.0).astype(np.float32).reshape(height, width, 3),
            segment=self._segment_of[hits.geom].reshape(height, width),
            intrinsic=camera.intrinsic(height, width),
            extrinsic=camera.extrinsic(),
        )

    def _still_hits(self, camera: Camera, directions: Floats, view: str, height: int, width: int) -> Hits | None:
        """What the rays of a camera that stands still hit of what stands still, cast once; None if it moves."""
        if view != "agent" or self._camera_motion is not None:
            return None
        if (height, width) not in self._still:
            self._still[height, width] = self._caster.still_hits(camera.position, directions)
        return self._still[height, width]

    def _set(self, qpos: Floats, time: float) -> None:
        self._data.qpos[:] = qpos
        for distractor, mocap in self._distractors:
            self._data.mocap_pos[mocap], self._data.mocap_quat[mocap] = distractor.pose(time)
        place_arm(self._model, self._data)

    def _colour(self, directions: Floats, hits: Hits, lit: Singles) -> Singles:
        """Linear colour f4 [N,3] of hits that see the part `lit` [N] of the lamp."""
        linear = shade(
            hits.point.astype(np.float32),
            hits.normal.astype(np.float32),
            -directions.astype(np.float32),
            hits.geom,
            lit,
            self._surface,
            self._light,
        )
        linear[hits.geom < 0] = to_linear(np.array(self.scene.look.wall_rgb))
        return linear

    def _lit(self, hits: Hits, height: int, width: int) -> Singles:
        """The part f4 [H*W] of the lamp that each pixel sees: soft shadows.

        Four rays decide for every second pixel of every second row; pixels between such as agree on geom and
        light take theirs; the rest is cast, and where the four rays disagree, eight more are.
        """
        geom = hits.geom.reshape(height, width)
        count = np.zeros((height, width), dtype=np.int64)
        faces = self._faces_lamp(hits).reshape(height, width)
        known = np.zeros((height, width), dtype=bool)
        known[::2, ::2] = True
        self._cast_lamp(count, known & faces, hits)

        corners = [
            array[i:, j:][: (height - 1) // 2, : (width - 1) // 2]
            for array in (geom[::2, ::2], count[::2, ::2])
            for i in (0, 1)
            for j in (0, 1)
        ]
        same = np.logical_and.reduce([c == corners[0] for c in corners[1:4]])
        same &= np.logical_and.reduce([c == corners[4] for c in corners[5:]])
        same &= (corners[4] == 0) | (corners[4] == len(self._lamp_rim))
        inner = (slice(2 * same.shape[0]), slice(2 * same.shape[1]))
        between = np.repeat(np.repeat(same, 2, axis=0), 2, axis=1)
        between &= geom[inner] == np.repeat(np.repeat(corners[0], 2, axis=0), 2, axis=1)
        between &= ~known[inner] & faces[inner]
        count[inner][between] = np.repeat(np.repeat(corners[4], 2, axis=0), 2, axis=1)[between]
        known[inner] |= between
        self._cast_lamp(count, ~known & faces, hits)

        lit: Singles = count.reshape(-1).astype(np.float32) / np.float32(len(self._lamp_rim))
        half = np.flatnonzero((lit > 0) & (lit < 1))
        more = self._caster.count_lamp(self._lamp_disc, hits.point[half])
        total = len(self._lamp_rim) + len(self._lamp_disc)
        lit[half] = (lit[half] * len(self._lamp_rim) + more) / total
        return lit

    def _faces_lamp(self, hits: Hits) -> NDArray[np.bool_]:
        towards = np.asarray(self._light.position, dtype=np.float64) - hits.point
        facing: NDArray[np.bool_] = np.einsum("ij,ij->i", towards, hits.normal) > 0
        return facing & (hits.geom >= 0)

    def _cast_lamp(self, count: NDArray[np.int64], where: NDArray[np.bool_], hits: Hits) -> None:
        chosen = np.flatnonzero(where)
        count.reshape(-1)[chosen] = self._count_lamp(self._lamp_rim, hits.point[chosen])

    def _count_lamp(self, lamp: Floats, points: Floats) -> NDArray[np.int64]:
        """How many of the points `lamp` [L,3] each of `points` [N,3] sees."""
        count = np.full(len(points), len(lamp))
        unsure = np.flatnonzero(self._caster.may_be_shaded(points))
        count[unsure] = self._caster.count_lamp(lamp, points[unsure])
        return count

    def _edges(self, hits: Hits, lit: Singles, height: int, width: int) -> NDArray[np.int64]:
        """Pixels whose neighbour shows another geom, another face or another light."""
        geom = hits.geom.reshape(height, width)
        normal = hits.normal.astype(np.float32).reshape(height, width, 3)
        light = lit.reshape(height, width)
        edge = np.zeros((height, width), dtype=bool)
        for near, far in (
            ((slice(None), slice(1, None)), (slice(None), slice(None, -1))),
            ((slice(1, None), slice(None)), (slice(None, -1), slice(None))),
        ):
            differs = geom[near] != geom[far]
            differs |= np.einsum("ijk,ijk->ij", normal[near], normal[far]) < 0.8
            differs |= np.abs(light[near] - light[far]) > 0.3
            edge[near] |= differs
            edge[far] |= differs
        return np.flatnonzero(edge)

    def _smooth(self, camera: Camera, pixels: Floats, height: int, width: int) -> Singles:
        """Linear colour f4 [N,3] of `pixels`, the mean over four rays each."""
        spread = (pixels[:, None] + _OFFSETS).reshape(-1, 2)
        directions, _ = camera.rays(spread, height, width)
        hits = self._caster.first_hits(camera.position, directions)
        facing = np.flatnonzero(self._faces_lamp(hits))
        lit = np.zeros(len(spread), dtype=np.float32)
        for k, lamp in enumerate(self._lamp_rim):  # each of a pixel's four rays meets another point of the lamp
            mine = facing[facing % len(_OFFSETS) == k]
            lit[mine] = self._count_lamp(lamp[None], hits.point[mine])
        linear = self._colour(directions, hits, lit)
        # Clipped before the mean: a glint must not bleed over the edge.
        mean = np.minimum(linear, 1.0).reshape(-1, len(_OFFSETS), 3).mean(axis=1)
        return np.asarray(mean, dtype=np.float32)

    def _segment_table(self) -> NDArray[np.uint8]:
        """Segment number of each geom; the last entry, which index -1 picks, is "nothing"."""
        model = self._model
        table = np.zeros(model.ngeom + 1, dtype=np.uint8)
        for geom in range(model.ngeom):
            body = model.body(int(model.body_rootid[model.geom_bodyid[geom]])).name
            if body.startswith("thing"):
                table[geom] = len(SEGMENTS) + int(body.removeprefix("thing"))
            elif body.startswith("distractor"):
                table[geom] = len(SEGMENTS) + len(self.scene.things) + int(body.removeprefix("distractor"))
            elif body == "hand":
                table[geom] = SEGMENTS.index("gripper")
            elif body in ("turret", "upper", "fore"):
                table[geom] = SEGMENTS.index("arm")
            else:
                room = model.geom(geom).name in ("floor", "wall")
                table[geom] = SEGMENTS.index("room" if room else "table")
        return table


def encode_depth(depth: NDArray[np.float32]) -> NDArray[np.uint16]:
    """Metres as whole tenths of a millimetre, the inverse of `decode_depth` on what a `Renderer` returns."""
    return np.rint(depth.astype(np.float64) / DEPTH_STEP).astype(np.uint16)


def decode_depth(counts: NDArray[np.uint16]) -> NDArray[np.float32]:
    """f4 metres of tenths of a millimetre."""
    return (counts.astype(np.float64) * DEPTH_STEP).astype(np.float32)


def _lamp_points(centre: Floats) -> tuple[Floats, Floats]:
    """Points of the level round lamp: eight inside it and four on its rim."""
    golden = np.pi * (3 - np.sqrt(5))
    k = np.arange(8)
    radius, angle = _LAMP_RADIUS * np.sqrt((k + 0.5) / 8), golden * k
    inner = np.stack([radius * np.cos(angle), radius * np.sin(angle), 0 * radius], axis=1)
    rim = _LAMP_RADIUS * np.array([[1.0, 0, 0], [-1.0, 0, 0], [0, 1.0, 0], [0, -1.0, 0]])
    return centre + inner, centre + rim
