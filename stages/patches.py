"""A frame's pixels in place of its points: the vision of a latent action model that does not see in 3D.

Shape legend: B frames, H W sides of the image, Q = grid * grid patches, D model width.
"""

from dataclasses import dataclass

from torch import Tensor, nn

from data_specs.shards import GRID
from stages.layers import TransformerBlock, run, sine_positions_2d

PATCH = 16
"""Pixels along a side of a patch: 14 patches along the 224 pixels of a stored frame."""


@dataclass(frozen=True, kw_only=True)
class PatchConfig:
    """Sizes of `PatchEncoder`; two layers of the default width are as large as S2D's."""

    dim: int = 512
    layers: int = 2
    heads: int = 8
    hidden: int = 2048
    checkpoint: bool = False


class PatchEncoder(nn.Module):
    """Patch embedding (Dosovitskiy et al. 2021) and pre-norm blocks: pixels u1 [B,224,224,3] → [B,14,14,D]."""

    positions: Tensor

    def __init__(self, config: PatchConfig) -> None:
        super().__init__()
        self.config = config
        self.embed = nn.Linear(PATCH * PATCH * 3, config.dim)
        self.register_buffer("positions", sine_positions_2d(GRID, config.dim), persistent=False)
        self.blocks = nn.ModuleList(
            TransformerBlock(config.dim, config.heads, config.hidden) for _ in range(config.layers)
        )
        self.norm = nn.LayerNorm(config.dim)

    def forward(self, pixels_BHW3: Tensor) -> Tensor:
        """[B,14,14,D]."""
        x = self.embed(patchify(pixels_BHW3) * 2 - 1) + self.positions
        for block in self.blocks:
            x = run(block, x, checkpointed=self.config.checkpoint)
        out: Tensor = self.norm(x)
        return out.view(len(out), GRID, GRID, -1)


def patchify(pixels_BHW3: Tensor) -> Tensor:
    """Bytes [B,224,224,3] as f4 [B,196,768] in [0,1]: patches row-major, within each (row, column, colour).

    ValueError for frames of another size.
    """
    side = GRID * PATCH
    if pixels_BHW3.shape[1:] != (side, side, 3):
        raise ValueError(f"pixels have shape {list(pixels_BHW3.shape)}, expected [frames, {side}, {side}, 3]")
    split = pixels_BHW3.float().div(255).view(-1, GRID, PATCH, GRID, PATCH, 3)
    return split.transpose(2, 3).reshape(len(pixels_BHW3), GRID * GRID, -1)


def unpatchify(patches_BQ: Tensor) -> Tensor:
    """The inverse of `patchify`, still in [0,1]: [B,224,224,3]."""
    split = patches_BQ.reshape(-1, GRID, GRID, PATCH, PATCH, 3)
    return split.transpose(2, 3).reshape(len(patches_BQ), GRID * PATCH, GRID * PATCH, 3)
