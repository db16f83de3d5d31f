"""From dense features of one frame to what the scene is: projection and a transformer encoder over the cells.

Shape legend: B frames, Q cells, E width of the input, D model width.
"""

from dataclasses import dataclass

from torch import Tensor, nn

from data_specs.shards import GRID
from stages.layers import TransformerBlock, feed_forward, run, sine_positions_2d


@dataclass(frozen=True, kw_only=True)
class SpatialConfig:
    """Sizes of `SpatialEncoder`: `channels` in, width `dim`, blocks, heads and FFN width; `grid` cells along a side."""

    channels: int = 512
    dim: int = 512
    layers: int = 4
    heads: int = 8
    hidden: int = 2048
    grid: int = GRID
    checkpoint: bool = False


class SpatialEncoder(nn.Module):
    """Feature projection E → D → D, fixed 2D positions, pre-norm blocks, output norm: [B,Q,E] → [B,Q,D]."""

    positions: Tensor

    def __init__(self, config: SpatialConfig) -> None:
        super().__init__()
        self.config = config
        self.projection = feed_forward(config.channels, config.dim, config.dim)
        self.register_buffer("positions", sine_positions_2d(config.grid, config.dim), persistent=False)
        self.blocks = nn.ModuleList(
            TransformerBlock(config.dim, config.heads, config.hidden) for _ in range(config.layers)
        )
        self.norm = nn.LayerNorm(config.dim)

    def forward(self, dense_BQE: Tensor) -> Tensor:
        """[B,Q,D]; the cells may also come as [B,grid,grid,E]."""
        x = self.projection(dense_BQE.flatten(1, -2)) + self.positions
        for block in self.blocks:
            x = run(block, x, checkpointed=self.config.checkpoint)
        out: Tensor = self.norm(x)
        return out
