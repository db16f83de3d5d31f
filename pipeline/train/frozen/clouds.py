"""From films to what Concerto tiny is trained on: two clouds of a film in one space, and what their cells hold.

A cloud is made as `pipeline.extract` makes it: points drawn at random (the same pixels in both frames), normalised
together, one point a voxel. Pose, scale, place, the grid's origin and the light change at random, alike in both.

Shape legend
    Q  pixels of a frame    P  points of a cloud    N  voxels of a batch    M  coarse cells    B  clouds, two a pair
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor
from torch.utils.data import Dataset

from pipeline.config import Config, FailedError
from pipeline.sim.render import DEPTH_STEP
from pipeline.train.frozen.cell_targets import CELL_STEPS, CellTargets, cell_targets
from pipeline.train.frozen.filming import Film
from pipeline.train.frozen.moving import Moving, find_moving
from stages.points import fit_normalisation, turn_z_up, unproject_pixels, voxelise

_FARTHEST = 4
"""Frames between the two of a pair, at most."""
_CAMERA_WORLD = 0.2
"""How often the world is the first camera's, as VGGT gives it, and not the simulator's."""
_SCALE, _SHIFT = (0.85, 1.1), 0.05
_LIGHT, _TINT = 0.15, 0.1
_HIDDEN = (0.1, 0.4)
"""Shares of the blocks of 8 grid steps that a masked view may lack."""
_BLOCK = 8
_LEAST_VOXELS = 500
_TRIES = 20
TAUGHT_EVERY = 4
"""Every fourth pair is also shown to the teacher."""


class CloudsSection(Config):
    """The clouds to learn from, and how they are made. Evaluations take seeds below 1000."""

    films: int = Field(default=450, ge=10)
    seed: int = Field(default=1000, ge=1000)
    frames: int = Field(default=16, ge=2)
    points: int = Field(default=8192, ge=64)
    normalise: Literal["unit", "scene"] = "unit"
    grid: float = Field(default=0.02, gt=0)


@dataclass(frozen=True, kw_only=True, eq=False)
class Voxels:
    """Voxelised clouds as PTv3 takes them: `coord` [N,3], `grid_coord` [N,3], `feat` [N,9], `offset` [B]."""

    coord: Tensor
    grid_coord: Tensor
    feat: Tensor
    offset: Tensor

    def as_cloud(self) -> Mapping[str, Tensor]:
        """The mapping that the network takes."""
        return vars(self)

    def to(self, device: torch.device | str, *, non_blocking: bool = False) -> "Voxels":
        """A copy on `device`."""
        return Voxels(**{name: tensor.to(device, non_blocking=non_blocking) for name, tensor in vars(self).items()})


@dataclass(frozen=True, kw_only=True, eq=False)
class PairBatch:
    """Pairs of clouds, the two of a pair one after the other.

    Attributes:
        student: B clouds, some with holes. teacher: whole views by other points of the clouds `taught`, or None.
        taught: i8 [Bt]. cell_cloud, cell_grid, cell_values, cell_count: i8 [M], i8 [M,3], f4 [M,D], f4 [M].
        scene: f4 [B,19]. films: name of the film of each pair.
    """

    student: Voxels
    teacher: Voxels | None
    taught: Tensor
    cell_cloud: Tensor
    cell_grid: Tensor
    cell_values: Tensor
    cell_count: Tensor
    scene: Tensor
    films: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.films)

    def to(self, device: torch.device | str, *, non_blocking: bool = False) -> "PairBatch":
        """A copy on `device`."""

        def move(tensor: Tensor) -> Tensor:
            return tensor.to(device, non_blocking=non_blocking)

        return PairBatch(
            student=self.student.to(device, non_blocking=non_blocking),
            teacher=None if self.teacher is None else self.teacher.to(device, non_blocking=non_blocking),
            taught=move(self.taught),
            cell_cloud=move(self.cell_cloud),
            cell_grid=move(self.cell_grid),
            cell_values=move(self.cell_values),
            cell_count=move(self.cell_count),
            scene=move(self.scene),
            films=self.films,
        )


@dataclass(frozen=True, kw_only=True, eq=False)
class _Cloud:
    student: Voxels
    teacher: Voxels | None
    cells: CellTargets
    scene: Tensor


@dataclass(frozen=True, kw_only=True)
class _Space:
    """Normalised = xyz @ turn.T + shift; voxels start at `low`."""

    turn: Tensor
    shift: Tensor
    low: Tensor

    def apply(self, xyz: Tensor) -> Tensor:
        return xyz @ self.turn.T + self.shift


class CloudPairs(Dataset[PairBatch]):
    """Item `range` is the batch of these places of the stream; a place gives the same pair every time."""

    def __init__(self, films: Sequence[Path], section: CloudsSection, seed: int) -> None:
        self._films, self._section, self._seed = list(films), section, seed

    def __getitem__(self, places: range) -> PairBatch:
        clouds: list[_Cloud] = []
        names = []
        for place in places:
            rng = np.random.default_rng([self._seed, place])
            name, film, frames, moving = self._draw(rng)
            clouds += _pair(film, frames, moving, self._section, rng, taught=place % TAUGHT_EVERY == 0)
            names.append(name)
        return _collate(clouds, tuple(names))

    def _draw(self, rng: np.random.Generator) -> tuple[str, Film, tuple[int, int], Moving]:
        """A film and two of its frames in which something moves."""
        for _ in range(_TRIES):
            path = self._films[rng.integers(len(self._films))]
            film = Film.load(path)
            if len(film.rgb) < 2:
                continue
            first = int(rng.integers(len(film.rgb) - 1))
            frames = first, min(len(film.rgb) - 1, first + int(rng.integers(1, _FARTHEST + 1)))
            moving = find_moving(film, frames)
            if moving is not None:
                return path.stem, film, frames, moving
        raise FailedError(
            f"Nothing moves in {_TRIES} films, the last of them {path}: delete the films, and they are made anew."
        )


def _pair(
    film: Film,
    frames: tuple[int, int],
    moving: Moving,
    section: CloudsSection,
    rng: np.random.Generator,
    *,
    taught: bool,
) -> list[_Cloud]:
    pixels = film.depth[0].size
    pixel_P = torch.from_numpy(rng.permutation(pixels)[: section.points])
    other_P = torch.from_numpy(rng.permutation(pixels)[: section.points]) if taught else None
    space = _space(film, frames, pixel_P, section, rng)
    light = torch.from_numpy(rng.uniform(1 - _TINT, 1 + _TINT, 3) * rng.uniform(1 - _LIGHT, 1 + _LIGHT)).float()
    clouds = []
    for i, frame in enumerate(frames):
        coord = space.apply(_world(film, frame, pixel_P))
        color = (torch.from_numpy(film.rgb[frame]).flatten(0, 1)[pixel_P].float() / 255 * light).clamp(0, 1)
        # `pixel_P` is in a random order, so the place in it is the rank that decides which point stands for a voxel
        voxels = voxelise(coord, torch.arange(len(coord)), grid=section.grid, low=space.low)
        steps = (coord - space.low) / (section.grid * CELL_STEPS)
        grid = voxels.grid[voxels.inverse]
        cell = torch.div(grid, CELL_STEPS, rounding_mode="floor")
        kept = _keep_blocks(voxels.grid, rng) if taught and rng.random() < 0.5 else slice(None)
        teacher = None
        if other_P is not None:
            whole = space.apply(_world(film, frame, other_P))
            seen = voxelise(whole, torch.arange(len(whole)), grid=section.grid, low=space.low)
            plain = torch.from_numpy(film.rgb[frame]).flatten(0, 1)[other_P[seen.index]].float() / 255
            teacher = _voxels(whole[seen.index], plain, seen.grid)
        clouds.append(
            _Cloud(
                student=_voxels(coord[voxels.index][kept], color[voxels.index][kept], voxels.grid[kept]),
                teacher=teacher,
                cells=cell_targets(
                    coord=coord,
                    grid=grid,
                    within=(steps - cell - 0.5) * 2,
                    color=color,
                    edges=_edges(film, frame, pixel_P),
                    moving=moving.pixels[i, pixel_P],
                    part=moving.part[i, pixel_P],
                ),
                scene=_describe(moving, i, space),
            )
        )
    return clouds


def _world(film: Film, frame: int, pixel_P: Tensor) -> Tensor:
    depth = torch.from_numpy(film.depth[frame].reshape(-1).astype(np.int32))[pixel_P].float() * DEPTH_STEP
    intrinsic, extrinsic = torch.from_numpy(film.intrinsic[frame]), torch.from_numpy(film.extrinsic[frame])
    return unproject_pixels(pixel_P, depth, intrinsic, extrinsic, film.depth.shape[-1])


def _space(
    film: Film, frames: tuple[int, int], pixel_P: Tensor, section: CloudsSection, rng: np.random.Generator
) -> _Space:
    """The normalised space of both clouds, changed at random."""
    turn, shift = torch.eye(3), torch.zeros(3)
    if rng.random() < _CAMERA_WORLD:
        camera = torch.from_numpy(film.extrinsic[frames[0]])
        # the first camera is the world: from there to z up is what `turn_z_up` undoes
        up = turn_z_up(torch.eye(3, 4))[:, :3].T
        turn, shift = up @ camera[:, :3], up @ camera[:, 3]
    world = torch.cat([_world(film, frame, pixel_P) for frame in frames]) @ turn.T + shift
    fitted = fit_normalisation(world, section.normalise)
    scale = fitted.scale * float(rng.uniform(*_SCALE))
    moved = torch.from_numpy(rng.uniform(-_SHIFT, _SHIFT, 3)).float()
    place = (shift - fitted.centre) * scale + moved
    low = (world.amin(0) - fitted.centre) * scale + moved
    origin = torch.from_numpy(rng.uniform(0, CELL_STEPS, 3)).float() * section.grid
    return _Space(turn=turn * scale, shift=place, low=low - origin)


def _keep_blocks(grid_N3: Tensor, rng: np.random.Generator) -> Tensor:
    """bool [N]: False in some of the blocks, drawn by a share of them; all True if too little would be left."""
    block_N3 = torch.div(grid_N3, _BLOCK, rounding_mode="floor")
    _, block_N = torch.unique(block_N3, dim=0, return_inverse=True)
    lot = torch.from_numpy(rng.random(int(block_N.max()) + 1))
    keep = (lot >= rng.uniform(*_HIDDEN))[block_N]
    return keep if int(keep.sum()) >= _LEAST_VOXELS else torch.ones_like(keep)


def _voxels(coord: Tensor, color: Tensor, grid: Tensor) -> Voxels:
    feat = torch.cat([coord, color, torch.zeros_like(coord)], dim=1)
    return Voxels(coord=coord, grid_coord=grid, feat=feat, offset=torch.tensor([len(coord)]))


def _edges(film: Film, frame: int, pixel_P: Tensor) -> Tensor:
    """f4 [P,4]: how much brighter it gets to the right, left, bottom and top of each pixel."""
    grey = torch.from_numpy(film.rgb[frame]).float().mean(-1) / 255
    right, down = torch.zeros_like(grey), torch.zeros_like(grey)
    right[:, 1:-1] = grey[:, 2:] - grey[:, :-2]
    down[1:-1] = grey[2:] - grey[:-2]
    steps = torch.stack([right, -right, down, -down], dim=-1).clamp_min(0)
    return steps.flatten(0, 1)[pixel_P]


def _describe(moving: Moving, i: int, space: _Space) -> Tensor:
    """f4 [19]: what moves, as numbers of the normalised space."""
    covariance = space.turn @ moving.covariance[i] @ space.turn.T * 100
    xx, yy, zz = covariance.diagonal()
    xy, xz, yz = covariance[0, 1], covariance[0, 2], covariance[1, 2]
    heading = torch.stack([xx - yy, 2 * xy]) / (xx + yy + zz)
    places = space.apply(torch.stack([moving.centre[i], moving.contact[i], moving.middle[i]])).flatten()
    return torch.cat([places, torch.stack([xx, yy, zz, xy, xz, yz]), heading, moving.share[i] * 10])


def _collate(clouds: list[_Cloud], films: tuple[str, ...]) -> PairBatch:
    teachers = [cloud.teacher for cloud in clouds if cloud.teacher is not None]
    sizes = torch.tensor([len(cloud.cells.grid) for cloud in clouds])
    return PairBatch(
        student=_join([cloud.student for cloud in clouds]),
        teacher=_join(teachers) if teachers else None,
        taught=torch.tensor([i for i, cloud in enumerate(clouds) if cloud.teacher is not None], dtype=torch.long),
        cell_cloud=torch.repeat_interleave(torch.arange(len(clouds)), sizes),
        cell_grid=torch.cat([cloud.cells.grid for cloud in clouds]),
        cell_values=torch.cat([cloud.cells.values for cloud in clouds]),
        cell_count=torch.cat([cloud.cells.count for cloud in clouds]),
        scene=torch.stack([cloud.scene for cloud in clouds]),
        films=films,
    )


def _join(parts: list[Voxels]) -> Voxels:
    return Voxels(
        coord=torch.cat([part.coord for part in parts]),
        grid_coord=torch.cat([part.grid_coord for part in parts]),
        feat=torch.cat([part.feat for part in parts]),
        offset=torch.cat([part.offset for part in parts]).cumsum(0),
    )
