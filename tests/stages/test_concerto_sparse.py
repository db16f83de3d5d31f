"""The built-in sparse convolution against a dense one and against spconv's CPU package."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from concerto_clouds import batch, surface

from stages.concerto import TINY, build_concerto
from stages.concerto.geometry import sort_cloud
from stages.concerto.serialization import MAX_COORDINATE
from stages.concerto.sparse import NeighbourTable, resolve_sparse, voxel_keys

TESTS = Path(__file__).parents[1]


def kernel(channels_in: int, channels_out: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(channels_out, 3, 3, 3, channels_in, generator=generator)
    return weight / (27 * channels_in) ** 0.5, torch.randn(channels_out, generator=generator)


def dense_convolution(grid, feat, weight, bias):
    side = int(grid.max()) + 1
    volume = torch.zeros(1, feat.shape[1], side, side, side)
    x, y, z = grid.long().unbind(1)
    volume[0, :, x, y, z] = feat.T
    return F.conv3d(volume, weight.permute(0, 4, 1, 2, 3), bias, padding=1)[0, :, x, y, z].T


@pytest.mark.parametrize("seed", range(4))
def test_equals_dense_convolution_for_each_cloud(seed):
    clouds = [surface(seed, 900, extent=18), surface(seed + 100, 300, extent=9)]
    both = sort_cloud(batch(clouds))
    feat = torch.randn(len(both.key), 5, generator=torch.Generator().manual_seed(seed))
    weight, bias = kernel(5, 7)
    out = NeighbourTable(both.key).convolve(feat, weight, bias)
    for i in range(2):
        rows = both.cloud == i
        expected = dense_convolution(both.grid_coord[rows], feat[rows], weight, bias)
        torch.testing.assert_close(out[rows], expected, atol=1e-5, rtol=0)


def test_a_full_block_uses_every_offset():
    axis = torch.arange(4)
    grid = torch.cartesian_prod(axis, axis, axis)
    feat = torch.randn(64, 3, generator=torch.Generator().manual_seed(0))
    weight, bias = kernel(3, 3)
    table = NeighbourTable(voxel_keys(torch.zeros(64, dtype=torch.int64), grid))
    assert [len(rows) for rows in table.out_rows] == [27, 36, 27, 36, 48, 36, 27, 36, 27, 36, 48, 36, 48]
    expected = dense_convolution(grid, feat, weight, bias)
    torch.testing.assert_close(table.convolve(feat, weight, bias), expected, atol=1e-5, rtol=0)


def test_nothing_wraps_around_at_the_borders():
    # Voxels that would be neighbours if a key ran over into the next coordinate or cloud.
    last = MAX_COORDINATE
    grid = torch.tensor([[0, 0, last], [0, 1, 0], [0, last, 0], [1, 0, 0], [last] * 3, [0, 0, 0]])
    cloud = torch.tensor([0, 0, 0, 0, 0, 1])
    table = NeighbourTable(voxel_keys(cloud, grid))
    assert sum(len(rows) for rows in table.out_rows) == 1  # [0,1,0] and [1,0,0] touch at an edge, and that is all


def test_gradients_equal_those_of_the_dense_convolution():
    cloud = sort_cloud(surface(1, 300, extent=12))
    weight, bias = kernel(4, 4)
    grads = []
    for convolve in (
        lambda *args: NeighbourTable(cloud.key).convolve(*args),
        lambda *args: dense_convolution(cloud.grid_coord, *args),
    ):
        inputs = [torch.ones(len(cloud.key), 4), weight.clone(), bias.clone()]
        for tensor in inputs:
            tensor.requires_grad_()
        convolve(*inputs).square().sum().backward()
        grads.append([tensor.grad for tensor in inputs])
    for ours, dense in zip(*grads, strict=True):
        torch.testing.assert_close(ours, dense, atol=1e-3, rtol=1e-4)


def test_autocast_stays_close_to_float32():
    cloud = sort_cloud(surface(2, 300, extent=12))
    weight, bias = kernel(16, 16)
    feat = torch.randn(len(cloud.key), 16, generator=torch.Generator().manual_seed(0))
    table = NeighbourTable(cloud.key)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = table.convolve(feat, weight, bias)
    torch.testing.assert_close(out.float(), table.convolve(feat, weight, bias), atol=5e-2, rtol=0)


def test_choices_of_sparse():
    assert build_concerto(TINY.to_dict()).sparse_backend == "builtin"
    assert build_concerto(TINY.to_dict(), sparse="auto").sparse_backend == "builtin"  # CPU tensors
    with pytest.raises(ValueError, match="builtin, spconv, auto"):
        build_concerto(TINY.to_dict(), sparse="minkowski")


def test_auto_takes_spconv_on_cuda_only_where_it_is_installed(monkeypatch):
    for installed, has_cuda, expected in (
        (True, True, "spconv"),
        (True, False, "builtin"),
        (False, False, "builtin"),
    ):
        monkeypatch.setattr("stages.concerto.sparse.spconv_installed", lambda installed=installed: installed)
        monkeypatch.setattr("stages.concerto.sparse._spconv_has_cuda", lambda has_cuda=has_cuda: has_cuda)
        assert resolve_sparse("auto", torch.device("cuda")) == expected
        assert resolve_sparse("auto", torch.device("cpu")) == "builtin"


def test_missing_spconv_names_the_remedy(monkeypatch):
    monkeypatch.setattr("stages.concerto.sparse.spconv_installed", lambda: False)
    with pytest.raises(ImportError, match=r"pip install 'concerto-laq\[cuda\]'"):
        build_concerto(TINY.to_dict(), sparse="spconv")


# The comparison runs in a process of its own: spconv's CPU kernels need OMP_NUM_THREADS=1 from the start.
SPCONV_CHECK = """
import torch
import stages.concerto.model
from concerto_clouds import batch, surface
from stages.concerto import TINY, build_concerto, init_random
from stages.concerto.geometry import sort_cloud
from stages.concerto.sparse import NeighbourTable
from stages.concerto.spconv_backend import SpconvNeighbours

