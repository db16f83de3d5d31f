import mujoco
import numpy as np
import pytest

from pipeline.sim.arm import place_arm
from pipeline.sim.camera import check_view
from pipeline.sim.cast import Caster
from pipeline.sim.episode import Episode, attempt_episode
from pipeline.sim.render import Picture, decode_depth, encode_depth
from pipeline.sim.shade import to_linear, to_srgb
from pipeline.sim.tasks import find_tasks

HEIGHT, WIDTH = 60, 80
VIEWS = ("agent", "wrist")


@pytest.fixture(scope="module")
def episode() -> Episode:
    return attempt_episode(4, 0, 0, find_tasks("place")[0])


def unproject(picture: Picture) -> np.ndarray:
    """World points [H,W,3] of a picture's depth."""
    height, width = picture.depth.shape
    v, u = np.mgrid[:height, :width]
    pixels = np.stack([u, v, np.ones_like(u)], axis=-1).astype(np.float64)
    camera = pixels @ np.linalg.inv(picture.intrinsic.astype(np.float64)).T * picture.depth[..., None]
    rotation, translation = picture.extrinsic[:, :3].astype(np.float64), picture.extrinsic[:, 3].astype(np.float64)
    return (camera - translation) @ rotation


@pytest.mark.parametrize("view", VIEWS)
def test_every_pixel_sees_what_a_single_ray_sees(episode: Episode, view: str) -> None:
    """`mj_multiRay` cuts geoms off where a body has several; the scene must give it no chance to."""
    time = 2.0
    model = episode.world.model
    data = mujoco.MjData(model)
    data.qpos[:] = episode.at(time)
    place_arm(model, data)
    camera = episode.renderer.camera(episode.at(time), view)
    v, u = np.divmod(np.arange(HEIGHT * WIDTH), WIDTH)
    directions, cosine = camera.rays(np.stack([u, v], axis=1).astype(float), HEIGHT, WIDTH)
    geom = np.zeros(1, dtype=np.int32)
    distance = np.array([mujoco.mj_ray(model, data, camera.position, d, None, 1, -1, geom) for d in directions])
    picture = episode.picture(time, view, HEIGHT, WIDTH)
    np.testing.assert_allclose(picture.depth.reshape(-1), distance * cosine, atol=6e-5)


@pytest.mark.parametrize("view", VIEWS)
def test_depth_camera_and_segments_agree(episode: Episode, view: str) -> None:
    picture = episode.picture(0.0, view, HEIGHT, WIDTH)
    points = unproject(picture)
    top = (picture.segment == episode.renderer.segments.index("table")) & (picture.normal[..., 2] > 0.99)
    assert top.mean() > 0.2
    assert np.abs(points[top, 2]).max() < 3e-4
    found = 0
    for i, thing in enumerate(episode.scene.things):
        here = picture.segment == episode.renderer.segments.index(thing.name)
        if here.sum() < 4:
            continue
        found += 1
        away = np.hypot(points[here, 0] - thing.xy[0], points[here, 1] - thing.xy[1])
        assert away.max() < thing.radius + 0.01, (i, thing.name)
        assert points[here, 2].min() > -1e-3
        assert points[here, 2].max() < 2 * thing.size[2] + 1e-3
    assert found >= (3 if view == "agent" else 1)


def test_arrays(episode: Episode) -> None:
    picture = episode.picture(0.0, "agent", HEIGHT, WIDTH)
    assert (picture.rgb.dtype, picture.rgb.shape) == (np.uint8, (HEIGHT, WIDTH, 3))
    assert (picture.depth.dtype, picture.depth.shape) == (np.float32, (HEIGHT, WIDTH))
    assert (picture.intrinsic.dtype, picture.extrinsic.dtype) == (np.float32, np.float32)
    assert picture.depth.min() > 0  # a room all around
    np.testing.assert_allclose(np.linalg.norm(picture.normal, axis=-1), 1, atol=1e-5)
    rotation = picture.extrinsic[:, :3]
    np.testing.assert_allclose(rotation @ rotation.T, np.eye(3), atol=1e-6)
    assert np.linalg.det(rotation) > 0.99
    assert picture.rgb.std() > 20  # light and colour, not one grey
    assert len(np.unique(picture.segment)) >= 6


