"""The frames of a clip as clouds with features: lifted, subsampled, normalised, voxelised, through Concerto."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from data_specs.arrays import Array
from data_specs.records import BadClip, Clip
from pipeline.config import ExtractRecipe
from pipeline.extract.geometry import Geometry, lift
from pipeline.extract.models import FrozenModels
from pipeline.extract.pack import FramePoints
from stages.points import (
    Frame3D,
    fit_normalisation,
    fixed_space,
    normals_from_depth,
    priorities,
    subsample,
    unproject,
    voxelise,
)

CLOUDS_A_BATCH = 4
"""Clouds that go through Concerto together. Fixed, so that a clip gives the same bytes on every run."""


COARSE_STEPS = 16
"""Grid steps along a side of Concerto's coarsest cells: how far the origin of a fixed space may move at a time."""


@dataclass(frozen=True, kw_only=True)
class Lifted:
    """The frames of a clip as points with features: `xyz` f4 [F,H,W,3] world, the rest a frame each."""

    geometry: Geometry
    xyz: Tensor
    spaces: list[Frame3D]
    feats: list[Tensor]
    frames: list[FramePoints]

    @classmethod
    def join(cls, parts: Sequence["Lifted"]) -> "Lifted":
        """The frames of all parts, one after the other."""
        if len(parts) == 1:
            return parts[0]
        return cls(
            geometry=Geometry.join([part.geometry for part in parts]),
            xyz=torch.cat([part.xyz for part in parts]),
            spaces=[space for part in parts for space in part.spaces],
            feats=[feat for part in parts for feat in part.feats],
            frames=[frame for part in parts for frame in part.frames],
        )


