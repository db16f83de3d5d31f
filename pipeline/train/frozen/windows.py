"""From films to what VGGT tiny is trained on: windows of frames with depth and cameras on VGGT's own terms.

Shape legend
    B  windows    S  frames of a window    H, W  sides of the image, equal
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from pipeline.sim.render import DEPTH_STEP
from pipeline.train.frozen.filming import Film
from stages.points import unproject
from stages.vggt.geometry import pose_from_camera

FLIP, ZOOM, BLUR = 0.5, 0.5, 0.5
"""How often a window is mirrored, zoomed into, made softer."""
_LEAST_CROP = 0.72
_LEAST_SHARPNESS = 0.55
_GAIN, _OFFSET, _NOISE = 0.12, 0.05, 0.012


@dataclass(frozen=True, kw_only=True, eq=False)
class Windows:
    """B windows of S frames, each in the world of its first camera and in units of its mean point's distance from it.

    Attributes:
        images: f4 [B,S,3,H,W] in [0,1].
        depth: f4 [B,S,H,W] along the optical axis; 0 where there is none.
        pose: f4 [B,S,9] pose encoding, as `stages.vggt.geometry` has it.
        scale: f4 [B] metres of a unit.
    """

    images: Tensor
    depth: Tensor
    pose: Tensor
    scale: Tensor

    def __len__(self) -> int:
        return len(self.images)

    def to(self, device: torch.device | str, *, non_blocking: bool = False) -> "Windows":
        """A copy on `device`."""
        names = ("images", "depth", "pose", "scale")
        return replace(self, **{name: getattr(self, name).to(device, non_blocking=non_blocking) for name in names})


def stack(windows: Sequence[Windows]) -> Windows:
    """Windows of equal length side by side."""
    return Windows(
        images=torch.cat([w.images for w in windows]),
        depth=torch.cat([w.depth for w in windows]),
        pose=torch.cat([w.pose for w in windows]),
        scale=torch.cat([w.scale for w in windows]),
    )


def window(film: Film, frames: Sequence[int], rng: np.random.Generator | None = None) -> Windows:
    """The window of these frames of `film`, in this order; changed at random in its looks if there is an `rng`."""
    chosen = list(frames)
    images = torch.from_numpy(film.rgb[chosen]).permute(0, 3, 1, 2).float() / 255
    depth = torch.from_numpy(film.depth[chosen].astype(np.float32)) * DEPTH_STEP
    intrinsic = torch.from_numpy(film.intrinsic[chosen])
    extrinsic = relative(torch.from_numpy(film.extrinsic[chosen]))
    if rng is not None:
        if rng.random() < FLIP:
            images, depth, extrinsic = _mirror(images, depth, extrinsic)
        if rng.random() < ZOOM:
            images, depth, intrinsic = _zoom(images, depth, intrinsic, rng.uniform(_LEAST_CROP, 1.0))
        images = _weather(images, rng)
    height, width = depth.shape[1:]
    distance = unproject(depth, intrinsic, extrinsic).norm(dim=-1)[depth > 0].mean()
    pose = pose_from_camera(
        torch.cat((extrinsic[..., :3], extrinsic[..., 3:] / distance), dim=-1), intrinsic, height, width
    )
    return Windows(images=images[None], depth=depth[None] / distance, pose=pose[None], scale=distance[None])


def relative(extrinsic_S34: Tensor) -> Tensor:
    """Cameras [S,3,4] in the world of the first, which then is [I | 0]."""
    rotation, translation = extrinsic_S34[:, :, :3], extrinsic_S34[:, :, 3:]
    turned = rotation @ rotation[0].T
    return torch.cat((turned, translation - turned @ translation[0]), dim=-1)


def _mirror(images: Tensor, depth: Tensor, extrinsic: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The mirrored scene: x changes its sign in the world and in every camera."""
    sign = extrinsic.new_tensor([-1.0, 1.0, 1.0])
    both = torch.cat((sign[:, None] * sign, sign[:, None]), dim=1)
    return images.flip(-1), depth.flip(-1), extrinsic * both


def _zoom(images: Tensor, depth: Tensor, intrinsic: Tensor, share: float) -> tuple[Tensor, Tensor, Tensor]:
    """The middle `share` of each side at full size: a longer focal length."""
    side = depth.shape[-1]
    margin = round(side * (1 - share) / 2)
    kept = side - 2 * margin
    inside = (..., slice(margin, margin + kept), slice(margin, margin + kept))
    images = F.interpolate(images[inside], size=(side, side), mode="bilinear", align_corners=False)
    # the nearest reading: a mean over an edge is no depth of anything
    depth = F.interpolate(depth[inside][:, None], size=(side, side), mode="nearest-exact")[:, 0]
    factor = intrinsic.new_tensor([side / kept, side / kept, 1.0])
    return images, depth, intrinsic * factor[:, None]


def _weather(images: Tensor, rng: np.random.Generator) -> Tensor:
    """Another exposure and white balance, and what a video codec leaves: softness and noise."""
    gain = 1 + rng.uniform(-_GAIN, _GAIN) + rng.uniform(-_GAIN / 2, _GAIN / 2, 3)
    offset = rng.uniform(-_OFFSET, _OFFSET)
    images = images * torch.from_numpy(gain).float()[:, None, None] + offset
    if rng.random() < BLUR:
        side = images.shape[-1]
        small = round(side * rng.uniform(_LEAST_SHARPNESS, 1.0))
        images = F.interpolate(images, size=(small, small), mode="bilinear", antialias=True)
        images = F.interpolate(images, size=(side, side), mode="bilinear")
        generator = torch.Generator().manual_seed(int(rng.integers(2**31)))
        images = images + rng.uniform(0, _NOISE) * torch.randn(images.shape, generator=generator)
    return images.clamp(0, 1)


def shrink(windows: Windows, side: int) -> Windows:
    """The same windows at `side` pixels, which must divide theirs; the pose encoding does not know pixels."""
    factor, rest = divmod(windows.depth.shape[-1], side)
    if rest:
        raise ValueError(f"windows of {windows.depth.shape[-1]} pixels cannot be shrunk to {side}: name a divisor")
    pooled = F.avg_pool2d(windows.images.flatten(0, 1), factor)
    images = pooled.view(*windows.images.shape[:3], side, side)
    return replace(windows, images=images, depth=windows.depth[..., factor // 2 :: factor, factor // 2 :: factor])
