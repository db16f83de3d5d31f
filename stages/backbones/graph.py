"""The graph backbone: each layer a graph convolution among neighbours, attention among all tokens, a feed-forward net.

Shape legend: B moments, N tokens, D model width, R rows and C columns of a grid.
The graph: cells of a view are joined to the 4 or 8 cells around them, words to the one before and the one after. Views
are not joined to each other, and the robot's state and the action queries to nothing: attention joins those. (VGGT,
despite its name, is no graph network and has nothing to do with this one.)
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from data_specs.batches import PolicyBatch
from stages.backbones.base import Backbone, Span, TokenSequence
from stages.layers import Attention, feed_forward, run

Connectivity = Literal[4, 8]


@dataclass(frozen=True, kw_only=True)
class GraphConfig:
    """Sizes of `GraphBackbone`: width, layers, heads, width of the FFN; `connectivity` 4 or 8 neighbours of a cell."""

    dim: int = 768
    depth: int = 6
    heads: int = 12
    hidden: int = 3072
    connectivity: Connectivity = 4
    checkpoint: bool = False


class GraphBackbone(Backbone):
    """`depth` layers and an output norm."""

    def __init__(self, config: GraphConfig) -> None:
        super().__init__()
        if config.connectivity not in (4, 8):
            raise ValueError(f"a cell has 4 or 8 neighbours, not {config.connectivity}: set connectivity to 4 or 8")
        self.config = config
        self.layers = nn.ModuleList(_Layer(config) for _ in range(config.depth))
        self.norm = nn.LayerNorm(config.dim)

    def forward(self, sequence: TokenSequence, batch: PolicyBatch) -> Tensor:
        """[B,N,D]."""
        x, seen = sequence.tokens(len(batch)), sequence.mask(len(batch))
        graph = Neighbours(sequence.spans, self.config.connectivity)
        for layer in self.layers:
            x = run(layer, x, graph, seen, checkpointed=self.config.checkpoint)
        out: Tensor = self.norm(x)
        return out


class _Layer(nn.Module):
    """Pre-norm: x + W mean of the neighbours, x + self-attention, x + FFN.

    The convolution is Kipf and Welling's (ICLR 2017) with the mean over the neighbours; a node itself comes by the
    residual. It has no bias, so that a token without neighbours gets nothing.
    """

    def __init__(self, config: GraphConfig) -> None:
        super().__init__()
        dim = config.dim
        self.norm_graph, self.convolution = nn.LayerNorm(dim), nn.Linear(dim, dim, bias=False)
        self.norm_attention, self.attention = nn.LayerNorm(dim), Attention(dim, config.heads)
        self.norm_ffn, self.ffn = nn.LayerNorm(dim), feed_forward(dim, config.hidden)

    def forward(self, x_BND: Tensor, graph: "Neighbours", seen_BN: Tensor | None) -> Tensor:
        """[B,N,D]."""
        x_BND = x_BND + self.convolution(graph.mean(self.norm_graph(x_BND)))
        x_BND = x_BND + self.attention(self.norm_attention(x_BND), seen_BM=seen_BN)
        out: Tensor = x_BND + self.ffn(self.norm_ffn(x_BND))
        return out


class Neighbours:
    """The graph over a sequence, as shifts of whole grids and chains: no index, no matrix of N by N."""

    def __init__(self, spans: Sequence[Span], connectivity: Connectivity) -> None:
        self._lengths = [len(span) for span in spans]
        self._spans = spans
        self._connectivity = connectivity
        self._inverse_degrees = [self._inverse_degree(span) for span in spans]

    def mean(self, x_BND: Tensor) -> Tensor:
        """The mean of every token's neighbours [B,N,D]: of the real ones, and 0 where there is none."""
        parts = []
        pieces = x_BND.split_with_sizes(self._lengths, dim=1)
        for span, piece, inverse in zip(self._spans, pieces, self._inverse_degrees, strict=True):
            if inverse is None:
                parts.append(torch.zeros_like(piece))
                continue
            nodes = _of_graph(span, piece)
            if span.mask is not None:
                nodes = nodes * _of_graph(span, span.mask[..., None]).to(nodes.dtype)
            mixed = self._sum(span, nodes) * inverse.to(nodes.dtype)
            parts.append(F.pad(mixed, (0, 0, len(span) - mixed.shape[1], 0)))
        return torch.cat(parts, dim=1)

    def _sum(self, span: Span, nodes_BnD: Tensor) -> Tensor:
        if span.order == "chain":
            return _of_pairs(nodes_BnD, dim=1)
        assert span.order is not None
        rows, columns = span.order
        grid = nodes_BnD.reshape(len(nodes_BnD), rows, columns, -1)
        along_columns = _of_pairs(grid, dim=2)
        if self._connectivity == 4:
            return (_of_pairs(grid, dim=1) + along_columns).flatten(1, 2)
        rows_of_three = grid + along_columns  # the box of 9 by its two sides, less the cell itself
        return (_of_pairs(rows_of_three, dim=1) + along_columns).flatten(1, 2)

    def _inverse_degree(self, span: Span) -> Tensor | None:
        """1 / the number of real neighbours, f4 [B or 1,n,1]; None for a span without a graph."""
        if span.order is None:
            return None
        size, count = 1, len(span)
        real = torch.ones(size, count, 1, device=span.tokens.device) if span.mask is None else span.mask[..., None]
        return 1 / self._sum(span, _of_graph(span, real.float())).clamp_min(1)


def _of_graph(span: Span, values_Bnd: Tensor) -> Tensor:
    """Those of the span's tokens that have neighbours: a grid's cells come last, behind special tokens."""
    if span.order is None or span.order == "chain":
        return values_Bnd
    rows, columns = span.order
    return values_Bnd[:, len(span) - rows * columns :]


def _of_pairs(x: Tensor, dim: int) -> Tensor:
    """The sum of the values before and after, along a dimension; 0 beyond the ends."""
    count = x.shape[dim]
    zero = torch.zeros_like(x.narrow(dim, 0, 1))
    before = torch.cat([zero, x.narrow(dim, 0, count - 1)], dim=dim)
    after = torch.cat([x.narrow(dim, 1, count - 1), zero], dim=dim)
    return before + after
