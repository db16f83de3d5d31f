"""VGGT, the Visual Geometry Grounded Transformer (Wang et al., CVPR 2025), without its track head.

Shape legend
    B  clips    S  frames of a clip    N  tokens of a frame    C  width of the aggregator    H, W  sides of the image
"""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from stages.vggt.aggregator import NUM_SPECIAL, Aggregator
from stages.vggt.camera_head import CameraHead
from stages.vggt.config import VGGTConfig
from stages.vggt.dpt_head import DPTHead
from stages.vggt.geometry import extrinsic_from_pose, intrinsic_from_pose

CAMERA = ("pose_enc", "extrinsic", "intrinsic")
DEPTH = ("depth", "depth_conf")
POINTS = ("point_map", "point_conf")
OUTPUTS = (*CAMERA, *DEPTH, *POINTS, "last_tokens")

# Bounds the memory of the dense heads: a frame at full size takes some 0.1 GB in them.
FRAMES_PER_CHUNK = 8


class VGGT(nn.Module):
    """Images → cameras, depth, points. Parameter names and shapes are those of the released checkpoints."""

    def __init__(self, config: VGGTConfig) -> None:
        super().__init__()
        self.config = config
        self.aggregator = Aggregator(config)
        self.camera_head = CameraHead(config)
        self.point_head = DPTHead(config, out_dim=4) if config.point_head else None
        self.depth_head = DPTHead(config, out_dim=2)

    def forward(
        self, images: Tensor, want: Iterable[str] = (*CAMERA, *DEPTH), *, dense_frames: Tensor | None = None
    ) -> dict[str, Tensor]:
        """Images [B,S,3,H,W] in [0,1] → the wanted outputs by name; only what they need runs.

        The frames of a clip see each other and share one scale; clips do not see each other. The first frame of a
        clip sets its world coordinates. Heads run in float32 also under autocast, as published.

        Args:
            images: float32, H and W multiples of the patch size.
            want: any of `pose_enc` [B,S,9], `extrinsic` [B,S,3,4] camera-from-world, `intrinsic` [B,S,3,3] pixels,
                `depth` [B,S,H,W,1], `depth_conf` [B,S,H,W], `point_map` [B,S,H,W,3] world coordinates, `point_conf`
                [B,S,H,W], `last_tokens` [B,S,N,2C]. Confidences are at least 1. A field of view of 0 gives an
                infinite `intrinsic`.
            dense_frames: int64 [K], of which frames of each clip to make depth and points; of all, if None. All
                frames see each other in any case. Training takes a few: the dense heads are most of the work.

        Raises:
            ValueError: for unknown outputs, points without a point head, or images of another shape.
        """
        wanted = tuple(want)
        unknown = [name for name in wanted if name not in OUTPUTS]
        if unknown or not wanted:
            raise ValueError(f"VGGT has no output {', '.join(unknown) or 'none'}: choose from {', '.join(OUTPUTS)}")
        if self.point_head is None and any(name in POINTS for name in wanted):
            raise ValueError("this VGGT has no point head: unproject its depth with its camera instead")
        check_images(images, self.config.patch_size)
        height, width = images.shape[-2:]

        last = self.config.depth - 1
        needs_dense = any(name in DEPTH + POINTS for name in wanted)
        needs_last = any(name in (*CAMERA, "last_tokens") for name in wanted)
        layers = set(self.config.dpt_layers if needs_dense else ()) | ({last} if needs_last else set())
        tokens = self.aggregator(images, layers)
        seen = tokens if dense_frames is None else {layer: tokens[layer][:, dense_frames] for layer in tokens}

        out: dict[str, Tensor] = {}
        with torch.autocast(images.device.type, enabled=False):
            if "last_tokens" in wanted:
                out["last_tokens"] = tokens[last]
            if any(name in CAMERA for name in wanted):
                out["pose_enc"] = pose_enc = self.camera_head(tokens[last][:, :, 0].float())
                out["extrinsic"] = extrinsic_from_pose(pose_enc)
                out["intrinsic"] = intrinsic_from_pose(pose_enc, height, width)
            if any(name in DEPTH for name in wanted):
                raw = self._dense(self.depth_head, seen, height, width)
                out["depth"], out["depth_conf"] = raw[..., :-1].exp(), 1 + raw[..., -1].exp()
            if any(name in POINTS for name in wanted):
                assert self.point_head is not None
                raw = self._dense(self.point_head, seen, height, width)
                xyz = raw[..., :-1]
                out["point_map"], out["point_conf"] = xyz.sign() * xyz.abs().expm1(), 1 + raw[..., -1].exp()
        return {name: out[name] for name in wanted}

    def _dense(self, head: DPTHead, tokens: Mapping[int, Tensor], height: int, width: int) -> Tensor:
        """Raw map [B,S,H,W,K] of a dense head, a few frames at a time."""
        clips, frames = tokens[self.config.dpt_layers[0]].shape[:2]
        patches = [tokens[layer][:, :, NUM_SPECIAL:].flatten(0, 1) for layer in self.config.dpt_layers]
        raw = torch.cat(
            [
                head([level[start : start + FRAMES_PER_CHUNK].float() for level in patches], height, width)
                for start in range(0, clips * frames, FRAMES_PER_CHUNK)
            ]
        )
        return raw.view(clips, frames, *raw.shape[1:])


def build_vggt(config: VGGTConfig | Mapping[str, Any]) -> VGGT:
    """A VGGT of these sizes; what a mapping does not name is as in VGGT-1B.

    Weights are to be loaded or drawn (`init_random`) by the caller. Under `torch.device("meta")` nothing is allocated;
    `load_state_dict(..., strict=True, assign=True)` then takes the tensors of a checkpoint as they are.

    Raises:
        ValueError: for an unknown key, with the choices, or for sizes that do not fit together.
    """
    return VGGT(config if isinstance(config, VGGTConfig) else VGGTConfig.from_dict(config))


def check_images(images: Tensor, patch_size: int) -> None:
    """Raise ValueError unless `images` is float [...,3,H,W] in five dimensions with sides of whole patches."""
    if images.ndim != 5 or images.shape[2] != 3 or 0 in images.shape:
        raise ValueError(f"images have shape {list(images.shape)}, expected [clips, frames, 3, height, width]")
    if not images.is_floating_point():
        raise ValueError(f"images are {images.dtype}, expected floating point in [0, 1]: divide bytes by 255")
    height, width = images.shape[-2:]
    if height % patch_size or width % patch_size:
        raise ValueError(
            f"images are {height}x{width} pixels, but both sides must be multiples of the patch size {patch_size}: "
            f"resize or crop them, for instance to {_fit(height, patch_size)}x{_fit(width, patch_size)}"
        )


def _fit(side: int, patch_size: int) -> int:
    return max(patch_size, side // patch_size * patch_size)
