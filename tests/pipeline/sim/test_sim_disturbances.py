"""A moving camera and distractors: what they do to the pictures, and that they do nothing else."""

import mujoco
import numpy as np
import pytest

from pipeline.sim.arm import place_arm
from pipeline.sim.camera_motion import MOST_MOVED, MOST_TURNED, CameraMotion, sample_camera_motion
from pipeline.sim.cast import Caster
from pipeline.sim.distractors import PLACES, sample_distractors
from pipeline.sim.episode import Episode, attempt_episode
from pipeline.sim.layout import WORKSPACE, Scene, sample_scene
from pipeline.sim.mjcf import GROUP_MOVING, HAND_LOW
from pipeline.sim.render import SEGMENTS, Picture, Renderer
from pipeline.sim.sway import REST
from pipeline.sim.tasks import find_tasks

HEIGHT, WIDTH = 60, 80
TASK = find_tasks("place")[0]
PARTS = ("rgb", "depth", "normal", "segment", "extrinsic")


def attempt(**more: bool) -> Episode:
    return attempt_episode(4, 0, 0, TASK, **more)


@pytest.fixture(scope="module")
def plain() -> Episode:
    return attempt()


@pytest.fixture(scope="module")
def moving() -> Episode:
    return attempt(camera_motion=True)


@pytest.fixture(scope="module")
def crowded() -> Episode:
    return attempt(distractors=True)


@pytest.fixture(scope="module")
def both() -> Episode:
    return attempt(camera_motion=True, distractors=True)


def scenes(count: int) -> list[Scene]:
    return [sample_scene(TASK, np.random.default_rng(seed)) for seed in range(count)]


def table_heights(picture: Picture) -> np.ndarray:
    """World z of what the picture says is the top of the table, from its depth and camera."""
    v, u = np.mgrid[:HEIGHT, :WIDTH]
    pixels = np.stack([u, v, np.ones_like(u)], axis=-1).astype(np.float64)
    camera = pixels @ np.linalg.inv(picture.intrinsic.astype(np.float64)).T * picture.depth[..., None]
    points = (camera - picture.extrinsic[:, 3]) @ picture.extrinsic[:, :3].astype(np.float64)
    top = (picture.segment == SEGMENTS.index("table")) & (picture.normal[..., 2] > 0.99)
    return points[top, 2]


def test_the_demonstration_is_the_same_with_and_without(plain: Episode, both: Episode) -> None:
    assert plain.success
    for name in ("snapshots", "state", "action"):
        assert np.array_equal(getattr(plain, name), getattr(both, name)), name
    assert (plain.scene, plain.key, plain.success) == (both.scene, both.key, both.success)


def test_neither_depends_on_the_other(moving: Episode, crowded: Episode, both: Episode) -> None:
    assert (both.camera_motion, both.distractors) == (moving.camera_motion, crowded.distractors)
    assert moving.distractors == () and crowded.camera_motion is None
    assert attempt_episode(4, 1, 0, TASK, camera_motion=True).camera_motion != moving.camera_motion


def test_a_camera_that_does_not_move_sees_what_the_still_one_sees(plain: Episode) -> None:
    """The still camera's rays are cast once and kept; a moving camera must not use them, and loses nothing by it."""
    standing = Renderer(plain.scene, plain.world.model, camera_motion=CameraMotion(kind="dolly", move=REST, turn=REST))
    for time in (0.0, 1.5):
        one = plain.picture(time, "agent", HEIGHT, WIDTH)
        other = standing.render(plain.at(time), "agent", HEIGHT, WIDTH, time)
        for name in PARTS:
            assert np.array_equal(getattr(one, name), getattr(other, name)), name


def test_depth_and_camera_agree_while_the_camera_moves(moving: Episode) -> None:
    pictures = [moving.picture(time, "agent", HEIGHT, WIDTH) for time in (0.0, 0.5, 1.0)]
    for picture in pictures:
        heights = table_heights(picture)
        assert len(heights) > 0.2 * HEIGHT * WIDTH
        assert np.abs(heights).max() < 3e-4
    assert np.abs(pictures[0].extrinsic - pictures[1].extrinsic).max() > 1e-3
    wrist = moving.picture(1.0, "wrist", HEIGHT, WIDTH)
    assert np.array_equal(wrist.rgb, attempt().picture(1.0, "wrist", HEIGHT, WIDTH).rgb)


def test_the_camera_moves_as_far_as_it_says_and_smoothly() -> None:
    look = scenes(1)[0].look
    kinds = set()
    for seed in range(60):
        motion = sample_camera_motion(np.random.default_rng(seed))
        kinds.add(motion.kind)
        cameras = [motion.camera(look, tick / 20) for tick in range(160)]
        position = np.array([camera.position for camera in cameras])
        rotation = np.array([camera.rotation for camera in cameras])

        def moved(ticks: int, position: np.ndarray = position) -> float:
            return float(np.linalg.norm(position[ticks:] - position[:-ticks], axis=1).max())

        cosine = (np.einsum("nij,nij->n", rotation[20:], rotation[:-20]) - 1) / 2
        assert 0.02 < moved(20) < MOST_MOVED
        assert np.rad2deg(np.arccos(cosine.min())) < MOST_TURNED
        assert moved(1) < 0.012  # no jump from a frame to the next
        assert np.linalg.norm(position - np.array(look.camera_position), axis=1).max() < MOST_MOVED
    assert kinds == {"orbit", "dolly", "handheld"}


