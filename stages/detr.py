"""The transformer of DETR (Carion et al., ECCV 2020), of which ACT is made: post-norm, positions in every layer.

Positions are added to the queries and keys of each attention and never to what the layers carry along.

Shape legend: B batch, N tokens that ask, M tokens that are asked, D model width, H heads.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class PositionedAttention(nn.Module):
    """Multi-head attention with queries, keys and values of their own; weights drop out in training."""

    def __init__(self, dim: int, heads: int, dropout: float) -> None:
        super().__init__()
        if dim % heads:
            raise ValueError(f"a width of {dim} cannot be split into {heads} heads: choose heads that divide it")
        self.heads, self.dropout = heads, dropout
        self.query, self.key, self.value = (nn.Linear(dim, dim) for _ in range(3))
        self.out = nn.Linear(dim, dim)
        for linear in (self.query, self.key, self.value, self.out):
            nn.init.zeros_(linear.bias)

    def forward(self, query_BND: Tensor, key_BMD: Tensor, value_BMD: Tensor, hidden_BM: Tensor | None = None) -> Tensor:
        """[B,N,D]. `hidden_BM` is true for tokens that nobody sees; each sample needs one that is seen."""
        seen = None if hidden_BM is None else ~hidden_BM[:, None, None, :]
        mixed = F.scaled_dot_product_attention(
            self._split(self.query(query_BND)),
            self._split(self.key(key_BMD)),
            self._split(self.value(value_BMD)),
            attn_mask=seen,
            dropout_p=self.dropout if self.training else 0.0,
        )
        out: Tensor = self.out(mixed.transpose(1, 2).flatten(2))
        return out

    def _split(self, x_BND: Tensor) -> Tensor:
        return x_BND.view(*x_BND.shape[:-1], self.heads, -1).transpose(1, 2)


class EncoderLayer(nn.Module):
    """Self-attention, then a ReLU network; each is added to what came in and normalised after that."""

    def __init__(self, dim: int, heads: int, hidden: int, dropout: float) -> None:
        super().__init__()
        self.attention, self.norm_attention = PositionedAttention(dim, heads, dropout), nn.LayerNorm(dim)
        self.ffn, self.norm_ffn = _ffn(dim, hidden, dropout), nn.LayerNorm(dim)
        self.dropout = nn.Dropout(dropout)
        _xavier(self)

    def forward(self, x_BND: Tensor, positions_ND: Tensor, hidden_BN: Tensor | None = None) -> Tensor:
        """[B,N,D]. `hidden_BN` is true for tokens that nobody sees."""
        placed = x_BND + positions_ND
        x_BND = self.norm_attention(x_BND + self.dropout(self.attention(placed, placed, x_BND, hidden_BN)))
        out: Tensor = self.norm_ffn(x_BND + self.dropout(self.ffn(x_BND)))
        return out


class DecoderLayer(nn.Module):
    """Slots that see each other, then the memory, then a ReLU network; post-norm throughout."""

    def __init__(self, dim: int, heads: int, hidden: int, dropout: float) -> None:
        super().__init__()
        self.attention, self.norm_attention = PositionedAttention(dim, heads, dropout), nn.LayerNorm(dim)
        self.cross, self.norm_cross = PositionedAttention(dim, heads, dropout), nn.LayerNorm(dim)
        self.ffn, self.norm_ffn = _ffn(dim, hidden, dropout), nn.LayerNorm(dim)
        self.dropout = nn.Dropout(dropout)
        _xavier(self)

    def forward(self, x_BND: Tensor, slots_ND: Tensor, memory_BMD: Tensor, positions_MD: Tensor) -> Tensor:
        """[B,N,D]. `slots_ND` and `positions_MD` say which slot and which token of the memory is which."""
        placed = x_BND + slots_ND
        x_BND = self.norm_attention(x_BND + self.dropout(self.attention(placed, placed, x_BND)))
        crossed = self.cross(x_BND + slots_ND, memory_BMD + positions_MD, memory_BMD)
        x_BND = self.norm_cross(x_BND + self.dropout(crossed))
        out: Tensor = self.norm_ffn(x_BND + self.dropout(self.ffn(x_BND)))
        return out


def _ffn(dim: int, hidden: int, dropout: float) -> nn.Sequential:
    return nn.Sequential(nn.Linear(dim, hidden), nn.ReLU(), nn.Dropout(dropout), nn.Linear(hidden, dim))


def _xavier(module: nn.Module) -> None:
    """Glorot and Bengio (2010) for every matrix, as DETR starts."""
    for parameter in module.parameters():
        if parameter.dim() > 1:
            nn.init.xavier_uniform_(parameter)


def sine_positions_1d(length: int, dim: int) -> Tensor:
    """Fixed positions f4 [length, dim] of a sequence (Vaswani et al. 2017): sines, then cosines.

    ValueError unless `dim` is even.
    """
    if dim % 2:
        raise ValueError(f"positions need an even width, got {dim}")
    frequency = torch.exp(torch.arange(dim // 2) * (-math.log(10_000.0) / (dim // 2)))
    angle = torch.arange(length)[:, None] * frequency
    return torch.cat([angle.sin(), angle.cos()], dim=1)


def sine_positions_of_picture(rows: int, columns: int, dim: int, device: torch.device | str = "cpu") -> Tensor:
    """Fixed positions f4 [rows*columns, dim] of a feature map in row-major order; half the channels say the row.

    Both axes run to 2 pi whatever their number of cells (Carion et al. 2020, "normalize"), so that maps of cameras
    with different resolutions share a scale. ValueError unless `dim` is a multiple of 4.
    """
    if dim % 4:
        raise ValueError(f"2D positions need a width that is a multiple of 4, got {dim}")
    quarter = dim // 4
    frequency = torch.exp(torch.arange(quarter, device=device) * (-math.log(10_000.0) / quarter))
    axes = []
    for cells in (rows, columns):
        angle = (torch.arange(1, cells + 1, device=device) * (2 * math.pi / cells))[:, None] * frequency
        axes.append(torch.cat([angle.sin(), angle.cos()], dim=1))
    row = axes[0][:, None].expand(rows, columns, -1)
    column = axes[1][None].expand(rows, columns, -1)
    return torch.cat([row, column], dim=-1).flatten(0, 1)
