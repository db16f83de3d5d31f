"""A cloud's numbers are its own: alone, in any batch, in any order, in any run."""

import itertools

import pytest
import torch
from concerto_clouds import batch, surface

from stages.concerto import TINY, build_concerto, init_random
from stages.concerto.attention import attention_runs


@pytest.fixture(scope="module")
def model():
    # Every serialization order is in use: four blocks in the second stage.
    config = TINY.to_dict() | {"enc_depths": [1, 4, 1, 1, 1], "enc_patch_size": [128] * 5}
    built = build_concerto(config).eval()
    init_random(built, 0)
    return built


def run(model, cloud):
    with torch.inference_mode():
        return model(cloud)


@pytest.mark.parametrize("seed", range(3))
def test_a_cloud_gives_the_same_alone_and_in_any_batch(model, seed):
    # Clouds of different extents have different bit depths, and one is smaller than a patch.
    clouds = [surface(3 * seed, 900), surface(3 * seed + 1, 60, extent=12), surface(3 * seed + 2, 700, extent=300)]
    alone = [run(model, cloud) for cloud in clouds]
    for arrangement in ([0, 1, 2], [2, 0, 1], [1, 1, 0]):
        together = run(model, batch([clouds[i] for i in arrangement]))
        row, point = 0, 0
        for slot, i in enumerate(arrangement):
            own, rows = alone[i], len(alone[i]["feat"])
            here = slice(row, row + rows)
            torch.testing.assert_close(together["feat"][here], own["feat"], atol=1e-5, rtol=0)
            torch.testing.assert_close(together["coord"][here], own["coord"], atol=1e-6, rtol=0)
            assert torch.equal(together["grid_coord"][here], own["grid_coord"])
            points = len(clouds[i]["coord"])
            assert torch.equal(together["inverse"][point : point + points] - row, own["inverse"])
            row, point = row + rows, point + points
            assert together["offset"][slot] == row


@pytest.mark.parametrize("seed", range(4))
def test_the_order_of_the_points_does_not_matter(model, seed):
    cloud = surface(seed, 1200)
    shuffle = torch.randperm(len(cloud["coord"]), generator=torch.Generator().manual_seed(seed))
    shuffled = {name: value if name == "offset" else value[shuffle] for name, value in cloud.items()}
    one, other = run(model, cloud), run(model, shuffled)
    for name in ("feat", "coord", "grid_coord", "offset"):
        assert torch.equal(one[name], other[name]), name
    assert torch.equal(one["inverse"][shuffle], other["inverse"])


def test_two_runs_give_identical_bytes(model):
    cloud = batch([surface(5, 1500), surface(6, 400)])
    one, other = run(model, cloud), run(model, cloud)
    assert all(one[name].numpy().tobytes() == other[name].numpy().tobytes() for name in one)


