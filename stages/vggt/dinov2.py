"""Patch embeddings of VGGT: one strided convolution, or a DINOv2 vision transformer with registers.

Shape legend
    N  images    C  width    P  patches of an image, rows * columns    R  registers
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from stages.vggt.blocks import Block

NUM_REGISTERS = 4


class PatchEmbed(nn.Module):
    """Non-overlapping patches through one linear map: images [N,3,H,W] → tokens [N,P,C], row by row."""

    def __init__(self, patch_size: int, embed_dim: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, embed_dim, kernel_size=patch_size, stride=patch_size)

    def forward(self, images_N3HW: Tensor) -> Tensor:
        """Images [N,3,H,W] → tokens [N,P,C]."""
        return self.proj(images_N3HW).flatten(2).transpose(1, 2)  # type: ignore[no-any-return]


class DinoVisionTransformer(nn.Module):
    """DINOv2 (Oquab et al., TMLR 2024) with registers (Darcet et al., ICLR 2024): normalised patch tokens only."""

    def __init__(self, img_size: int, patch_size: int, embed_dim: int, depth: int, num_heads: int) -> None:
        super().__init__()
        self.patch_size = patch_size
        self.grid_size = img_size // patch_size
        self.cls_token = nn.Parameter(torch.zeros(1, 1, embed_dim))
        self.pos_embed = nn.Parameter(torch.zeros(1, 1 + self.grid_size**2, embed_dim))
        self.register_tokens = nn.Parameter(torch.zeros(1, NUM_REGISTERS, embed_dim))
        # Only pretraining uses the mask token; it is here because the checkpoints have it.
        self.mask_token = nn.Parameter(torch.zeros(1, embed_dim))
        self.patch_embed = PatchEmbed(patch_size, embed_dim)
        self.blocks = nn.ModuleList(Block(embed_dim, num_heads, norm_eps=1e-6) for _ in range(depth))
        self.norm = nn.LayerNorm(embed_dim, eps=1e-6)

    def forward(self, images_N3HW: Tensor) -> Tensor:
        """Images [N,3,H,W], normalised → patch tokens [N,P,C] after the last norm."""
        frames, _, height, width = images_N3HW.shape
        patches_NPC = self.patch_embed(images_N3HW)
        patches_NPC = patches_NPC + self._patch_positions(height // self.patch_size, width // self.patch_size)
        cls_N1C = (self.cls_token + self.pos_embed[:, :1]).expand(frames, -1, -1)
        registers_NRC = self.register_tokens.expand(frames, -1, -1)
        x = torch.cat((cls_N1C, registers_NRC, patches_NPC), dim=1)
        for block in self.blocks:
            x = block(x)
        return self.norm(x[:, 1 + NUM_REGISTERS :])  # type: ignore[no-any-return]

    def _patch_positions(self, rows: int, columns: int) -> Tensor:
        """Position embeddings of a rows x columns grid [1,P,C], resized from the stored square grid."""
        stored_1GC = self.pos_embed[:, 1:]
        side = self.grid_size
        if (rows, columns) == (side, side):
            return stored_1GC
        grid_1CGG = stored_1GC.float().view(1, side, side, -1).permute(0, 3, 1, 2)
        resized = F.interpolate(grid_1CGG, size=(rows, columns), mode="bicubic", antialias=True)
        return resized.flatten(2).transpose(1, 2)