def test_distractors_stay_in_places_where_no_task_comes() -> None:
    for place in PLACES:
        assert place.high[0] < min(HAND_LOW[0], WORKSPACE[0][0]) - 0.07
    for seed, scene in enumerate(scenes(40)):
        distractors = sample_distractors(scene, np.random.default_rng(seed))
        assert 1 <= len(distractors) <= 3
        assert len({distractor.place for distractor in distractors}) == len(distractors)
        assert not {d.thing.colour for d in distractors} & {thing.colour for thing in scene.things}
        for distractor in distractors:
            size = distractor.thing.size
            half = np.array([distractor.thing.radius, distractor.thing.radius, size[2]])
            track = np.array([distractor.pose(tick / 20)[0] for tick in range(120)])
            assert (track - half > np.array(distractor.place.low) - 1e-9).all(), distractor
            assert (track + half < np.array(distractor.place.high) + 1e-9).all(), distractor
            assert np.ptp(track, axis=0).max() > 0.03, distractor
            assert np.linalg.norm(np.diff(track, axis=0), axis=1).max() * 20 < 2.0, distractor  # m/s
            if distractor.place.on_table:
                np.testing.assert_allclose(track[:, 2], size[2])


@pytest.mark.parametrize("seed", range(4))
def test_distractors_keep_clear_of_the_robot(seed: int) -> None:
    """Distances of pairs of geoms; `mj_geomDistance` now and then says 0 for boxes far apart, spheres do not."""
    episode = attempt_episode(seed, 0, 0, find_tasks(("push", "reach", "pick", "stack")[seed])[0], distractors=True)
    renderer = episode.renderer
    model, data = renderer._model, renderer._data
    ours = [int(model.body(f"distractor{i}").geomadr[0]) for i in range(len(episode.distractors))]
    others = [g for g in range(model.ngeom) if model.geom_group[g] == GROUP_MOVING and g not in ours]
    for time in np.arange(0, episode.seconds, 0.25):
        renderer.render(episode.at(time), "agent", 2, 2, time)
        for one in ours:
            for other in others:
                apart = np.linalg.norm(data.geom_xpos[one] - data.geom_xpos[other])
                gap = apart - model.geom_rbound[one] - model.geom_rbound[other]
                gap = max(gap, mujoco.mj_geomDistance(model, data, one, other, 1.0, None))
                assert gap > 0.005, (time, episode.distractors[ours.index(one)].name)


def test_distractors_are_seen_where_they_are_and_hide_what_is_behind_them(plain: Episode, crowded: Episode) -> None:
    names = crowded.renderer.segments
    assert names[: len(plain.renderer.segments)] == plain.renderer.segments
    assert names[len(plain.renderer.segments) :] == tuple(d.name for d in crowded.distractors)
    seen = 0
    for time in (0.0, 1.0, 2.0):
        one, other = (episode.picture(time, "agent", HEIGHT, WIDTH) for episode in (plain, crowded))
        theirs = other.segment >= len(plain.renderer.segments)
        seen += int(theirs.sum())
        assert (other.depth[theirs] < one.depth[theirs]).all()
        for name in ("depth", "segment", "normal"):
            assert np.array_equal(getattr(one, name)[~theirs], getattr(other, name)[~theirs]), name
    assert seen > 10


def test_every_pixel_sees_what_a_single_ray_sees(both: Episode) -> None:
    time = 2.0
    renderer = both.renderer
    picture = both.picture(time, "agent", HEIGHT, WIDTH)
    model = renderer._model
    data = mujoco.MjData(model)
    data.qpos[:] = both.at(time)
    for i, distractor in enumerate(both.distractors):
        mocap = model.body(f"distractor{i}").mocapid[0]
        data.mocap_pos[mocap], data.mocap_quat[mocap] = distractor.pose(time)
    place_arm(model, data)
    camera = renderer.camera(both.at(time), "agent", time)
    v, u = np.divmod(np.arange(HEIGHT * WIDTH), WIDTH)
    directions, cosine = camera.rays(np.stack([u, v], axis=1).astype(float), HEIGHT, WIDTH)
    geom = np.zeros(1, dtype=np.int32)
    distance = np.array([mujoco.mj_ray(model, data, camera.position, d, None, 1, -1, geom) for d in directions])
    np.testing.assert_allclose(picture.depth.reshape(-1), distance * cosine, atol=6e-5)


def test_skipping_rays_changes_nothing(both: Episode, monkeypatch: pytest.MonkeyPatch) -> None:
    times = (0.0, 1.5)
    quick = [both.picture(time, "agent", HEIGHT, WIDTH) for time in times]
    monkeypatch.setattr(Caster, "may_be_shaded", lambda self, points: np.ones(len(points), dtype=bool))
    monkeypatch.setattr(Caster, "_near", lambda self, rays, *_: np.ones(len(rays), dtype=bool))
    full = [both.picture(time, "agent", HEIGHT, WIDTH) for time in times]
    for one, other in zip(quick, full, strict=True):
        for name in PARTS:
            assert np.array_equal(getattr(one, name), getattr(other, name)), name
