"""The dense heads of VGGT: tokens of four layers → a map of values with a confidence per pixel.

Shape legend
    N  frames    P  patches of a frame, h * w    C  width of the tokens    K  channels of a map
    H, W  sides of the image; h, w sides of a map
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from stages.vggt.config import VGGTConfig

POSITION_RATIO = 0.1
POSITION_BASE = 100.0


class DPTHead(nn.Module):
    """Dense prediction transformer head (Ranftl et al., ICCV 2021) with the position embeddings of VGGT.

    `out_dim` counts the confidence, which is the last channel. The raw map comes out; activations are the model's.
    """

    def __init__(self, config: VGGTConfig, *, out_dim: int) -> None:
        super().__init__()
        self.patch_size = config.patch_size
        dim, widths = 2 * config.embed_dim, config.dpt_out_channels
        self.norm = nn.LayerNorm(dim)
        self.projects = nn.ModuleList(nn.Conv2d(dim, width, kernel_size=1) for width in widths)
        self.resize_layers = nn.ModuleList(
            (
                nn.ConvTranspose2d(widths[0], widths[0], kernel_size=4, stride=4),
                nn.ConvTranspose2d(widths[1], widths[1], kernel_size=2, stride=2),
                nn.Identity(),
                nn.Conv2d(widths[3], widths[3], kernel_size=3, stride=2, padding=1),
            )
        )
        self.scratch = _Scratch(widths, config.dpt_features, out_dim)

    def forward(self, tokens_NPC: Sequence[Tensor], height: int, width: int) -> Tensor:
        """Patch tokens [N,P,C] of the four layers, shallow first → raw map [N,H,W,K] at the size of the image."""
        rows, columns = height // self.patch_size, width // self.patch_size
        aspect = width / height
        levels = []
        for tokens, project, resize in zip(tokens_NPC, self.projects, self.resize_layers, strict=True):
            # Channels come last in the tokens already: the map is a channels_last view of them, without a copy.
            map_NKhw = self.norm(tokens).view(len(tokens), rows, columns, -1).permute(0, 3, 1, 2)
            levels.append(resize(_add_positions(project(map_NKhw), aspect)))
        fused = self.scratch.fuse(levels)
        fused = F.interpolate(fused, size=(height, width), mode="bilinear", align_corners=True)
        out_NKHW = self.scratch.output_conv2(_add_positions(fused, aspect))
        return out_NKHW.permute(0, 2, 3, 1)  # type: ignore[no-any-return]


class _Scratch(nn.Module):
    """The part of the head that is trained from scratch: fusion from deep to shallow, and the output."""

    def __init__(self, widths: Sequence[int], features: int, out_dim: int) -> None:
        super().__init__()
        self.layer1_rn, self.layer2_rn, self.layer3_rn, self.layer4_rn = (
            nn.Conv2d(width, features, kernel_size=3, padding=1, bias=False) for width in widths
        )
        self.refinenet1 = _Fusion(features)
        self.refinenet2 = _Fusion(features)
        self.refinenet3 = _Fusion(features)
        self.refinenet4 = _Fusion(features, has_skip=False)
        self.output_conv1 = nn.Conv2d(features, features // 2, kernel_size=3, padding=1)
        self.output_conv2 = nn.Sequential(
            nn.Conv2d(features // 2, 32, kernel_size=3, padding=1), nn.ReLU(), nn.Conv2d(32, out_dim, kernel_size=1)
        )

    def fuse(self, levels: Sequence[Tensor]) -> Tensor:
        skip1, skip2, skip3 = self.layer1_rn(levels[0]), self.layer2_rn(levels[1]), self.layer3_rn(levels[2])
        x = self.refinenet4(self.layer4_rn(levels[3]), None, skip3.shape[2:])
        x = self.refinenet3(x, skip3, skip2.shape[2:])
        x = self.refinenet2(x, skip2, skip1.shape[2:])
        x = self.refinenet1(x, skip1, tuple(2 * side for side in skip1.shape[2:]))
        return self.output_conv1(x)  # type: ignore[no-any-return]


class _Fusion(nn.Module):
    """Add a skip connection, refine, and resize."""

    def __init__(self, features: int, *, has_skip: bool = True) -> None:
        super().__init__()
        if has_skip:
            self.resConfUnit1 = _ResidualConvUnit(features)
        self.resConfUnit2 = _ResidualConvUnit(features)
        self.out_conv = nn.Conv2d(features, features, kernel_size=1)

    def forward(self, x: Tensor, skip: Tensor | None, size: Sequence[int]) -> Tensor:
        if skip is not None:
            x = x + self.resConfUnit1(skip)
        # A 1x1 convolution and an interpolation commute (the weights of both are linear, and those of the second sum
        # to 1). The published order is the other one and convolves four times as many pixels.
        x = self.out_conv(self.resConfUnit2(x))
        return F.interpolate(x, size=tuple(size), mode="bilinear", align_corners=True)


class _ResidualConvUnit(nn.Module):
    def __init__(self, features: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(features, features, kernel_size=3, padding=1)
        self.conv2 = nn.Conv2d(features, features, kernel_size=3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        # The published first ReLU works in place, so its output, not the input, is what the residual adds to.
        x = F.relu(x)
        return x + self.conv2(F.relu(self.conv1(x)))  # type: ignore[no-any-return]


def _add_positions(x_NKhw: Tensor, aspect: float) -> Tensor:
    """Add sines and cosines of where a pixel lies: half the channels for its column, half for its row.

    Coordinates are those of the pixel's centre on an image whose half diagonal is 1 and whose sides are as
    `aspect` = width / height says.
    """
    half = x_NKhw.shape[1] // 2
    diagonal = math.hypot(aspect, 1.0)
    column_Kw = _sines(x_NKhw.shape[3], aspect / diagonal, half, x_NKhw)
    row_Kh = _sines(x_NKhw.shape[2], 1.0 / diagonal, half, x_NKhw)
    by_column = x_NKhw[:, :half] + column_Kw[:, None, :]
    by_row = x_NKhw[:, half:] + row_Kh[:, :, None]
    return torch.cat((by_column, by_row), dim=1)


def _sines(count: int, span: float, channels: int, like: Tensor) -> Tensor:
    """Embedding [channels, count] of `count` pixel centres that divide [-span, span] evenly, times the ratio."""
    freqs = channels // 2
    edge = span * (count - 1) / count
    place = torch.linspace(-edge, edge, count, device=like.device, dtype=like.dtype)
    omega = POSITION_BASE ** -(torch.arange(freqs, device=like.device, dtype=torch.float64) / freqs)
    angle = omega[:, None] * place.double()
    return (POSITION_RATIO * torch.cat((angle.sin(), angle.cos()))).to(like.dtype)