def test_things_have_their_colours(episode: Episode) -> None:
    """The blue tray is bluish: the light may change how bright a colour is, not which."""
    picture = episode.picture(0.0, "agent", 120, 160)
    for thing in episode.scene.things:
        here = picture.segment == episode.renderer.segments.index(thing.name)
        if here.sum() < 30:
            continue
        seen, paint = to_linear(picture.rgb[here] / 255).mean(axis=0), to_linear(np.array(thing.rgb))
        assert seen @ paint > 0.93 * np.linalg.norm(seen) * np.linalg.norm(paint), thing.name


def test_skipping_rays_changes_nothing(episode: Episode, monkeypatch: pytest.MonkeyPatch) -> None:
    times = (0.0, 1.5, 3.0)
    quick = [episode.picture(t, view, HEIGHT, WIDTH) for t in times for view in VIEWS]
    monkeypatch.setattr(Caster, "may_be_shaded", lambda self, points: np.ones(len(points), dtype=bool))
    monkeypatch.setattr(Caster, "_near", lambda self, rays, *_: np.ones(len(rays), dtype=bool))
    full = [episode.picture(t, view, HEIGHT, WIDTH) for t in times for view in VIEWS]
    for one, other in zip(quick, full, strict=True):
        for name in ("rgb", "depth", "normal", "segment"):
            assert np.array_equal(getattr(one, name), getattr(other, name)), name


def test_a_picture_depends_on_the_moment_only(episode: Episode) -> None:
    first = episode.picture(1.0, "wrist", HEIGHT, WIDTH)
    episode.picture(2.0, "agent", HEIGHT, WIDTH)
    again = episode.picture(1.0, "wrist", HEIGHT, WIDTH)
    assert first.rgb.tobytes() == again.rgb.tobytes()
    assert first.depth.tobytes() == again.depth.tobytes()


def test_the_wrist_camera_moves_and_the_agent_camera_does_not(episode: Episode) -> None:
    def extrinsics(view: str) -> list[np.ndarray]:
        return [episode.picture(t, view, 8, 8).extrinsic for t in (0.0, 1.0)]

    assert np.array_equal(*extrinsics("agent"))
    assert np.abs(np.subtract(*extrinsics("wrist"))).max() > 0.01


def test_the_arm_meets_the_hand(episode: Episode) -> None:
    model = episode.world.model
    data = mujoco.MjData(model)
    for qpos in episode.snapshots[::20]:
        data.qpos[:] = qpos
        place_arm(model, data)
        elbow, fore = data.body("upper"), data.body("fore")
        np.testing.assert_allclose(elbow.xpos + 0.40 * elbow.xmat.reshape(3, 3)[:, 0], fore.xpos, atol=1e-6)
        hand = data.body("hand")
        flange = hand.xpos + 0.165 * hand.xmat.reshape(3, 3)[:, 2]
        np.testing.assert_allclose(fore.xpos + 0.40 * fore.xmat.reshape(3, 3)[:, 0], flange, atol=1e-6)


def test_depth_is_counted_in_tenths_of_a_millimetre() -> None:
    counts = np.arange(65536, dtype=np.uint16)
    assert np.array_equal(encode_depth(decode_depth(counts)), counts)
    assert decode_depth(np.array([12345], dtype=np.uint16))[0] == np.float32(1.2345)


def test_srgb_comes_back() -> None:
    levels = np.arange(40, 256)
    assert np.abs(to_srgb(to_linear(levels / 255)).astype(int) - levels).max() <= 1


def test_unknown_view() -> None:
    with pytest.raises(ValueError, match="Did you mean 'wrist'"):
        check_view("wirst")
