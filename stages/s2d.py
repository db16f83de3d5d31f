"""Sparse to dense: the N' distinct point features of a frame onto a fixed grid of learned spatial queries.

Shape legend: B frames, T tokens packed (sum of N'), C channels of the store, Q = grid * grid queries, D model width,
H heads. A coarse token that m points share counts m times: softmax over all points equals softmax over the distinct
tokens with log m added to the logits, exactly, because exp(l + log m) = m exp(l). The points themselves are not needed.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from data_specs.batches import TokenBatch
from data_specs.shards import GRID
from stages.layers import feed_forward, run

Coords = Literal["none", "keys", "both"]


@dataclass(frozen=True, kw_only=True)
class S2DConfig:
    """Sizes of `SparseToDense`.

    Attributes:
        channels: of the store's tokens: 512, or 896 and 1,088 with finer levels.
        dim, grid, layers, heads, hidden: width, cells along a side, layers, heads, width of the FFN.
        coords: where the tokens' coordinates go: nowhere, into the keys, or into keys and values.
        checkpoint: recompute a layer's activations in the backward pass.
    """

    channels: int = 512
    dim: int = 512
    grid: int = GRID
    layers: int = 2
    heads: int = 8
    hidden: int = 2048
    coords: Coords = "none"
    checkpoint: bool = False


class SparseToDense(nn.Module):
    """Learned spatial queries that attend to the distinct tokens of their frame: TokenBatch → [B,grid,grid,D]."""

    def __init__(self, config: S2DConfig) -> None:
        super().__init__()
        self.config = config
        self.queries = nn.Parameter(torch.randn(1, config.grid**2, config.dim) * 0.02)
        self.row = nn.Parameter(torch.randn(config.grid, 1, config.dim) * 0.02)
        self.column = nn.Parameter(torch.randn(1, config.grid, config.dim) * 0.02)
        self.layers = nn.ModuleList(_Layer(config) for _ in range(config.layers))
        self.norm = nn.LayerNorm(config.dim)

    def forward(self, tokens: TokenBatch) -> Tensor:
        """Dense features [B,grid,grid,D].

        Every frame needs a token, as every stored frame has; ValueError when the tokens have other channels.
        """
        config = self.config
        if tokens.feat.shape[-1] != config.channels:
            raise ValueError(
                f"the tokens have {tokens.feat.shape[-1]} channels and S2D was built for {config.channels}: "
                "build it with the channels of the store"
            )
        feat_TC, coord_T3 = tokens.feat.to(self.queries.dtype), tokens.coord.to(self.queries.dtype)
        bias_T = tokens.count.to(self.queries.dtype).log()
        lengths = tokens.offset.diff().tolist()  # the one thing the host must know: how long each frame is
        x = self.queries + (self.row + self.column).flatten(0, 1)  # [1,Q,D]: the same for every frame in layer 1
        for layer in self.layers:
            x = run(layer, x, feat_TC, coord_T3, bias_T, lengths, checkpointed=config.checkpoint)
        dense: Tensor = self.norm(x)
        return dense.view(len(dense), config.grid, config.grid, -1)


class _Layer(nn.Module):
    """Cross-attention + residual, LayerNorm, FFN + residual, LayerNorm."""

    def __init__(self, config: S2DConfig) -> None:
        super().__init__()
        dim = config.dim
        if dim % config.heads:
            raise ValueError(f"a width of {dim} cannot be split into {config.heads} heads: choose heads that divide it")
        self.heads = config.heads
        self.query, self.out = nn.Linear(dim, dim), nn.Linear(dim, dim)
        self.key, self.value = nn.Linear(config.channels, dim), nn.Linear(config.channels, dim)
        self.key_place = feed_forward(3, dim // 4, dim) if config.coords != "none" else None
        self.value_place = feed_forward(3, dim // 4, dim) if config.coords == "both" else None
        self.norm_attention, self.norm_ffn = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.ffn = feed_forward(dim, config.hidden)

    def forward(
        self, x_BQD: Tensor, feat_TC: Tensor, coord_T3: Tensor, bias_T: Tensor, lengths: Sequence[int]
    ) -> Tensor:
        """[B,Q,D]; the first dimension of x may be 1, for queries that all frames share."""
        key_TD, value_TD = self.key(feat_TC), self.value(feat_TC)
        if self.key_place is not None:
            key_TD = key_TD + self.key_place(coord_T3)
        if self.value_place is not None:
            value_TD = value_TD + self.value_place(coord_T3)
        mixed_BQD: Tensor = attend_packed(self.query(x_BQD), key_TD, value_TD, bias_T, lengths, self.heads)
        x_BQD = self.norm_attention(x_BQD + self.out(mixed_BQD))
        result: Tensor = self.norm_ffn(x_BQD + self.ffn(x_BQD))
        return result


@torch.compiler.disable  # type: ignore[untyped-decorator]  # a loop over lengths: compiled it would be another graph for every batch
def attend_packed(
    query_BQD: Tensor, key_TD: Tensor, value_TD: Tensor, bias_T: Tensor, lengths: Sequence[int], heads: int
) -> Tensor:
    """Attention of each frame's queries to its own rows of packed keys, with a bias a key; [B,Q,D].

    A frame at a time: its keys are a slice, so that nothing is padded and nothing is copied, and one frame (196 queries
    of 8 heads to some hundred keys) is work enough to fill a core. Queries [1,Q,D] are shared by all frames.
    """

    def split(x: Tensor) -> Tensor:
        return x.view(*x.shape[:-1], heads, -1).transpose(-3, -2)  # [..., H, n, D/H]

    queries = split(query_BQD).expand(len(lengths), -1, -1, -1).unbind(0)
    keys, values, biases = (x.split_with_sizes(lengths) for x in (key_TD, value_TD, bias_T.to(key_TD.dtype)))
    mixed = [
        F.scaled_dot_product_attention(q[None], split(k)[None], split(v)[None], attn_mask=b[None, None, None, :])
        for q, k, v, b in zip(queries, keys, values, biases, strict=True)
    ]
    return torch.cat(mixed).transpose(1, 2).flatten(2)


def broadcast_points(tokens: TokenBatch) -> TokenBatch:
    """The same frames with every token repeated for each of its points: what S2D spares, for tests and benchmarks."""
    count = tokens.count.long()
    points = torch.zeros_like(tokens.offset)
    points[1:] = count.cumsum(0)[tokens.offset[1:] - 1]
    return TokenBatch(
        feat=tokens.feat.repeat_interleave(count, 0),
        coord=tokens.coord.repeat_interleave(count, 0),
        count=torch.ones(int(count.sum()), dtype=tokens.count.dtype, device=count.device),
        offset=points,
    )
