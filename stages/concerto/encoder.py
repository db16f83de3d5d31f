"""From coloured points to features: the interface that the pipeline uses."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from stages.concerto.model import PointTransformerV3, collect


@dataclass(frozen=True, kw_only=True, eq=False)
class ConcertoFeatures:
    """Features of a batch of B clouds with N points.

    Attributes:
        feat: [N',C] distinct features, rows sorted by (cloud, x, y, z); C is 512 for base with one level.
        coord: [N',3], the mean of the input's `coord` over each cell.
        grid_coord: int [N',3], cells of the level.
        inverse: int64 [N], the row of every input point.
        offset: int64 [B], cumulative counts of the rows.
    """

    feat: Tensor
    coord: Tensor
    grid_coord: Tensor
    inverse: Tensor
    offset: Tensor


class ConcertoEncoder(nn.Module):
    """Concerto with the input features of its published transform: coordinate, colour / 255, normal.

    `levels` = 1 gives the coarsest level (cells of 16 grid steps; base: 512 channels). 2 and 3 give the rows of the
    level 8 and 4 grid steps wide, each with its own features and those of the coarser cells around it (base: 384 + 512
    = 896 and 192 + 384 + 512 = 1,088 channels).
    """

    def __init__(self, model: PointTransformerV3, levels: int = 1) -> None:
        super().__init__()
        available = min(3, len(model.config.enc_channels))
        if levels not in range(1, available + 1):
            raise ValueError(f"levels is {levels}; the choices are {', '.join(map(str, range(1, available + 1)))}")
        self.model = model
        self.levels = levels

    @property
    def out_channels(self) -> int:
        """Channels of `feat`."""
        return sum(self.model.config.enc_channels[-self.levels :])

    def forward(
        self,
        *,
        coord: Tensor,
        grid_coord: Tensor,
        offset: Tensor,
        color: Tensor | None = None,
        normal: Tensor | None = None,
        feat: Tensor | None = None,
    ) -> ConcertoFeatures:
        """Encode a batch of voxelised clouds.

        Args:
            coord: float [N,3] in the normalised space.
            grid_coord: int [N,3], distinct within a cloud, not negative.
            offset: int [B], cumulative ends of the clouds (no leading 0).
            color: uint8 [N,3], 0 to 255.
            normal: float [N,3] of unit length; zeros if None, as Concerto was trained to accept.
            feat: float [N,9], coordinate, colour in [0,1] and normal ready made, instead of `color` and `normal`.

        Raises:
            ValueError: both or neither of `feat` and `color`, `color` of another dtype, or arrays that do not fit.

        """
        if feat is None:
            feat = _assemble(coord, color, normal)
        elif color is not None or normal is not None:
            raise ValueError("give either feat or color and normal, not both")
        cloud = {"coord": coord, "grid_coord": grid_coord, "feat": feat, "offset": offset}
        return ConcertoFeatures(**collect(self.model.levels(cloud), finest=-self.levels, like=grid_coord))


def _assemble(coord: Tensor, color: Tensor | None, normal: Tensor | None) -> Tensor:
    if color is None:
        raise ValueError("color is missing: give color (uint8 [N,3]) or feat (float [N,9])")
    if color.dtype != torch.uint8:
        # The values 0 to 1 and 0 to 255 look alike, and a wrong scale gives wrong features without an error.
        raise ValueError(
            f"color has dtype {color.dtype}, expected uint8 from 0 to 255; or give feat, with colour in [0,1]"
        )
    if normal is None:
        normal = torch.zeros_like(coord)
    for name, array in (("color", color), ("normal", normal)):
        if array.shape != coord.shape:
            raise ValueError(f"{name} has shape {tuple(array.shape)}, expected {list(coord.shape)} as coord has")
    return torch.cat([coord, color.to(coord.dtype) / 255, normal], dim=1)
