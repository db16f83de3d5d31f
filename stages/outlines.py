"""What stands where a slot points, by the points around it: where its middle is, and what it looks like to the hand.

Shape legend: B moments, P points, S slots, n points around a slot, E numbers of an outline.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stages.hand_frame import turned

_OFFSETS = 25.0
"""Offsets from a slot, in units of 4 cm."""

_FARTHEST = 0.04
"""From the mean of a thing's points to its middle, metres."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Around:
    """The points around each slot.

    Attributes:
        share: f4 [B,S,n], what each counts, sums to 1. offset: f4 [B,S,n,3], its way from the slot's mean, metres.
    """

    share: Tensor
    offset: Tensor


_CANDIDATES = 16
"""Points at which `settled` looks for the most attention."""


def settled(weight_BSP: Tensor, xyz_BP3: Tensor, radius: float) -> Tensor:
    """Attention [B,S,P] without what lies elsewhere than most of it, sums to 1.

    Where a slot attends to two things the mean of both is at neither: it settles on the place with the most attention
    within `radius` metres, of those of the points attended to most, and on what lies as near to the mean there.
    """
    with torch.no_grad():
        index_BSc = weight_BSP.topk(min(_CANDIDATES, weight_BSP.shape[-1]), dim=-1).indices
        rows = torch.arange(len(xyz_BP3), device=xyz_BP3.device)[:, None, None]
        at_BSc3 = xyz_BP3[rows, index_BSc]
        away_BSM = torch.cdist(at_BSc3.flatten(1, 2), xyz_BP3, compute_mode="donot_use_mm_for_euclid_dist")
        mass_BSc = torch.einsum("bscp,bsp->bsc", (away_BSM.view(*index_BSc.shape, -1) < radius).float(), weight_BSP)
        centre_BS3 = at_BSc3.gather(2, mass_BSc.argmax(-1)[..., None, None].expand(-1, -1, 1, 3))[:, :, 0]
        for _ in range(2):
            near_BSP = torch.cdist(centre_BS3, xyz_BP3, compute_mode="donot_use_mm_for_euclid_dist") < radius
            kept_BSP = weight_BSP * near_BSP
            centre_BS3 = kept_BSP @ xyz_BP3 / kept_BSP.sum(-1, keepdim=True).clamp_min(1e-9)
    kept_BSP = weight_BSP * near_BSP
    return kept_BSP / kept_BSP.sum(-1, keepdim=True).clamp_min(1e-9)


@torch.no_grad()
def nearest(xyz_BP3: Tensor, kept_B: Tensor, mean_BS3: Tensor, count: int) -> Tensor:
    """The `count` points nearest to each slot i8 [B,S,n], of the first `kept` of each cloud."""
    away_BSP = torch.cdist(mean_BS3.float(), xyz_BP3, compute_mode="donot_use_mm_for_euclid_dist")
    padding_BP = torch.arange(xyz_BP3.shape[1], device=xyz_BP3.device) >= kept_B[:, None]
    away_BSP = away_BSP.masked_fill(padding_BP[:, None], torch.inf)
    return away_BSP.topk(min(count, xyz_BP3.shape[1]), dim=-1, largest=False, sorted=False).indices


def weigh(logit_BSn: Tensor, offset_BSn3: Tensor, real_BSn: Tensor, radius: float) -> Around:
    """Points weighed by the root of the attention, so that all of a thing counts and not only where attention is
    strongest; those farther than `radius` metres from the slot count nothing.
    """
    near_BSn = real_BSn & (torch.linalg.vector_norm(offset_BSn3, dim=-1) < radius)
    share_BSn = (logit_BSn / 2).masked_fill(~near_BSn, -1e4).softmax(-1)
    return Around(share=share_BSn, offset=offset_BSn3)