both = sort_cloud(batch([surface(0, 3000), surface(1, 500, extent=20)]))
generator = torch.Generator().manual_seed(0)
feat = torch.randn(len(both.key), 32, generator=generator)
weight = torch.nn.Parameter(torch.randn(48, 3, 3, 3, 32, generator=generator) / (27 * 32) ** 0.5)
bias = torch.randn(48, generator=generator)
theirs = SpconvNeighbours(both.grid_coord, both.cloud, 2, max(both.max_coordinate))
with torch.no_grad():
    expected = theirs.convolve(feat, weight, bias)
    ours = NeighbourTable(both.key).convolve(feat, weight, bias)
    again = theirs.convolve(feat, weight, bias)  # through the shared index table
print("convolution", (ours - expected).abs().max().item(), (again - expected).abs().max().item())

cloud = batch([surface(2, 3000), surface(3, 800)])
stages.concerto.model.resolve_sparse = lambda choice, device: choice  # spconv is refused on the CPU otherwise
models = [build_concerto(TINY.to_dict(), sparse=choice).eval() for choice in ("builtin", "spconv")]
assert [model.sparse_backend for model in models] == ["builtin", "spconv"]
for model in models:
    init_random(model, 0)
with torch.inference_mode():
    ours, expected = (model(cloud)["feat"] for model in models)
assert ours.std(0).mean() > 0.1
print("model", (ours - expected).abs().max().item(), 0.0)
"""


@pytest.mark.skipif(importlib.util.find_spec("spconv") is None, reason="spconv is not installed")
def test_equals_spconv():
    done = subprocess.run(
        [sys.executable, "-c", SPCONV_CHECK],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": f"{TESTS}{os.pathsep}{TESTS.parent}"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    results = [line.split() for line in done.stdout.splitlines()]
    assert [name for name, *_ in results] == ["convolution", "model"]
    assert all(float(value) <= 2e-5 for _, *values in results for value in values), done.stdout


def test_spconv_refuses_the_cpu(monkeypatch):
    monkeypatch.setattr("stages.concerto.sparse.spconv_installed", lambda: True)
    model = build_concerto(TINY.to_dict(), sparse="spconv")
    with pytest.raises(ValueError, match="is for CUDA"):
        model(surface(0, 200))
