"""Frames of a window that see each other: attention over time at every cell.

Shape legend: B pairs or windows, W frames in order of time, Q cells, D model width.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from stages.layers import TransformerBlock, run


@dataclass(frozen=True, kw_only=True)
class TemporalConfig:
    """Sizes of `TemporalEncoder`. `frames` is the longest window; 0 `layers` leave the frames as they are."""

    dim: int = 512
    layers: int = 4
    heads: int = 8
    hidden: int = 2048
    frames: int = 2
    checkpoint: bool = False


class TemporalEncoder(nn.Module):
    """Frames [B,W,Q,D] → the same frames after they have seen each other, [B,W,Q,D]."""

    def __init__(self, config: TemporalConfig) -> None:
        super().__init__()
        self.config = config
        self.positions = nn.Parameter(torch.randn(config.frames, config.dim) * 0.02) if config.layers else None
        self.blocks = nn.ModuleList(
            TransformerBlock(config.dim, config.heads, config.hidden) for _ in range(config.layers)
        )

    def forward(self, frames_BWQD: Tensor) -> Tensor:
        """[B,W,Q,D]. ValueError for a window shorter than 2 or longer than `frames`."""
        batch, window, cells, _ = frames_BWQD.shape
        if not 2 <= window <= self.config.frames:
            raise ValueError(f"a window of {window} frames, expected 2 to {self.config.frames} (TemporalConfig.frames)")
        x = frames_BWQD
        if self.positions is not None:
            x = x + self.positions[:window, None]
            x = x.transpose(1, 2).flatten(0, 1)  # [B*Q, W, D]: each cell over time
            for block in self.blocks:
                x = run(block, x, checkpointed=self.config.checkpoint)
            x = x.view(batch, cells, window, -1).transpose(1, 2)
        return x