def test_rows_are_cells_in_lexicographic_order_with_mean_coordinates(model):
    cloud = batch([surface(7, 800), surface(8, 300)])
    out = run(model, cloud)
    which = torch.repeat_interleave(torch.tensor([0, 1]), cloud["offset"].diff(prepend=torch.tensor([0])))
    cells, inverse = torch.unique(
        torch.cat([which[:, None], cloud["grid_coord"] // 16], dim=1), dim=0, return_inverse=True
    )
    assert torch.equal(out["grid_coord"], cells[:, 1:].to(torch.int32))
    assert torch.equal(out["inverse"], inverse)
    assert out["grid_coord"].dtype == cloud["grid_coord"].dtype
    # A mean of means, level by level, as the reference has it: inside the cell, not its centre of mass.
    for row in (0, len(cells) - 1):
        inside = cloud["coord"][inverse == row]
        assert (out["coord"][row] >= inside.amin(0) - 1e-6).all()
        assert (out["coord"][row] <= inside.amax(0) + 1e-6).all()


@pytest.mark.parametrize("lengths", [(1,), (5,), (16,), (17,), (31,), (16, 1, 40, 33)])
def test_every_point_attends_once_to_a_patch_of_its_own_cloud(lengths):
    size = 16
    ends = torch.tensor(lengths).cumsum(0).tolist()
    seen = []
    for run_ in attention_runs(lengths, size):
        for patch in range(run_.patches):
            queries = range(run_.start + patch * run_.queries, run_.start + (patch + 1) * run_.queries)
            keys = range(run_.key_start + patch * run_.keys, run_.key_start + (patch + 1) * run_.keys)
            cloud = next(i for i, end in enumerate(ends) if queries[0] < end)
            assert keys[0] >= ends[cloud] - lengths[cloud]
            assert keys[-1] < ends[cloud]
            assert len(keys) == min(lengths[cloud], size)
            assert set(queries) <= set(keys)
            seen += queries
    assert seen == list(range(sum(lengths)))


def test_levels_hold_each_other(model):
    cloud = surface(9, 900)
    with torch.inference_mode():
        levels = model.levels(cloud)
    assert [level.feat.shape[1] for level in levels] == list(model.config.enc_channels)
    assert len(levels[0].feat) == len(cloud["coord"])
    assert torch.equal(levels[0].grid_coord[levels[0].inverse], cloud["grid_coord"].long())
    for fine, coarse in itertools.pairwise(levels):
        assert torch.equal(coarse.grid_coord[coarse.inverse], fine.grid_coord // 2)


def test_bfloat16_autocast_stays_close(model):
    cloud = surface(10, 800)
    expected = run(model, cloud)["feat"]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = run(model, cloud)["feat"].float()
    assert torch.isfinite(out).all()
    assert (out - expected).square().mean() < 0.02 * expected.var()


def test_gradients_reach_every_parameter(model):
    model(surface(11, 600))["feat"].square().sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    model.zero_grad()


def good() -> dict[str, torch.Tensor]:
    return surface(0, 50)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda c: {"feat": c["feat"][:, :6]}, r"feat has shape .* expected \[\d+, 9\]"),
        (lambda c: {"grid_coord": c["grid_coord"].float()}, "grid_coord has dtype torch.float32, expected integers"),
        (lambda c: {"grid_coord": c["grid_coord"][:, :2]}, "grid_coord has shape"),
        (lambda c: {"grid_coord": c["grid_coord"] - 100}, "subtract the minimum"),
        (lambda c: {"grid_coord": c["grid_coord"] * 5000}, "use a coarser grid"),
        (lambda c: {"grid_coord": c["grid_coord"] // 8}, "share a voxel"),
        (lambda c: {"offset": torch.tensor([0, len(c["coord"])])}, "without the leading 0"),
        (lambda c: {"offset": torch.tensor([len(c["coord"]) - 1])}, "cumulative ends"),
        (lambda c: {"offset": torch.tensor([len(c["coord"]) + 1])}, "cumulative ends"),
        (lambda c: {"offset": torch.tensor([20, 10, len(c["coord"])])}, "cumulative ends"),
        (lambda c: {"offset": torch.tensor([], dtype=torch.int64)}, "at least one point"),
        (lambda c: {name: c[name][:0] for name in c}, "at least one point"),
    ],
)
def test_bad_clouds_get_a_sentence(model, change, sentence):
    cloud = good()
    with pytest.raises(ValueError, match=sentence):
        model(cloud | change(cloud))


def test_missing_arrays_are_named(model):
    cloud = good()
    del cloud["feat"]
    with pytest.raises(ValueError, match="lacks feat"):
        model(cloud)


@pytest.mark.parametrize("points", [1, 2, 17])
def test_tiny_clouds_work(model, points):
    grid = torch.arange(points, dtype=torch.int32)[:, None].repeat(1, 3)
    cloud = {
        "coord": grid * 0.02,
        "grid_coord": grid,
        "feat": torch.rand(points, 9),
        "offset": torch.tensor([points], dtype=torch.int32),
    }
    out = run(model, cloud)
    assert torch.isfinite(out["feat"]).all()
    assert len(out["feat"]) == (points + 15) // 16
