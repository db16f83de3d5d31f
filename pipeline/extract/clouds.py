"""The frames of clips as clouds with features: lifted, subsampled, normalised, voxelised, through Concerto.

The frames of several clips go through together, packed one after the other. `start` queues VGGT and waits for nothing.
`encode` first finds out sizes, where the host must wait for the device (a few times a batch, beside other work: see
`Lanes`), then queues Concerto.

Shape legend: F frames of a batch, H W their sides, Q = H * W, M points of all frames, V voxels of all frames,
G spaces (one a clip or a frame).
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from data_specs.arrays import Array
from data_specs.records import BadClip, Clip
from pipeline.config import ExtractRecipe
from pipeline.extract.geometry import Geometry, check_usable, from_sensor, from_vggt, usable
from pipeline.extract.lanes import Lanes, Mark
from pipeline.extract.models import FrozenModels
from pipeline.extract.pack import FramePoints
from stages.concerto import Plan
from stages.constants import constant
from stages.points import (
    Frame3D,
    fit_box,
    fixed_space,
    has_extent,
    no_extent,
    normals_from_depth,
    priorities,
    subsample,
    unproject,
    voxelise,
)

COARSE_STEPS = 16
"""Grid steps along a side of Concerto's coarsest cells: how far the origin of a fixed space may move at a time."""

MAX_CELL = 65_534
"""Largest coordinate on a voxel grid that Concerto's orders have room for."""


@dataclass(frozen=True, kw_only=True)
class Lifted:
    """The frames of a clip as points with features: `xyz` f4 [F,H,W,3] world, `space` f4 [F,4] centre and scale of each
    frame's normalised space, the rest a frame each.
    """

    geometry: Geometry
    xyz: Tensor
    space: Tensor
    feats: list[Tensor]
    frames: list[FramePoints]

    def map(self, change: Callable[[Tensor], Tensor]) -> "Lifted":
        """The same with every tensor changed, in a fixed order."""
        geometry, frames = self.geometry, self.frames
        return Lifted(
            geometry=replace(
                geometry,
                depth=change(geometry.depth),
                conf=change(geometry.conf),
                intrinsic=change(geometry.intrinsic),
                extrinsic=change(geometry.extrinsic),
                tokens=None,
            ),
            xyz=change(self.xyz),
            space=change(self.space),
            feats=[change(feat) for feat in self.feats],
            frames=[
                replace(
                    frame,
                    pixel=change(frame.pixel),
                    token=change(frame.token),
                    coord=change(frame.coord),
                    depth=change(frame.depth),
                    conf=change(frame.conf),
                )
                for frame in frames
            ],
        )

    @classmethod
    def join(cls, parts: Sequence["Lifted"]) -> "Lifted":
        """The frames of all parts, one after the other."""
        if len(parts) == 1:
            return parts[0]
        return cls(
            geometry=Geometry.join([part.geometry for part in parts]),
            xyz=torch.cat([part.xyz for part in parts]),
            space=torch.cat([part.space for part in parts]),
            feats=[feat for part in parts for feat in part.feats],
            frames=[frame for part in parts for frame in part.frames],
        )


@dataclass(frozen=True, kw_only=True)
class Started:
    """Clips whose geometry is being computed, `rgb` u1 [F,H,W,3]; `first` is the number of each clip's first frame."""

    clips: tuple[Clip, ...]
    first: tuple[int, ...]
    rgb: Tensor
    geometry: Geometry
    ready: Mark

    def frames(self) -> list[slice]:
        """Where the frames of each clip are."""
        ends = np.cumsum([len(clip) for clip in self.clips]).tolist()
        return [slice(end - len(clip), end) for end, clip in zip(ends, self.clips, strict=True)]

    def only(self, places: Sequence[int]) -> "Started":
        """Some of the clips, at least one."""
        own = self.frames()
        return Started(
            clips=tuple(self.clips[i] for i in places),
            first=tuple(self.first[i] for i in places),
            rgb=torch.cat([self.rgb[own[i]] for i in places]),
            geometry=Geometry.join([self.geometry[own[i]] for i in places]),
            ready=self.ready,
        )


