import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stages.points import (
    SCENE_Z_EXTENT,
    fit_normalisation,
    normals_from_depth,
    priorities,
    subsample,
    turn_z_up,
    unproject,
    unproject_pixels,
    voxelise,
)


def _camera(generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    rotation, _ = torch.linalg.qr(torch.randn(3, 3, generator=generator, dtype=torch.float64))
    rotation = rotation * torch.sign(torch.det(rotation))
    translation = torch.randn(3, 1, generator=generator, dtype=torch.float64)
    intrinsic = torch.tensor([[210.0, 0, 100.3], [0, 195.0, 90.1], [0, 0, 1]], dtype=torch.float64)
    return intrinsic, torch.cat([rotation, translation], 1)


@given(st.integers(0, 2**31))
@settings(max_examples=25, deadline=None)
def test_unprojected_points_project_back_to_their_pixels(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    intrinsic, extrinsic = _camera(generator)
    height, width = 30, 40
    depth = torch.rand(1, height, width, generator=generator, dtype=torch.float64) + 0.5
    xyz = unproject(depth, intrinsic[None], extrinsic[None])[0].reshape(-1, 3)
    camera = xyz @ extrinsic[:, :3].T + extrinsic[:, 3]
    image = camera @ intrinsic.T
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    torch.testing.assert_close(image[:, 0] / image[:, 2], columns.flatten().double())
    torch.testing.assert_close(image[:, 1] / image[:, 2], rows.flatten().double())
    torch.testing.assert_close(image[:, 2], depth.flatten())


def test_pixels_of_a_batch_agree_with_the_whole_map() -> None:
    generator = torch.Generator().manual_seed(3)
    intrinsic, extrinsic = _camera(generator)
    depth = torch.rand(2, 8, 8, generator=generator, dtype=torch.float64) + 1
    whole = unproject(depth, intrinsic.expand(2, 3, 3), extrinsic.expand(2, 3, 4)).reshape(2, 64, 3)
    pixel = torch.tensor([[3, 17, 63], [0, 8, 9]])
    part = unproject_pixels(
        pixel, depth.reshape(2, -1).gather(1, pixel), intrinsic.expand(2, 3, 3), extrinsic.expand(2, 3, 4), 8
    )
    torch.testing.assert_close(part, whole.gather(1, pixel[..., None].expand(-1, -1, 3)))


def test_turning_z_up_moves_no_camera_and_puts_up_up() -> None:
    identity = torch.eye(3, 4)[None]
    depth = torch.ones(1, 5, 5)
    intrinsic = torch.tensor([[[5.0, 0, 2], [0, 5, 2], [0, 0, 1]]])
    before = unproject(depth, intrinsic, identity)
    after = unproject(depth, intrinsic, turn_z_up(identity))
    torch.testing.assert_close(after[..., 0], before[..., 0])
    torch.testing.assert_close(after[..., 1], before[..., 2])
    torch.testing.assert_close(after[..., 2], -before[..., 1])
    assert after[0, 0, 2, 2] > after[0, 4, 2, 2]  # the upper row of the image is higher up


def test_priorities_are_a_permutation_that_depends_on_seed_key_and_frame_only() -> None:
    first = priorities(0, "clip", 1000)
    assert torch.equal(first.sort().values, torch.arange(1000))
    assert torch.equal(first, priorities(0, "clip", 1000))
    others = [priorities(1, "clip", 1000), priorities(0, "clop", 1000), priorities(0, "clip", 1000, frame=0)]
    assert all(not torch.equal(first, other) for other in others)


def _chosen(
    valid: torch.Tensor, xyz: torch.Tensor, *, count: int, sampling: str, key: str = "k", voxel: float = 0.1
) -> list[torch.Tensor]:
    frames, pixels = valid.shape
    if sampling == "random_per_frame":
        rank = torch.stack([priorities(0, key, pixels, frame=i) for i in range(frames)])
    else:
        rank = priorities(0, key, pixels).expand(frames, -1)
    pixel, kept = subsample(valid, xyz, rank, count=count, sampling=sampling, voxels=[voxel] * frames)  # type: ignore[arg-type]
    assert pixel.shape == (frames, count)
    assert all(bool((own[n:] == pixels).all()) for own, n in zip(pixel, kept.tolist(), strict=True))
    return [own[:n] for own, n in zip(pixel, kept.tolist(), strict=True)]


def _wall(frames: int = 3, side: int = 24) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    depth = torch.rand(1, side, side, generator=generator).expand(frames, -1, -1) + 1
    intrinsic = torch.tensor([[20.0, 0, side / 2], [0, 20, side / 2], [0, 0, 1]]).expand(frames, 3, 3)
    xyz = unproject(depth, intrinsic, torch.eye(3, 4).expand(frames, 3, 4)).flatten(1, 2)
    return torch.ones(frames, side * side, dtype=torch.bool), xyz


@pytest.mark.parametrize("sampling", ["random", "random_per_frame", "fps", "voxel"])
def test_every_sampling_keeps_distinct_valid_sorted_pixels(sampling: str) -> None:
    valid, xyz = _wall()
    valid = valid.clone()
    valid[:, ::3] = False
    chosen = _chosen(valid, xyz, count=100, sampling=sampling)
    again = _chosen(valid, xyz, count=100, sampling=sampling)
    for i, pixel in enumerate(chosen):
        assert len(pixel) == 100
        assert bool((pixel[1:] > pixel[:-1]).all())
        assert bool(valid[i, pixel].all())
        assert torch.equal(pixel, again[i])
        # a frame alone gives what it gives among others
        if sampling != "random_per_frame":
            alone = _chosen(valid[i : i + 1], xyz[i : i + 1], count=100, sampling=sampling)
            assert torch.equal(pixel, alone[0])


def test_what_stands_still_keeps_its_points() -> None:
    valid, xyz = _wall()
    moved = valid.clone()
    moved[1, 200:260] = False  # something hides a part of the second frame
    kept = _chosen(moved, xyz, count=300, sampling="random")
    assert torch.equal(kept[0], kept[2])
    visible = kept[0][(kept[0] < 200) | (kept[0] >= 260)]
    assert set(visible.tolist()) <= set(kept[1].tolist())
    fresh = _chosen(valid, xyz, count=300, sampling="random_per_frame")
    assert not torch.equal(fresh[0], fresh[2])


def test_voxel_sampling_takes_one_of_every_voxel_first() -> None:
    xyz = torch.rand(1, 2000, 3, generator=torch.Generator().manual_seed(1))
    cells = torch.unique(torch.floor(xyz[0] / 0.25).long(), dim=0)
    chosen = _chosen(
        torch.ones(1, 2000, dtype=torch.bool),
        xyz,
        count=len(cells),
        sampling="voxel",
        voxel=0.25,
    )[0]
    assert len(torch.unique(torch.floor(xyz[0, chosen] / 0.25).long(), dim=0)) == len(cells)


def test_farthest_points_are_farther_apart_than_random_ones() -> None:
    xyz = torch.rand(1, 3000, 3, generator=torch.Generator().manual_seed(2))
    valid = torch.ones(1, 3000, dtype=torch.bool)

    def spread(sampling: str) -> float:
        chosen = xyz[0, _chosen(valid, xyz, count=200, sampling=sampling)[0]]
        distance = torch.cdist(chosen, chosen) + 9 * torch.eye(200)
        return float(distance.min())

    assert spread("fps") > 3 * spread("random")


def test_fewer_candidates_than_asked_are_all_taken() -> None:
    valid, xyz = _wall(1)
    valid = valid.clone()
    valid[0, 50:] = False
    assert len(_chosen(valid, xyz, count=100, sampling="random")[0]) == 50


@pytest.mark.parametrize("kind", ["unit", "scene"])
def test_normalised_spaces_have_the_described_extent(kind: str) -> None:
    xyz = torch.rand(500, 3, generator=torch.Generator().manual_seed(0)) * torch.tensor([4.0, 2.0, 1.0]) + 7
    space = fit_normalisation(xyz, kind)
    out = space.apply(xyz)
    low, high = out.amin(0), out.amax(0)
    torch.testing.assert_close(space.low, low, atol=1e-5, rtol=0)
    if kind == "unit":
        assert math.isclose(float(high[0]), 1, abs_tol=1e-5)
        torch.testing.assert_close(low, -high, atol=1e-4, rtol=0)
    else:
        assert math.isclose(float(low[2]), 0, abs_tol=1e-5)
        assert math.isclose(float(high[2]), SCENE_Z_EXTENT, abs_tol=1e-4)
        torch.testing.assert_close(low[:2], -high[:2], atol=1e-4, rtol=0)


def test_a_cloud_without_extent_is_refused_with_a_sentence() -> None:
    with pytest.raises(ValueError, match="cannot be normalised"):
        fit_normalisation(torch.zeros(10, 3), "unit")
    with pytest.raises(ValueError, match="expected 'unit' or 'scene'"):
        fit_normalisation(torch.rand(10, 3), "sphere")  # type: ignore[arg-type]


@given(st.integers(0, 2**31), st.sampled_from([0.02, 0.1, 0.5]))
@settings(max_examples=30, deadline=None)
def test_voxels_are_unique_cover_all_points_and_keep_the_least_rank(seed: int, grid: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    coord = torch.rand(400, 3, generator=generator) * 2 - 1
    rank = torch.randperm(400, generator=generator)
    low = coord.amin(0)
    voxels = voxelise(coord, rank, grid=grid, low=low)
    assert len(torch.unique(voxels.grid, dim=0)) == len(voxels.grid)
    assert int(voxels.grid.min()) == 0
    expected = torch.floor((coord.double() - low.double()) / grid).long()
    assert torch.equal(voxels.grid[voxels.inverse], expected)
    for v in range(len(voxels.grid)):
        members = torch.nonzero(voxels.inverse == v).squeeze(1)
        assert int(voxels.index[v]) == int(members[rank[members].argmin()])


def test_frames_that_share_a_space_share_their_voxels() -> None:
    still = torch.rand(100, 3, generator=torch.Generator().manual_seed(0))
    mover = torch.tensor([[2.0, 2.0, 2.0]])
    space = fit_normalisation(torch.cat([still, mover]), "unit")
    rank = torch.arange(101)
    first = voxelise(space.apply(still), rank[:100], grid=0.02, low=space.low)
    second = voxelise(space.apply(torch.cat([still, mover])), rank, grid=0.02, low=space.low)
    assert torch.equal(first.grid[first.inverse], second.grid[second.inverse][:100])


def test_normals_of_a_plane_face_the_camera_and_edges_have_none() -> None:
    depth = torch.full((1, 20, 20), 2.0)
    depth[:, :, 10:] = 4.0
    intrinsic = torch.tensor([[[30.0, 0, 10], [0, 30, 10], [0, 0, 1]]])
    extrinsic = torch.eye(3, 4)[None]
    normal = normals_from_depth(unproject(depth, intrinsic, extrinsic), extrinsic)
    torch.testing.assert_close(normal[0, 5, 5], torch.tensor([0.0, 0.0, -1.0]))
    torch.testing.assert_close(normal[0, 15, 15], torch.tensor([0.0, 0.0, -1.0]))
    assert torch.equal(normal[0, 5, 10], torch.zeros(3))
