"""What the later frame looks like, from the first frame and the latent action.

Shape legend: B pairs, Q cells, K latents, L code width, D model width, d numbers of a target in a cell or a frame.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from data_specs.shards import GRID
from stages.layers import TransformerBlock, run, sine_positions_2d


@dataclass(frozen=True, kw_only=True)
class DecoderConfig:
    """Sizes of `Decoder`; `code_dim` and `tokens` are those of the latents. `residual`: predict the change only."""

    dim: int = 512
    layers: int = 2
    heads: int = 8
    hidden: int = 2048
    code_dim: int = 32
    tokens: int = 4
    residual: bool = True
    checkpoint: bool = False


class Decoder(nn.Module):
    """Cells of the first frame that see each other and cross-attend to the latents; a linear head a target.

    Targets of a whole frame (`whole`) change by what is linear in the latents and does not depend on the frame: what
    the latents say of them can be read off without knowing where things were.
    """

    positions: Tensor

    def __init__(self, config: DecoderConfig, *, cells: Mapping[str, int], whole: Mapping[str, int]) -> None:
        super().__init__()
        self.config = config
        self.up = nn.Linear(config.code_dim, config.dim)
        self.token = nn.Parameter(torch.randn(config.tokens, config.dim) * 0.02)  # which latent is which
        self.register_buffer("positions", sine_positions_2d(GRID, config.dim), persistent=False)
        self.blocks = nn.ModuleList(
            TransformerBlock(config.dim, config.heads, config.hidden, cross=True) for _ in range(config.layers)
        )
        self.norm = nn.LayerNorm(config.dim)
        self.heads = nn.ModuleDict({name: nn.Linear(config.dim, width) for name, width in cells.items()})
        latent = config.tokens * config.code_dim
        self.whole = nn.ModuleDict({name: nn.Linear(latent, width, bias=False) for name, width in whole.items()})

    def forward(self, first_BQD: Tensor, values: Mapping[str, Tensor], latents_BKL: Tensor) -> dict[str, Tensor]:
        """Predicted targets by name, [B,Q,d] of the cells and [B,1,d] of whole frames.

        `first_BQD` are features of the first frame; no gradient goes back into them, so that what the latents must say
        is not said by features that learn to foresee. `values` are the first frame's targets, which a residual decoder
        adds its prediction to; whole frames are always predicted by their change.
        """
        predicted = {}
        if self.heads:
            context = self.up(latents_BKL) + self.token
            x = first_BQD.detach() + self.positions
            for block in self.blocks:
                x = run(block, x, context, checkpointed=self.config.checkpoint)
            x = self.norm(x)
            for name, head in self.heads.items():
                change = head(x).float()
                predicted[name] = values[name] + change if self.config.residual else change
        for name, head in self.whole.items():
            predicted[name] = values[name] + head(latents_BKL.flatten(1)).float()[:, None]
        return predicted