class Outlines(nn.Module):
    """Middle and outline of what each slot points at."""

    def __init__(self, slots: int, width: int, outline: int) -> None:
        super().__init__()
        self.centre = _two_layers(4 + slots, width, width)
        self.centre_out = _two_layers(width, width, 2)
        self.shape = nn.Sequential(nn.Linear(9, width), nn.GELU(), nn.Linear(width, width))
        self.shape_out = _two_layers(width, width, outline)

    def middle(self, around: Around, mean_BS3: Tensor, eye_B3: Tensor) -> Tensor:
        """From the mean of the points seen to the middle of the thing [B,S,3], along the table.

        How far and which way depends on its size and on where it is seen from: told in the frame whose x axis leads
        from the slot to the camera, which turns with the scene.
        """
        way_BS3 = eye_B3[:, None] - mean_BS3
        heading_BS = torch.atan2(way_BS3[..., 1], way_BS3[..., 0])
        steep_BS = way_BS3[..., 2] / torch.linalg.vector_norm(way_BS3, dim=-1)
        told = [turned(around.offset, heading_BS[..., None]) * _OFFSETS]
        told.append(steep_BS[..., None, None].expand(*around.offset.shape[:-1], 1))
        slots = mean_BS3.shape[1]
        which = torch.eye(slots, device=mean_BS3.device)[None, :, None]
        told.append(which.expand(len(mean_BS3), -1, around.offset.shape[2], -1))
        pooled_BSE = torch.einsum("bsn,bsne->bse", around.share, self.centre(torch.cat(told, dim=-1)))
        shift_BS2 = _FARTHEST * self.centre_out(F.gelu(pooled_BSE)).tanh()
        return mean_BS3 + turned(F.pad(shift_BS2, (0, 1)), -heading_BS)

    def forward(self, around: Around, from_middle_BS3: Tensor, yaw_B: Tensor) -> Tensor:
        """What the points look like from the middle [B,S,E], turned by the yaw; `from_middle` leads to their mean.

        Colours are for finding a thing, not for handling it: with them, few demonstrations are told apart. Circular
        harmonics of the 2nd and 4th order stand beside the coordinates: under the weights' mean they say how a long
        thing and a square one are turned.
        """
        local = turned(around.offset + from_middle_BS3[:, :, None], yaw_B[:, None, None]) * _OFFSETS
        seen = self.shape(torch.cat([local, _harmonics(local[..., :2])], dim=-1))
        outline: Tensor = self.shape_out(F.gelu(torch.einsum("bsn,bsne->bse", around.share, F.gelu(seen))))
        return outline


LIES = 8
"""Numbers of `lies`."""


def lies(around: Around, from_middle_BS3: Tensor, yaw_B: Tensor) -> Tensor:
    """How what stands there is turned, to a hand of that yaw: [B,S,8], for what is long and for what is square.

    Of the points' second and fourth moments along the table: cosine and sine of twice (four times) the angle of the
    long axis (the faces), the angle itself in -90° … 90° (-45° … 45°), and how pronounced it is, 0 for a disc. A hand
    that turns by the angle lies along it.
    """
    local = turned(around.offset + from_middle_BS3[:, :, None], yaw_B[:, None, None])
    square = local[..., :2].square().sum(-1)
    angle = torch.atan2(local[..., 1], local[..., 0] + 1e-9)
    told = []
    for times, power, corner in ((2, 1, 1.0), (4, 2, -1.0)):  # the corners of a square are between its faces
        weight = around.share * square**power
        total = weight.sum(-1) + 1e-9
        cosine = corner * (weight * (times * angle).cos()).sum(-1) / total
        sine = corner * (weight * (times * angle).sin()).sum(-1) / total
        told += [
            cosine,
            sine,
            torch.atan2(sine, cosine + 1e-9) / times,
            (cosine.square() + sine.square() + 1e-9).sqrt(),
        ]
    return torch.stack(told, dim=-1)


def _two_layers(inputs: int, hidden: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(inputs, hidden), nn.GELU(), nn.Linear(hidden, outputs))


def _harmonics(xy: Tensor) -> Tensor:
    """[..., 6] of points [..., 2]: r cos and sin of 2 and 4 times the angle (over r for 4), r and its square."""
    x, y = xy.unbind(-1)
    square = x * x + y * y + 1e-4
    radius = square.sqrt()
    cosine2, sine2 = (x * x - y * y) / radius, 2 * x * y / radius
    cosine4, sine4 = (cosine2.square() - sine2.square()) / radius, 2 * cosine2 * sine2 / radius
    return torch.stack([cosine2, sine2, cosine4, sine4, radius, square], dim=-1)
