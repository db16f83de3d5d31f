"""From coloured points to features: the interface that the pipeline uses."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from stages.concerto.model import Plan, PointTransformerV3, collect


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


@dataclass(frozen=True, kw_only=True, eq=False)
class Rows:
    """`inverse` int64 [N] the row of every input point; `start` int64 [B] the first row of each cloud; `lengths` [B]
    how many rows each has, on the host.
    """

    inverse: Tensor
    start: Tensor
    lengths: tuple[int, ...]


def _rows(plan: Plan, level: int) -> Rows:
    inverse = plan.inverse[0]
    for coarser in plan.inverse[1 : level + 1]:
        inverse = coarser[inverse]
    start = torch.nn.functional.pad(plan.levels[level].offset[:-1], (1, 0))
    return Rows(inverse=inverse, start=start, lengths=plan.levels[level].lengths)


class ConcertoEncoder(nn.Module):
    """Concerto with the input features of its published transform: coordinate, colour / 255, normal.

    `levels` = 1 gives the coarsest level (cells of 16 grid steps; base: 512 channels). 2 and 3 give the rows of the
    level 8 and 4 grid steps wide, each with its own features and those of the coarser cells around it (base: 384 + 512
    = 896 and 192 + 384 + 512 = 1,088 channels).

    `clouds_per_run` is how many clouds run at a time; None runs all together. Sums of floats depend in their last bits
    on the size of the matrices (some 1e-6 here), so 1 makes the bytes of a cloud independent of the batch it came in.

    The model is put into eval mode and its parameters ask for no gradients: the encoder is frozen.

    Raises:
        ValueError: for another number of levels or of clouds.
    """

    def __init__(self, model: PointTransformerV3, levels: int = 1, *, clouds_per_run: int | None = None) -> None:
        super().__init__()
        if clouds_per_run is not None and clouds_per_run < 1:
            raise ValueError(f"clouds_per_run is {clouds_per_run}, expected at least 1, or None for all clouds")
        available = min(3, len(model.config.enc_channels))
        if levels not in range(1, available + 1):
            raise ValueError(f"levels is {levels}; the choices are {', '.join(map(str, range(1, available + 1)))}")
        self.model = model.eval().requires_grad_(False)
        self.levels = levels
        self.clouds_per_run = clouds_per_run

    @property
    def out_channels(self) -> int:
        """Channels of `feat`."""
        return sum(self.model.config.enc_channels[-self.levels :])

    @torch.inference_mode()
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
        if self.clouds_per_run is None:
            return ConcertoFeatures(**self._run(cloud))
        parts = [self._run(part) for part in _split(cloud, self.clouds_per_run)]
        return ConcertoFeatures(**_join(parts))

    @torch.inference_mode()
    def plan(self, *, coord: Tensor, grid_coord: Tensor, offset: Tensor) -> Plan:
        """Sizes, orders and neighbours of a batch, for `encode`; the host waits for the device here, and only here."""
        return self.model.plan(coord=coord, grid_coord=grid_coord, offset=offset)

    @torch.inference_mode()
    def rows(self, plan: Plan) -> Rows:
        """Which row of the features every input point will have: known before they are computed."""
        return _rows(plan, len(plan.levels) - self.levels)

    @torch.inference_mode()
    def encode(self, plan: Plan, *, coord: Tensor, color: Tensor, normal: Tensor | None = None) -> ConcertoFeatures:
        """What `forward` gives, of clouds that are planned already: all run together, and nothing waits."""
        out = collect(self.model.encode(plan, _assemble(coord, color, normal)), finest=-self.levels, like=plan.rows)
        return ConcertoFeatures(**out)

    def _run(self, cloud: dict[str, Tensor]) -> dict[str, Tensor]:
        return collect(self.model.levels(cloud), finest=-self.levels, like=cloud["grid_coord"])


def _split(cloud: dict[str, Tensor], clouds: int) -> Iterator[dict[str, Tensor]]:
    """The batch in runs of `clouds`. One host synchronisation where `offset` is on a device."""
    ends: list[int] = cloud["offset"].tolist()
    if not ends or ends != sorted(ends) or ends[-1] != len(cloud["coord"]):
        yield cloud  # not a batch: the model says what is wrong with it
        return
    start = 0
    for i in range(0, len(ends), clouds):
        own = cloud["offset"][i : i + clouds]
        end = ends[min(i + clouds, len(ends)) - 1]
        yield {name: own - start if name == "offset" else array[start:end] for name, array in cloud.items()}
        start = end


def _join(parts: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Runs one after the other; `inverse` and `offset` count rows over all of them."""
    out = {name: torch.cat([part[name] for part in parts]) for name in ("feat", "coord", "grid_coord")}
    for name in ("inverse", "offset"):
        rows = 0
        moved = []
        for part in parts:
            moved.append(part[name] + rows)
            rows += len(part["feat"])
        out[name] = torch.cat(moved)
    return out


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