@dataclass(frozen=True, kw_only=True)
class _Points:
    """The kept points of a batch, frame after frame, by pixel: `kept` of each frame; [M] the frame, pixel and rank of
    each, [M,3] where it is and where its grid begins; `space` f4 [F,4] of each frame.
    """

    kept: list[int]
    frame: Tensor
    pixel: Tensor
    rank: Tensor
    coord: Tensor
    low: Tensor
    space: Tensor


@dataclass(frozen=True, kw_only=True)
class _Clouds:
    """Some frames that are ready for Concerto: all but their features. `lengths`: rows of each."""

    plan: Plan
    lengths: tuple[int, ...]
    inputs: dict[str, Tensor]
    frames: list[FramePoints]


class CloudEncoder:
    """Clips to `Lifted`; a clip with a frame that cannot be used becomes the BadClip that says so."""

    def __init__(self, recipe: ExtractRecipe, models: FrozenModels, lanes: Lanes | None = None) -> None:
        self.recipe = recipe
        self.models = models
        self.lanes = lanes or Lanes(models.device)

    def lift(self, clip: Clip) -> Lifted:
        """The frames of a clip together or, with `robot.live`, each through everything by itself. Raises BadClip."""
        if not self.recipe.robot.live:
            return self._one(clip, 0)
        return Lifted.join([self._one(single_frame(clip, i), i) for i in range(len(clip))])

    def _one(self, clip: Clip, first: int) -> Lifted:
        (lifted,) = self.encode(self.start([clip], [first]))
        if isinstance(lifted, BadClip):
            raise lifted
        return lifted

    def start(self, clips: Sequence[Clip], first: Sequence[int] | None = None) -> Started:
        """Send the frames of clips and queue what makes geometry of them. BadClip where one has no sensors' data.

        `first` are the numbers of the clips' first frames, for what is said of a bad one.
        """
        section, lanes = self.recipe.geometry, self.lanes
        rgb = lanes.send(_together([clip.rgb for clip in clips]))
        with lanes.busy():
            if section.source == "sensor":
                geometry = Geometry.join([from_sensor(clip, lanes) for clip in clips])
            else:
                assert self.models.vggt is not None, "geometry from VGGT needs VGGT"
                with self._autocast(self.recipe.vggt.dtype):
                    parts = torch.split(rgb, [len(clip) for clip in clips])
                    geometry = from_vggt(parts, section, self.models.vggt, together=self.recipe.batch.frames)
        numbers = (0,) * len(clips) if first is None else tuple(first)
        return Started(clips=tuple(clips), first=numbers, rgb=rgb, geometry=geometry, ready=lanes.mark())

    def encode(self, started: Started, keep: list[object] | None = None) -> list[Lifted | BadClip]:
        """What becomes of each clip; its tensors are there once the device gets to them.

        What a GPU reads until then is put into `keep`, for whoever queues more work beside it: see `Lanes`.
        """
        problems: dict[int, BadClip] = {}
        numbers, batch = list(range(len(started.clips))), started
        clouds: list[_Clouds] = []
        points: _Points | None = None
        with self.lanes.side(started.ready):
            xyz_FHW3 = _world(batch.geometry)
            while numbers and points is None:
                found = self._points(batch, xyz_FHW3)
                if isinstance(found, _Points):
                    points = found
                    clouds = list(self._plan(batch, points, xyz_FHW3))
                    continue
                # the others without them: a clip that cannot be used must not touch those beside it
                problems |= {numbers[place]: problem for place, problem in found.items()}
                good = [place for place in range(len(numbers)) if place not in found]
                numbers = [numbers[place] for place in good]
                if good:
                    batch = batch.only(good)
                    xyz_FHW3 = _world(batch.geometry)
        feats = [feat for part in clouds for feat in self._features(part)]
        frames = [frame for part in clouds for frame in part.frames]
        lifted: dict[int, Lifted] = {}
        if points is not None:
            for number, own in zip(numbers, batch.frames(), strict=True):
                lifted[number] = Lifted(
                    geometry=batch.geometry[own],
                    xyz=xyz_FHW3[own],
                    space=points.space[own],
                    feats=feats[own],
                    frames=frames[own],
                )
        if keep is not None:
            keep.append((batch, points, clouds))
        return [problems[i] if i in problems else lifted[i] for i in range(len(started.clips))]

    def _autocast(self, dtype: str) -> torch.autocast:
        return torch.autocast(self.models.device.type, dtype=torch.bfloat16, enabled=dtype == "bfloat16")

    def _points(self, batch: Started, xyz_FHW3: Tensor) -> _Points | dict[int, BadClip]:
        """The points of each frame in its normalised space; or, where clips cannot be used, why, by their places."""
        section, grid = self.recipe.points, self.recipe.concerto.grid
        valid_FQ = self._valid(batch.geometry, xyz_FHW3)
        verdict: list[list[int]] = torch.cat([usable(batch.geometry).long(), valid_FQ.sum(1)[None]]).tolist()
        problems = self._unusable(batch, verdict)
        if problems:
            return problems
        xyz_FQ3, device = xyz_FHW3.flatten(1, 2), xyz_FHW3.device
        clips = np.repeat(np.arange(len(batch.clips)), [len(clip) for clip in batch.clips])
        spaces = clips if section.per == "clip" else np.arange(len(clips))  # which space each frame has
        voxels: list[float] = []
        if section.sampling == "voxel":
            # the voxel of the normalised space of all usable points of a clip, back in the clip's own units
            seen_M3, frame_M = xyz_FQ3[valid_FQ], torch.nonzero(valid_FQ)[:, 0]
            space, problems = self._spaces(batch, seen_M3, torch.from_numpy(clips).to(device)[frame_M], clips, clips)
            if problems:
                return problems
            scales: list[float] = space.scale.tolist()
            voxels = [grid / scales[clip] for clip in clips]
        clip_F, space_F = torch.from_numpy(clips).to(device), torch.from_numpy(spaces).to(device)
        rank_CQ = self._ranks(batch).to(device)
        by_frame = section.sampling == "random_per_frame"
        order_FQ = self._ranks(batch, by_frame=True).to(device) if by_frame else rank_CQ[clip_F]
        pixel_FP, _ = subsample(
            valid_FQ, xyz_FQ3, order_FQ, count=section.count, sampling=section.sampling, voxels=voxels
        )
        kept_FP = pixel_FP < xyz_FQ3.shape[1]
        frame_M, pixel_M = torch.nonzero(kept_FP)[:, 0], pixel_FP[kept_FP]
        xyz_M3 = xyz_FQ3[frame_M, pixel_M]
        space, problems = self._spaces(batch, xyz_M3, space_F[frame_M], spaces, clips)
        if problems:
            return problems
        own_M = space_F[frame_M]
        mine = Frame3D(centre=space.centre[own_M], scale=space.scale[own_M, None], low=space.low[own_M])
        return _Points(
            kept=[min(available, section.count) for available in verdict[-1]],
            frame=frame_M,
            pixel=pixel_M,
            rank=rank_CQ[clip_F[frame_M], pixel_M],
            coord=mine.apply(xyz_M3),
            low=mine.low,
            space=space.as_row()[space_F],
        )

    def _valid(self, geometry: Geometry, xyz_FHW3: Tensor) -> Tensor:
        section = self.recipe.points
        valid = (geometry.depth > 0) & (geometry.conf >= section.min_conf) & torch.isfinite(xyz_FHW3).all(-1)
        if self.recipe.geometry.source == "sensor":
            valid &= geometry.conf > 0
        if section.cropped:
            centre, half = (constant(v, xyz_FHW3.device, xyz_FHW3.dtype) for v in (section.box_centre, section.crop))
            valid &= ((xyz_FHW3 - centre).abs() <= half).all(-1)
        return valid.flatten(1)

    def _unusable(self, batch: Started, verdict: list[list[int]]) -> dict[int, BadClip]:
        """`verdict` is [5,F]: what `usable` says of each frame, and how many points it has."""
        section = self.recipe.points
        enough = section.count if section.too_few == "reject" else min(section.min_points, section.count)
        problems: dict[int, BadClip] = {}
        for place, (clip, own) in enumerate(zip(batch.clips, batch.frames(), strict=True)):
            *good, available = [values[own] for values in verdict]
            try:
                check_usable(clip.key, good, batch.first[place])
            except BadClip as problem:
                problems[place] = problem
                continue
            few = [frame for frame, points in enumerate(available) if points < enough]
            if few:
                crop = f", points.crop={','.join(f'{half:g}' for half in section.crop)}" if section.cropped else ""
                problems[place] = BadClip(
                    clip.key,
                    f"frame {batch.first[place] + few[0]} has {available[few[0]]} usable points, expected at least "
                    f"{enough} (points.count={section.count}, points.too_few={section.too_few}, "
                    f"points.min_points={section.min_points}, points.min_conf={section.min_conf:g}{crop})",
                )
        return problems

    def _ranks(self, batch: Started, *, by_frame: bool = False) -> Tensor:
        """A random order of the pixels of each clip, or of each frame: [C,Q] or [F,Q]."""
        seed, pixels = self.recipe.seed, batch.rgb.shape[1] * batch.rgb.shape[2]
        if by_frame:
            numbers = [(clip.key, frame) for clip in batch.clips for frame in range(len(clip))]
            return torch.stack([priorities(seed, key, pixels, frame=frame) for key, frame in numbers])
        return torch.stack([priorities(seed, clip.key, pixels) for clip in batch.clips])

    def _spaces(
        self, batch: Started, xyz_M3: Tensor, space_M: Tensor, space_of: Array, clip_of: Array
    ) -> tuple[Frame3D, dict[int, BadClip]]:
        """The normalised spaces of points, `space_M` says of which; and why clips have none, by their places.

        `space_of`, `clip_of`: of each frame.
        """
        section, grid = self.recipe.points, self.recipe.concerto.grid
        total, index_M3 = int(space_of[-1]) + 1, space_M[:, None].expand(-1, 3)
        low_G3 = xyz_M3.new_full((total, 3), torch.inf).scatter_reduce(0, index_M3, xyz_M3, "amin")
        high_G3 = xyz_M3.new_full((total, 3), -torch.inf).scatter_reduce(0, index_M3, xyz_M3, "amax")
        if section.normalise == "fixed":
            low = [-half * section.box_scale for half in section.crop]  # of the box; without one, cells of the origin
            space = fixed_space(low_G3, section.box_centre, section.box_scale, low, grid * COARSE_STEPS)
            good_G = torch.ones_like(low_G3[:, 0], dtype=torch.bool)
        else:
            space = fit_box(low_G3, high_G3, section.normalise)
            good_G = has_extent(low_G3, high_G3, section.normalise)
        cells_G = (((high_G3 - space.centre) * space.scale[:, None] - space.low) / grid).amax(1)
        facts = torch.cat([good_G[:, None], cells_G[:, None], high_G3 - low_G3], dim=1).tolist()
        problems: dict[int, BadClip] = {}
        for frame, number in enumerate(space_of.tolist()):
            good, cells, *extent = facts[number]
            key = batch.clips[clip_of[frame]].key
            if not good:
                assert section.normalise != "fixed", "a space that is told fits every cloud"
                problems.setdefault(int(clip_of[frame]), BadClip(key, no_extent(extent, section.normalise)))
            elif not cells < MAX_CELL:
                reason = f"spans {cells:.0f} voxels of concerto.grid={grid:g}, expected at most {MAX_CELL}"
                problems.setdefault(int(clip_of[frame]), BadClip(key, reason))
        return space, problems

    def _plan(self, batch: Started, points: _Points, xyz_FHW3: Tensor) -> Iterator[_Clouds]:
        """The frames, `batch.clouds` at a time, up to where features are computed."""
        recipe, geometry, concerto = self.recipe, batch.geometry, self.models.concerto
        assert concerto is not None, "clouds need Concerto"
        rgb_FQ3 = batch.rgb.flatten(1, 2)
        normal_FQ3 = None
        if recipe.points.normals == "depth":
            normal_FQ3 = normals_from_depth(xyz_FHW3, geometry.extrinsic).flatten(1, 2)
        ends = np.cumsum([0, *points.kept]).tolist()
        for first in range(0, len(points.kept), recipe.batch.clouds):
            kept = points.kept[first : first + recipe.batch.clouds]
            own = slice(ends[first], ends[first + len(kept)])
            frame, pixel, coord = points.frame[own], points.pixel[own], points.coord[own]
            voxels = voxelise(
                coord, points.rank[own], grid=recipe.concerto.grid, low=points.low[own], frame_N=frame - first
            )
            frame_V, pixel_V, coord_V3 = frame[voxels.index], pixel[voxels.index], coord[voxels.index]
            plan = concerto.plan(
                coord=coord_V3,
                grid_coord=voxels.grid,
                offset=torch.bincount(frame_V - first, minlength=len(kept)).cumsum(0),
            )
            rows = concerto.rows(plan)
            token = rows.inverse[voxels.inverse]
            # points come by frame and pixel, and the tokens of a frame after those of the frame before
            order = torch.argsort(token, stable=True)
            frame, pixel = frame[order], pixel[order]
            parts = zip(
                torch.split(pixel, kept),
                torch.split((token - rows.start[frame - first])[order], kept),
                torch.split(coord[order], kept),
                torch.split(geometry.depth.flatten(1)[frame, pixel], kept),
                torch.split(geometry.conf.flatten(1)[frame, pixel], kept),
                rows.lengths,
                strict=True,
            )
            yield _Clouds(
                plan=plan,
                lengths=rows.lengths,
                inputs={
                    "coord": coord_V3,
                    "color": rgb_FQ3[frame_V, pixel_V],
                    "normal": torch.zeros_like(coord_V3) if normal_FQ3 is None else normal_FQ3[frame_V, pixel_V],
                },
                frames=[
                    FramePoints(pixel=pixel, token=token, coord=coord, depth=depth, conf=conf, tokens=tokens)
                    for pixel, token, coord, depth, conf, tokens in parts
                ],
            )

    def _features(self, clouds: _Clouds) -> list[Tensor]:
        """Distinct features of each frame, float32."""
        assert self.models.concerto is not None, "clouds need Concerto"
        with self.lanes.busy(), self._autocast(self.recipe.concerto.dtype):
            encoded = self.models.concerto.encode(clouds.plan, **clouds.inputs)
            return list(torch.split(encoded.feat.float(), list(clouds.lengths)))


def _world(geometry: Geometry) -> Tensor:
    return unproject(geometry.depth, geometry.intrinsic, geometry.extrinsic)


def _together(arrays: Sequence[Array]) -> Array:
    return arrays[0] if len(arrays) == 1 else np.concatenate(arrays)


def single_frame(clip: Clip, index: int) -> Clip:
    """Frame `index` as a clip of its own, with the pictures, sensors and robot data of that moment."""

    def one(array: Array | None) -> Array | None:
        return None if array is None else array[index : index + 1]

    return replace(
        clip,
        rgb=clip.rgb[index : index + 1],
        time=clip.time[index : index + 1],
        depth=one(clip.depth),
        intrinsic=one(clip.intrinsic),
        extrinsic=one(clip.extrinsic),
        state=one(clip.state),
        action=one(clip.action),
        is_pad=one(clip.is_pad),
        extra={},
        trajectory=None,
        views={name: pictures[index : index + 1] for name, pictures in clip.views.items()},
    )
