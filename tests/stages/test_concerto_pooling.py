"""The built-in pooling against a loop, and torch-scatter's against it where that is installed."""

import pytest
import torch

from stages.concerto.pooling import pool_max, torch_scatter_installed


def _voxels() -> tuple[torch.Tensor, torch.Tensor, int]:
    generator = torch.Generator().manual_seed(0)
    cells = 40
    cell = torch.cat([torch.arange(cells), torch.randint(cells, (160,), generator=generator)])
    return torch.randn(200, 7, generator=generator) - 3, cell, cells


def test_every_cell_has_the_largest_of_its_voxels() -> None:
    feat, cell, cells = _voxels()
    pooled = pool_max(feat, cell, cells, torch_scatter=False)
    for m in range(cells):
        assert torch.equal(pooled[m], feat[cell == m].amax(0))


@pytest.mark.skipif(not torch_scatter_installed(), reason="torch-scatter is not installed")
def test_torch_scatter_gives_the_same_bytes() -> None:
    feat, cell, cells = _voxels()
    ours, theirs = (pool_max(feat, cell, cells, torch_scatter=choice) for choice in (False, True))
    assert torch.equal(ours, theirs)
