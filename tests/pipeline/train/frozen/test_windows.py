"""Windows of films: on VGGT's own terms, and still true after every change at random."""

from dataclasses import replace

import film_factory
import numpy as np
import pytest
import torch

from pipeline.train.frozen.windows import Windows, relative, shrink, stack, window
from stages.points import unproject
from stages.vggt.geometry import extrinsic_from_pose, intrinsic_from_pose


def points(windows: Windows) -> torch.Tensor:
    """World points [S,H,W,3] of the first window, in its units."""
    pose, depth = windows.pose[0], windows.depth[0]
    intrinsic = intrinsic_from_pose(pose, depth.shape[1], depth.shape[2])
    return unproject(depth, intrinsic, extrinsic_from_pose(pose))


def off_the_wall(windows: Windows, mirrored: bool = False) -> float:
    """The greatest distance of a point from the wall, in parts of the wall's own."""
    normal = torch.tensor(film_factory.NORMAL).float()
    if mirrored:
        normal = normal * torch.tensor([-1.0, 1.0, 1.0])
    offset = film_factory.OFFSET / windows.scale
    return float(((points(windows) @ normal - offset) / offset).abs().max())


def test_a_window_is_in_the_world_and_the_units_of_its_first_camera() -> None:
    whole = window(film_factory.wall_film(), range(8))
    assert whole.images.shape == (1, 8, 3, 28, 28)
    torch.testing.assert_close(whole.pose[0, 0, :7], torch.tensor([0, 0, 0, 0, 0, 0, 1.0]))
    torch.testing.assert_close(points(whole).norm(dim=-1).mean(), torch.tensor(1.0))
    assert off_the_wall(whole) < 1e-3


def test_any_frame_may_come_first() -> None:
    later = window(film_factory.wall_film(), [5, 2])
    torch.testing.assert_close(later.pose[0, 0, :7], torch.tensor([0, 0, 0, 0, 0, 0, 1.0]))
    xyz = points(later).flatten(1, 2).double()
    _, _, axes = torch.linalg.svd(xyz[0] - xyz[0].mean(0))
    # the second frame's points lie in the plane of the first's
    assert float(((xyz[1] - xyz[0].mean(0)) @ axes[-1]).abs().max()) < 1e-3


@pytest.mark.parametrize("place", range(12))
def test_a_changed_window_shows_the_same_wall_or_its_mirror_image(place: int) -> None:
    changed = window(film_factory.wall_film(side=56), range(8), np.random.default_rng(place))
    # up to a pixel of the slanted wall: a zoom takes the nearest reading, a mirror moves the middle of even sides
    assert min(off_the_wall(changed), off_the_wall(changed, mirrored=True)) < 0.02
    assert 0 <= float(changed.images.min()) <= float(changed.images.max()) <= 1


def test_changes_are_those_of_the_generator() -> None:
    one, same, other = (window(film_factory.wall_film(), range(4), np.random.default_rng(n)) for n in (1, 1, 2))
    assert torch.equal(one.images, same.images)
    assert not torch.equal(one.images, other.images)


def test_a_shrunk_window_keeps_its_geometry() -> None:
    small = shrink(window(film_factory.wall_film(side=56), range(3)), 28)
    assert small.images.shape == (1, 3, 3, 28, 28)
    assert off_the_wall(small) < 0.02
    with pytest.raises(ValueError, match="divisor"):
        shrink(small, 11)


def test_pixels_without_depth_stay_without() -> None:
    film = film_factory.wall_film()
    depth = film.depth.copy()
    depth[:, :5] = 0
    holed = window(replace(film, depth=depth), range(8))
    assert float(holed.depth[:, :, :5].abs().max()) == 0.0
    assert float(holed.depth[:, :, 5:].min()) > 0.0


def test_windows_stand_side_by_side() -> None:
    parts = [window(film_factory.wall_film(n), [0, 1]) for n in range(3)]
    both = stack(parts)
    assert len(both) == 3
    assert torch.equal(both.depth[1:2], parts[1].depth)


def test_relative_cameras_begin_with_the_identity() -> None:
    cameras = relative(torch.from_numpy(film_factory.wall_film().extrinsic[3:]))
    torch.testing.assert_close(cameras[0], torch.eye(4)[:3])
