"""Random changes of pictures in training: windows of them, and their colours.

Shape legend: B moments, H and W of a picture. Random numbers come from `Draw`, a row a moment, so that the changes do
not depend on how a step is cut into processes and micro-batches.
"""

from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from data_specs.batches import PolicyBatch
from pipeline.train.policy_sections import AugmentSection
from stages.draw import Draw

_LUMA = (0.299, 0.587, 0.114)
"""Weights of red, green and blue in brightness (ITU-R BT.601)."""


def augmented(batch: PolicyBatch, section: AugmentSection, draw: Draw) -> PolicyBatch:
    """The batch with every camera's pictures changed, each by random numbers of its own; nothing else is touched."""
    if not section.changes_pictures or not batch.images:
        return batch
    images = {name: augment(batch.images[name], section, draw) for name in sorted(batch.images)}
    return replace(batch, images=images)


def augment(pixels_BHW3: Tensor, section: AugmentSection, draw: Draw) -> Tensor:
    """Pictures u1 [B,H,W,3] → u1 of the same shape."""
    pixels = pixels_BHW3.movedim(-1, 1).float() / 255
    if section.shift or section.crop:
        pixels = _windows(pixels, section, draw)
    pixels = _colours(pixels, section, draw)
    return (pixels.clamp(0, 1) * 255).round().to(torch.uint8).movedim(1, -1).contiguous()


def _windows(pixels_B3HW: Tensor, section: AugmentSection, draw: Draw) -> Tensor:
    """What a window of side 1 - crop … 1, anywhere inside, then moved by up to `shift`, shows (bilinear)."""
    random_B5 = draw.uniform(5)
    side = 1 - section.crop * random_B5[:, 0]
    # in grid_sample's units the picture spans -1 … 1: a window has (1 - side) to either side of its middle
    inside = (random_B5[:, 1:3] * 2 - 1) * (1 - side)[:, None]
    moved = (random_B5[:, 3:5] * 2 - 1) * 2 * section.shift
    theta = pixels_B3HW.new_zeros(len(pixels_B3HW), 2, 3)
    theta[:, 0, 0] = theta[:, 1, 1] = side
    theta[:, :, 2] = inside + moved
    grid = F.affine_grid(theta, list(pixels_B3HW.shape), align_corners=False)
    return F.grid_sample(pixels_B3HW, grid, mode="bilinear", padding_mode="border", align_corners=False)


def _colours(pixels_B3HW: Tensor, section: AugmentSection, draw: Draw) -> Tensor:
    """Brightness, contrast about the picture's mean, saturation about its grey, in that order; in one pass.

    All three are affine in a pixel x of grey g in a picture of mean grey m: b x, then c (x - m) + m, then
    s (x - g) + g. Together: b c (s x + (1 - s) g) + b (1 - c) m.
    """
    amounts = pixels_B3HW.new_tensor([section.brightness, section.contrast, section.saturation])
    factors_B3 = 1 + amounts * (draw.uniform(3) * 2 - 1)
    if not bool(amounts.any()):
        return pixels_B3HW
    brightness, contrast, saturation = factors_B3[:, :, None, None, None].unbind(1)
    grey_B1HW = torch.einsum("bchw,c->bhw", pixels_B3HW, pixels_B3HW.new_tensor(_LUMA))[:, None]
    gain = brightness * contrast
    offset = brightness * (1 - contrast) * grey_B1HW.mean((2, 3), keepdim=True)
    return pixels_B3HW * (gain * saturation) + (grey_B1HW * (gain * (1 - saturation)) + offset)
