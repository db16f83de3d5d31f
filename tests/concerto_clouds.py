"""Point clouds for the Concerto tests: a bumpy surface seen from one side, voxelised."""

import torch
from torch import Tensor


def surface(seed: int, points: int, extent: int = 60) -> dict[str, Tensor]:
    """One cloud of at most `points` distinct voxels within `extent` grid steps, in random order, 9 feature channels."""
    generator = torch.Generator().manual_seed(seed)
    xy = torch.rand(points, 2, generator=generator) * extent
    phase = torch.rand(2, generator=generator) * 6
    z = extent / 4 * (2 + torch.sin(xy[:, 0] / 7 + phase[0]) + torch.cos(xy[:, 1] / 9 + phase[1]))
    position = torch.cat([xy, z[:, None]], dim=1)
    grid = torch.unique(position.to(torch.int32), dim=0)
    grid = grid[torch.randperm(len(grid), generator=generator)]
    coord = (grid + torch.rand(grid.shape, generator=generator)) * 0.02
    color = torch.rand(len(grid), 3, generator=generator)
    feat = torch.cat([coord, color, torch.zeros_like(coord)], dim=1)
    return {"coord": coord, "grid_coord": grid, "feat": feat, "offset": torch.tensor([len(grid)])}


def batch(clouds: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Clouds one after the other, with cumulative ends."""
    out = {name: torch.cat([cloud[name] for cloud in clouds]) for name in ("coord", "grid_coord", "feat")}
    out["offset"] = torch.tensor([len(cloud["coord"]) for cloud in clouds]).cumsum(0)
    return out