class CloudEncoder:
    """Clips to `Lifted`; raises BadClip for a frame that cannot be used."""

    def __init__(self, recipe: ExtractRecipe, models: FrozenModels) -> None:
        self.recipe = recipe
        self.models = models

    def lift(self, clip: Clip) -> Lifted:
        """The frames of a clip together or, with `robot.live`, each through everything by itself."""
        if not self.recipe.robot.live:
            return self._lift(clip, 0)
        return Lifted.join([self._lift(single_frame(clip, i), i) for i in range(len(clip))])

    def _lift(self, clip: Clip, first: int) -> Lifted:
        """`first` is the number of the clip's first frame, for what is said of a bad one."""
        with self._autocast(self.recipe.vggt.dtype):
            geometry = lift(clip, self.recipe.geometry, self.models.vggt, self.models.device, first=first)
        xyz_FHW3 = unproject(geometry.depth, geometry.intrinsic, geometry.extrinsic)
        chosen = self._choose(clip.key, geometry, xyz_FHW3, first)
        spaces = self._normalise(clip.key, xyz_FHW3, chosen)
        feats, frames = self._encode(clip, geometry, xyz_FHW3, chosen, spaces)
        return Lifted(geometry=geometry, xyz=xyz_FHW3, spaces=spaces, feats=feats, frames=frames)

    def _autocast(self, dtype: str) -> torch.autocast:
        return torch.autocast(self.models.device.type, dtype=torch.bfloat16, enabled=dtype == "bfloat16")

    def _choose(self, key: str, geometry: Geometry, xyz_FHW3: Tensor, first: int) -> list[Tensor]:
        section = self.recipe.points
        usable = (geometry.depth > 0) & (geometry.conf >= section.min_conf) & torch.isfinite(xyz_FHW3).all(-1)
        if self.recipe.geometry.source == "sensor":
            usable &= geometry.conf > 0
        if section.cropped:
            away = (xyz_FHW3 - xyz_FHW3.new_tensor(section.box_centre)).abs()
            usable &= (away <= xyz_FHW3.new_tensor(section.crop)).all(-1)
        enough = section.count if section.too_few == "reject" else min(section.min_points, section.count)
        available = usable.flatten(1).sum(1)
        if bool((available < enough).any()):
            frame = int(torch.nonzero(available < enough)[0])
            crop = f", points.crop={','.join(f'{half:g}' for half in section.crop)}" if section.cropped else ""
            raise BadClip(
                key,
                f"frame {first + frame} has {int(available[frame])} usable points, expected at least {enough} "
                f"(points.count={section.count}, points.too_few={section.too_few}, "
                f"points.min_points={section.min_points}, points.min_conf={section.min_conf:g}{crop})",
            )
        xyz_FQ3 = xyz_FHW3.flatten(1, 2)
        voxel = None
        if section.sampling == "voxel":
            # the voxel of the normalised space, back in the clip's own units
            try:
                voxel = self.recipe.concerto.grid / float(self._space(xyz_FQ3[usable.flatten(1)]).scale)
            except ValueError as error:
                raise BadClip(key, str(error)) from None
        return subsample(
            usable.flatten(1),
            xyz_FQ3,
            count=section.count,
            sampling=section.sampling,
            seed=self.recipe.seed,
            key=key,
            voxel=voxel,
        )

    def _normalise(self, key: str, xyz_FHW3: Tensor, chosen: list[Tensor]) -> list[Frame3D]:
        section = self.recipe.points
        clouds = [xyz.flatten(0, 1)[pixel] for xyz, pixel in zip(xyz_FHW3, chosen, strict=True)]
        try:
            if section.per == "clip":
                return [self._space(torch.cat(clouds))] * len(clouds)
            return [self._space(cloud) for cloud in clouds]
        except ValueError as error:
            raise BadClip(key, str(error)) from None

    def _space(self, cloud_N3: Tensor) -> Frame3D:
        section = self.recipe.points
        if section.normalise != "fixed":
            return fit_normalisation(cloud_N3, section.normalise)
        low = [-half * section.box_scale for half in section.crop]  # of the box; without one, cells of the origin
        step = self.recipe.concerto.grid * COARSE_STEPS
        return fixed_space(cloud_N3, section.box_centre, section.box_scale, low, step)

    def _encode(
        self, clip: Clip, geometry: Geometry, xyz_FHW3: Tensor, chosen: list[Tensor], spaces: list[Frame3D]
    ) -> tuple[list[Tensor], list[FramePoints]]:
        recipe, device, concerto = self.recipe, self.models.device, self.models.concerto
        assert concerto is not None, "clouds need Concerto"
        rgb_FQ3 = torch.from_numpy(clip.rgb).to(device).flatten(1, 2)
        if recipe.points.normals == "depth":
            normal_FQ3 = normals_from_depth(xyz_FHW3, geometry.extrinsic).flatten(1, 2)
        else:
            normal_FQ3 = torch.zeros_like(xyz_FHW3).flatten(1, 2)
        rank_Q = priorities(recipe.seed, clip.key, rgb_FQ3.shape[1]).to(device)
        feats: list[Tensor] = []
        frames: list[FramePoints] = []
        for start in range(0, len(chosen), CLOUDS_A_BATCH):
            batch = range(start, min(start + CLOUDS_A_BATCH, len(chosen)))
            coords = {i: spaces[i].apply(xyz_FHW3[i].flatten(0, 1)[chosen[i]]) for i in batch}
            voxels = {
                i: voxelise(coords[i], rank_Q[chosen[i]], grid=recipe.concerto.grid, low=spaces[i].low) for i in batch
            }
            kept = {i: chosen[i][voxels[i].index] for i in batch}
            with self._autocast(recipe.concerto.dtype):
                encoded = concerto(
                    coord=torch.cat([coords[i][voxels[i].index] for i in batch]),
                    color=torch.cat([rgb_FQ3[i, kept[i]] for i in batch]),
                    normal=torch.cat([normal_FQ3[i, kept[i]] for i in batch]),
                    grid_coord=torch.cat([voxels[i].grid for i in batch]),
                    offset=torch.tensor([len(voxels[i].index) for i in batch], device=device).cumsum(0),
                )
            token_end = encoded.offset.tolist()
            voxel_start = token_start = 0
            for i, end in zip(batch, token_end, strict=True):
                count = len(voxels[i].index)
                row_of_voxel = encoded.inverse[voxel_start : voxel_start + count] - token_start
                frames.append(
                    FramePoints.sort(
                        pixel=chosen[i],
                        token=row_of_voxel[voxels[i].inverse],
                        coord=coords[i],
                        depth=geometry.depth[i].flatten()[chosen[i]],
                        conf=geometry.conf[i].flatten()[chosen[i]],
                        tokens=end - token_start,
                    )
                )
                feats.append(encoded.feat[token_start:end].float())
                voxel_start, token_start = voxel_start + count, end
        return feats, frames


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
