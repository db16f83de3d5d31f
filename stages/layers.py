"""What several rooms are built from: attention, a pre-norm transformer block, 2D positions, standardisation.

Shape legend: B batch, N tokens that ask, M tokens that are asked, D model width, H heads.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint


class Attention(nn.Module):
    """Multi-head attention of x [B,N,D] to itself, or to a context [B,M,E] of another width."""

    def __init__(self, dim: int, heads: int, context_dim: int | None = None) -> None:
        super().__init__()
        if dim % heads:
            raise ValueError(f"a width of {dim} cannot be split into {heads} heads: choose heads that divide it")
        self.heads = heads
        self.query = nn.Linear(dim, dim)
        self.key_value = nn.Linear(context_dim or dim, 2 * dim)
        self.out = nn.Linear(dim, dim)

    def forward(self, x_BND: Tensor, context_BME: Tensor | None = None, seen_BM: Tensor | None = None) -> Tensor:
        """[B,N,D]. Where `seen_BM` (bool) is false, nothing attends; every row of it needs one that is true."""
        key, value = self.key_value(x_BND if context_BME is None else context_BME).chunk(2, dim=-1)
        mask = None if seen_BM is None else seen_BM[:, None, None, :]
        mixed = F.scaled_dot_product_attention(
            self.split(self.query(x_BND)), self.split(key), self.split(value), attn_mask=mask
        )
        out: Tensor = self.out(mixed.transpose(1, 2).flatten(2))
        return out

    def split(self, x_BND: Tensor) -> Tensor:
        """[B,N,D] as [B,H,N,D/H]."""
        return x_BND.view(*x_BND.shape[:-1], self.heads, -1).transpose(1, 2)


def feed_forward(dim: int, hidden: int, out: int | None = None) -> nn.Sequential:
    """Linear, GELU, Linear: dim → hidden → out (dim)."""
    return nn.Sequential(nn.Linear(dim, hidden), nn.GELU(), nn.Linear(hidden, out or dim))


class TransformerBlock(nn.Module):
    """Pre-norm block (Xiong et al. 2020): x + self-attention, then x + cross-attention if built so, then x + FFN.

    The context of the cross-attention is taken as it is: whoever makes it normalises it.
    """

    def __init__(self, dim: int, heads: int, hidden: int, *, cross: bool = False) -> None:
        super().__init__()
        self.norm_self, self.self_attention = nn.LayerNorm(dim), Attention(dim, heads)
        self.norm_cross = nn.LayerNorm(dim) if cross else None
        self.cross_attention = Attention(dim, heads) if cross else None
        self.norm_ffn, self.ffn = nn.LayerNorm(dim), feed_forward(dim, hidden)

    def forward(
        self,
        x_BND: Tensor,
        context_BMD: Tensor | None = None,
        seen_BN: Tensor | None = None,
        context_seen_BM: Tensor | None = None,
    ) -> Tensor:
        """[B,N,D]. `seen_BN` and `context_seen_BM` (bool) say which tokens may be attended to; None: all."""
        x_BND = x_BND + self.self_attention(self.norm_self(x_BND), seen_BM=seen_BN)
        if self.cross_attention is not None and self.norm_cross is not None:
            assert context_BMD is not None, "a block built with cross=True needs a context"
            x_BND = x_BND + self.cross_attention(self.norm_cross(x_BND), context_BMD, context_seen_BM)
        out: Tensor = x_BND + self.ffn(self.norm_ffn(x_BND))
        return out


class Standardise(nn.Module):
    """(x - mean) / deviation by channel, with statistics of the store as buffers: mean 0 and deviation 1 until set."""

    mean: Tensor
    deviation: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(channels))
        self.register_buffer("deviation", torch.ones(channels))

    def set(self, mean_C: Tensor, deviation_C: Tensor) -> None:
        """Take these statistics; a channel that hardly varies (deviation under 1e-4 of the median) is not blown up."""
        for name, value in (("mean", mean_C), ("deviation", deviation_C)):
            if value.shape != self.mean.shape or not bool(torch.isfinite(value).all()):
                raise ValueError(
                    f"{name} has shape {list(value.shape)}, expected {list(self.mean.shape)} finite values"
                )
        floor = (1e-4 * deviation_C.median()).clamp_min(torch.finfo(torch.float32).tiny)
        self.mean.copy_(mean_C)
        self.deviation.copy_(torch.maximum(deviation_C, floor))

    def forward(self, x: Tensor) -> Tensor:
        """Standardised float32 of the same shape [..., C]."""
        return (x.float() - self.mean) / self.deviation

    def undo(self, x: Tensor) -> Tensor:
        """The inverse."""
        return x.float() * self.deviation + self.mean


def sine_positions_2d(grid: int, dim: int) -> Tensor:
    """Fixed positions f4 [grid*grid, dim] of cells in row-major order (Vaswani et al. 2017, half the channels an axis).

    Wavelengths run from 2 pi cells to 10,000 times that. ValueError unless `dim` is a multiple of 4.
    """
    if dim % 4:
        raise ValueError(f"2D positions need a width that is a multiple of 4, got {dim}")
    quarter = dim // 4
    frequency = torch.exp(torch.arange(quarter) * (-math.log(10_000.0) / quarter))
    angle = torch.arange(grid)[:, None] * frequency
    axis = torch.cat([angle.sin(), angle.cos()], dim=1)
    rows = axis[:, None, :].expand(grid, grid, -1)
    columns = axis[None, :, :].expand(grid, grid, -1)
    return torch.cat([rows, columns], dim=-1).reshape(grid * grid, dim)


def sine_positions_at(place_BN2: Tensor, dim: int) -> Tensor:
    """Fixed positions f4 [B,N,dim] of places (row, column) in the picture, 0 to 1; zeros for a place that is NaN.

    On the scale of `sine_positions_2d`: the picture is 16 cells wide, whatever grid the places are from.
    """
    if dim % 4:
        raise ValueError(f"2D positions need a width that is a multiple of 4, got {dim}")
    quarter = dim // 4
    frequency = torch.exp(torch.arange(quarter, device=place_BN2.device) * (-math.log(10_000.0) / quarter))
    angle = place_BN2.float()[..., None] * 16 * frequency  # [B,N,2,dim/4]
    return torch.cat([angle.sin(), angle.cos()], dim=-1).flatten(-2).nan_to_num()


def run(layer: Callable[..., Tensor], *inputs: Any, checkpointed: bool) -> Tensor:
    """`layer(*inputs)`; with `checkpointed` its activations are computed again in the backward pass, not kept."""
    if checkpointed and torch.is_grad_enabled():
        result: Tensor = checkpoint(layer, *inputs, use_reentrant=False)
        return result
    return layer(*inputs)


def parameters_of(module: nn.Module | nn.Parameter | None) -> int:
    """Trainable numbers of a module or of one parameter."""
    if module is None:
        return 0
    values = [module] if isinstance(module, nn.Parameter) else list(module.parameters())
    return sum(p.numel() for p in values if p.requires_grad)
