"""The transformer block that the backbone, the aggregator and the camera head share, and rotary positions.

Shape legend
    B  sequences          N  tokens of a sequence     C  width
    H  attention heads    D  width of a head, C / H   F  rotary frequencies, D / 4
    A  axes of the image, always 2: rows, then columns
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

ROPE_BASE = 100.0


@dataclass(frozen=True, kw_only=True)
class Rope:
    """Cosines and sines of two-dimensional rotary positions: `cos` and `sin`, float32 [N,2,F].

    The first half of the channels of a head turns with the row of its token, the second with the column
    (Heo et al., "Rotary Position Embedding for Vision Transformer", ECCV 2024; axial form).
    """

    cos: Tensor
    sin: Tensor

    @classmethod
    def grid(cls, rows: int, columns: int, special: int, head_dim: int, device: torch.device) -> "Rope":
        """Positions of `special` tokens at 0, then of rows x columns patches, row by row, counted from 1."""
        freqs = head_dim // 4
        inv_freq_F = ROPE_BASE ** -(torch.arange(freqs, device=device, dtype=torch.float32) / freqs)
        patches_PA = torch.cartesian_prod(
            torch.arange(1, rows + 1, device=device), torch.arange(1, columns + 1, device=device)
        )
        position_NA = torch.cat((patches_PA.new_zeros(special, 2), patches_PA))
        angle_NAF = position_NA[:, :, None] * inv_freq_F
        return cls(cos=angle_NAF.cos(), sin=angle_NAF.sin())

    def repeat(self, times: int) -> "Rope":
        """The same positions for `times` frames one after the other."""
        return Rope(cos=self.cos.repeat(times, 1, 1), sin=self.sin.repeat(times, 1, 1))

    def rotate(self, x_BHND: Tensor) -> Tensor:
        """Turn queries or keys by the positions of their tokens; channel i of an axis pairs with i + F."""
        freqs = self.cos.shape[-1]
        first, second = x_BHND.view(*x_BHND.shape[:-1], 2, 2, freqs).unbind(-2)
        turned_first = first * self.cos - second * self.sin
        turned_second = second * self.cos + first * self.sin
        return torch.stack((turned_first, turned_second), dim=-2).flatten(-3)


class Attention(nn.Module):
    """Multi-head self-attention [B,N,C] → [B,N,C]; queries and keys normalised where `qk_norm`."""

    def __init__(self, dim: int, num_heads: int, *, qk_norm: bool) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.q_norm = nn.LayerNorm(dim // num_heads) if qk_norm else nn.Identity()
        self.k_norm = nn.LayerNorm(dim // num_heads) if qk_norm else nn.Identity()
        self.proj = nn.Linear(dim, dim)

    def forward(self, x_BNC: Tensor, rope: Rope | None = None) -> Tensor:
        """Tokens [B,N,C] → [B,N,C]; `rope` turns queries and keys where it is given."""
        dim = x_BNC.shape[-1]
        if x_BNC.shape[1] == 1:
            # The softmax over a single key is 1: the values pass as they are. It saves a sixth of the weights that
            # the camera head reads for a frame on its own, where reading them is all the work.
            value_BNC = F.linear(x_BNC, self.qkv.weight[2 * dim :], self.qkv.bias[2 * dim :])
            return self.proj(value_BNC)  # type: ignore[no-any-return]
        qkv = self.qkv(x_BNC).view(*x_BNC.shape[:2], 3, self.num_heads, dim // self.num_heads)
        q_BHND, k_BHND, v_BHND = qkv.permute(2, 0, 3, 1, 4)
        q_BHND, k_BHND = self.q_norm(q_BHND), self.k_norm(k_BHND)
        if rope is not None:
            q_BHND, k_BHND = rope.rotate(q_BHND), rope.rotate(k_BHND)
        # Under autocast the normalised queries and keys are float32, the values not yet.
        q_BHND, k_BHND = q_BHND.to(v_BHND.dtype), k_BHND.to(v_BHND.dtype)
        out_BHND = F.scaled_dot_product_attention(q_BHND, k_BHND, v_BHND)
        return self.proj(out_BHND.transpose(1, 2).flatten(-2))  # type: ignore[no-any-return]


class Mlp(nn.Module):
    """Two linear layers around a GELU; `dim` → `hidden` → `out` channels."""

    def __init__(self, dim: int, hidden: int, out: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden)
        self.fc2 = nn.Linear(hidden, out)

    def forward(self, x: Tensor) -> Tensor:
        """[...,dim] → [...,out]."""
        return self.fc2(F.gelu(self.fc1(x)))  # type: ignore[no-any-return]


class LayerScale(nn.Module):
    """A learned factor per channel on a residual branch (Touvron et al., CaiT, ICCV 2021)."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(dim))

    def forward(self, x: Tensor) -> Tensor:
        """[...,C] → [...,C]."""
        return x * self.gamma


class Block(nn.Module):
    """Pre-norm transformer block with layer scale; the MLP is four times as wide as the tokens."""

    def __init__(self, dim: int, num_heads: int, *, qk_norm: bool = False, norm_eps: float = 1e-5) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=norm_eps)
        self.attn = Attention(dim, num_heads, qk_norm=qk_norm)
        self.ls1 = LayerScale(dim)
        self.norm2 = nn.LayerNorm(dim, eps=norm_eps)
        self.mlp = Mlp(dim, 4 * dim, dim)
        self.ls2 = LayerScale(dim)

    def forward(self, x_BNC: Tensor, rope: Rope | None = None) -> Tensor:
        """Tokens [B,N,C] → [B,N,C]."""
        x_BNC = x_BNC + self.ls1(self.attn(self.norm1(x_BNC), rope))
        return x_BNC + self.ls2(self.mlp(self.norm2(x_BNC)))  # type: ignore[no-any-return]
