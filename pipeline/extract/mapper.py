"""One clip through the frozen models: decoded frames in, what the store keeps out.

A clip is always processed alone, whole or frame by frame, so that what is stored depends on the clip, the recipe and
the weights, and on nothing else: not on the shard, the worker or the neighbours.
"""

from collections.abc import Collection

import numpy as np
import torch
from torch import Tensor

from data_specs.arrays import Array
from data_specs.records import BadClip, Cameras, Cells, Clip, ClipRecord, Points, Tokens
from pipeline.config import ExtractRecipe
from pipeline.extract.clouds import CloudEncoder, Lifted
from pipeline.extract.encoders.towers import vggt_tokens
from pipeline.extract.geometry import FRAMES_A_BATCH
from pipeline.extract.models import FrozenModels
from pipeline.extract.pack import (
    encode_images,
    pack_cells,
    pack_motion,
    pack_points,
    pack_tokens,
    pack_views,
)
from pipeline.extract.pointing import pack_pointing
from pipeline.extract.robot import pack_chunks


class Mapper:
    """Callable from `Clip` to `ClipRecord`; raises BadClip for a clip that cannot be used."""

    def __init__(self, recipe: ExtractRecipe, models: FrozenModels) -> None:
        self.recipe = recipe
        self.models = models
        self.clouds = CloudEncoder(recipe, models)

    @torch.inference_mode()
    def __call__(self, clip: Clip) -> ClipRecord:
        """Everything that the store keeps of a clip."""
        recipe = self.recipe
        chunks = pack_chunks(clip, recipe.robot.chunk)
        self.read(clip)
        lifted = self.clouds.lift(clip)
        tokens, cells, points, camera = self.pack(clip, lifted)
        pointing = pack_pointing(clip, lifted, recipe.points.moving) if recipe.robot.pointing else {}
        return ClipRecord(
            key=clip.key,
            split=clip.split,
            text=clip.text,
            time=clip.time.astype(np.float64),
            tokens=tokens,
            cells=cells,
            points=points,
            camera=camera,
            rgb=encode_images(clip.rgb, recipe.store.image, recipe.store.quality),
            state=clip.state,
            action=clip.action,
            is_pad=clip.is_pad,
            extra={
                **clip.extra,
                **chunks,
                **pointing,
                **pack_motion(lifted.frames, lifted.xyz, lifted.geometry, recipe.points.moving),
            },
            vision=self.see(clip, self.models.vision, lifted.geometry.tokens),
            views=pack_views(clip, recipe.store),
        )

    def read(self, clip: Clip) -> None:
        """Run the text encoder, if there is one; BadClip when it cannot say anything of the clip's instruction."""
        if self.models.text is not None:
            try:
                self.models.text.encode(clip.text)
            except ValueError as error:
                raise BadClip(clip.key, str(error)) from None

    def pack(self, clip: Clip, lifted: Lifted) -> tuple[Tokens, Cells, Points, Cameras]:
        """Clouds as the store keeps them. BadClip where features do not fit into float16."""
        geometry, frames = lifted.geometry, lifted.frames
        points, depth_range, conf_range = pack_points(clip.rgb, frames, self.recipe.points.count)
        tokens = pack_tokens(lifted.feats, frames)
        _check_finite(clip.key, "features", tokens.feat)
        camera = Cameras(
            intrinsic=geometry.intrinsic.cpu().numpy().astype(np.float32),
            extrinsic=geometry.extrinsic[:, :3].cpu().numpy().astype(np.float32),
            range=depth_range,
            conf_range=conf_range,
            normalisation=torch.stack([space.as_row() for space in lifted.spaces]).cpu().numpy().astype(np.float32),
        )
        return tokens, pack_cells(frames, clip.rgb.shape[1]), points, camera

    @torch.inference_mode()
    def see(self, clip: Clip, names: Collection[str], known: Tensor | None = None) -> dict[str, Array]:
        """Tokens f2 [F,N,D] of the image encoders of these names; `known` are VGGT's, where the geometry made them."""
        models, vision = self.models, self.recipe.vision
        rgb_FHW3 = torch.from_numpy(clip.rgb).to(models.device)
        seen: dict[str, Array] = {}
        for name in names:
            parts: list[Tensor] = []
            dtype = self.recipe.vggt.dtype if name == "vggt" else vision.dtype
            for frames in torch.split(rgb_FHW3, 1 if self.recipe.robot.live else FRAMES_A_BATCH):
                with torch.autocast(models.device.type, dtype=torch.bfloat16, enabled=dtype == "bfloat16"):
                    if name != "vggt":
                        parts.append(models.towers[name](frames))
                    elif known is None:
                        assert models.vggt is not None, "tokens of VGGT need VGGT"
                        parts.append(vggt_tokens(models.vggt.vggt, frames.permute(0, 3, 1, 2).float() / 255))
            tokens = known if name == "vggt" and known is not None else torch.cat(parts)
            seen[name] = tokens.half().cpu().numpy()
            _check_finite(clip.key, f"{name} tokens", seen[name])
        return seen


def _check_finite(key: str, what: str, array: Array) -> None:
    if not np.isfinite(array).all():
        raise BadClip(key, f"has {what} that are not finite in float16; expected magnitudes under 65504")
