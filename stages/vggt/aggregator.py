"""The aggregator of VGGT: attention within each frame and over all frames, in turns.

Shape legend
    B  clips    S  frames of a clip    N  tokens of a frame, 5 special ones + P patches    C  width
"""

from collections.abc import Collection

import torch
from torch import Tensor, nn

from stages.constants import constant
from stages.vggt.blocks import Block, Rope
from stages.vggt.config import DINOV2_SIZES, VGGTConfig
from stages.vggt.dinov2 import NUM_REGISTERS, DinoVisionTransformer, PatchEmbed

# of ImageNet, which the backbone was trained with
IMAGE_MEAN = (0.485, 0.456, 0.406)
IMAGE_STD = (0.229, 0.224, 0.225)

NUM_SPECIAL = 1 + NUM_REGISTERS
"""Tokens of a frame in front of its patches: one for the camera, then the registers."""


class Aggregator(nn.Module):
    """Alternating attention (Wang et al., VGGT, CVPR 2025, section 3.2)."""

    def __init__(self, config: VGGTConfig) -> None:
        super().__init__()
        dim = config.embed_dim
        self.patch_size = config.patch_size
        self.head_dim = dim // config.num_heads
        self.patch_embed: PatchEmbed | DinoVisionTransformer
        if config.patch_embed == "conv":
            self.patch_embed = PatchEmbed(config.patch_size, dim)
        else:
            _, depth, heads = DINOV2_SIZES[config.patch_embed]
            self.patch_embed = DinoVisionTransformer(config.img_size, config.patch_size, dim, depth, heads)
        # Index 0 is for the first frame, which sets the world coordinates, index 1 for all others.
        self.camera_token = nn.Parameter(torch.zeros(1, 2, 1, dim))
        self.register_token = nn.Parameter(torch.zeros(1, 2, NUM_REGISTERS, dim))
        pairs = range(config.depth)
        self.frame_blocks = nn.ModuleList(Block(dim, config.num_heads, qk_norm=True) for _ in pairs)
        self.global_blocks = nn.ModuleList(Block(dim, config.num_heads, qk_norm=True) for _ in pairs)

    def forward(self, images_BS3HW: Tensor, layers: Collection[int]) -> dict[int, Tensor]:
        """Images [B,S,3,H,W] in [0,1] → tokens [B,S,N,2C] after each pair in `layers`, frame half first.

        Nothing runs after the last pair in `layers`.
        """
        clips, frames, _, height, width = images_BS3HW.shape
        rope = Rope.grid(
            height // self.patch_size, width // self.patch_size, NUM_SPECIAL, self.head_dim, images_BS3HW.device
        )
        rope_clip = rope if frames == 1 else rope.repeat(frames)
        x = self._embed(images_BS3HW)
        tokens, dim = x.shape[1:]
        kept: dict[int, Tensor] = {}
        for layer in range(max(layers) + 1):
            x = self.frame_blocks[layer](x.view(clips * frames, tokens, dim), rope)
            frame_BSNC = x.view(clips, frames, tokens, dim)
            x = self.global_blocks[layer](x.view(clips, frames * tokens, dim), rope_clip)
            if layer in layers:
                kept[layer] = torch.cat((frame_BSNC, x.view(clips, frames, tokens, dim)), dim=-1)
        return kept

    def _embed(self, images_BS3HW: Tensor) -> Tensor:
        """Tokens of every frame on its own [B*S,N,C]: camera, registers, patches."""
        device, dtype = images_BS3HW.device, images_BS3HW.dtype
        mean, std = (constant(v, device, dtype)[:, None, None] for v in (IMAGE_MEAN, IMAGE_STD))
        patches = self.patch_embed(((images_BS3HW - mean) / std).flatten(0, 1))
        clips, frames = images_BS3HW.shape[:2]
        special = torch.cat((self.camera_token, self.register_token), dim=2)
        # [B,S,5,C]: the first frame of a clip takes the one set, the others share the other
        special = torch.cat((special[:, :1], special[:, 1:].expand(-1, frames - 1, -1, -1)), dim=1)
        special = special.expand(clips, -1, -1, -1).flatten(0, 1)
        return torch.cat((special, patches), dim=1)
