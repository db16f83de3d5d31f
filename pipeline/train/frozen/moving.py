"""What moves in a film of a camera that stands still, found from depth alone: no labels, no actions.

A pixel shows something that moves where its depth is less than the greatest depth that the film ever has there: what
is in front goes away at another time and shows what stands still behind it.

Shape legend
    F  frames of the film    S  chosen frames    Q  pixels of a frame, row-major
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from pipeline.sim.render import DEPTH_STEP
from pipeline.train.frozen.filming import Film
from stages.points import unproject_pixels

NEARER = 0.015
"""Metres in front of the background from which on a point counts as moving."""
LEAST_PIXELS = 200
_LOWEST = 600
"""Pixels, nearest the ground, whose median is called the contact."""
_ROUND, _HIGH = 0.12, 0.10
"""Metres around and above the contact that belong to the part which touches things."""


@dataclass(frozen=True, kw_only=True)
class Moving:
    """What moves in S frames, in the film's world (z up, metres).

    Attributes:
        pixels: bool [S,Q], all that moves. part: bool [S,Q], what of it is around the contact.
        centre, contact, middle: f4 [S,3], mean of all, the contact itself, mean of the part.
        covariance: f4 [S,3,3] of the part. share: f4 [S,2], of the frame's pixels, all and the part.
    """

    pixels: Tensor
    part: Tensor
    centre: Tensor
    contact: Tensor
    middle: Tensor
    covariance: Tensor
    share: Tensor


def find_moving(film: Film, frames: Sequence[int]) -> Moving | None:
    """What moves in `frames`; None where one of them shows less than `LEAST_PIXELS` that do."""
    depth_FQ = torch.from_numpy(film.depth.astype(np.int32)).flatten(1)
    depth_SQ = depth_FQ[list(frames)]
    pixels_SQ = (depth_SQ > 0) & (depth_SQ < depth_FQ.amax(0) - NEARER / DEPTH_STEP)
    if int(pixels_SQ.sum(1).min()) < LEAST_PIXELS:
        return None
    part_SQ = torch.zeros_like(pixels_SQ)
    rows = []
    for i, frame in enumerate(frames):
        pixel = torch.nonzero(pixels_SQ[i]).squeeze(1)
        xyz = unproject_pixels(
            pixel,
            depth_SQ[i, pixel].float() * DEPTH_STEP,
            torch.from_numpy(film.intrinsic[frame]),
            torch.from_numpy(film.extrinsic[frame]),
            film.depth.shape[-1],
        )
        lowest = xyz[:, 2].topk(min(_LOWEST, len(xyz) // 3), largest=False).indices
        contact = xyz[lowest].median(dim=0).values
        near = ((xyz[:, :2] - contact[:2]).norm(dim=1) < _ROUND) & (xyz[:, 2] - contact[2] < _HIGH)
        part_SQ[i, pixel[near]] = True
        middle = xyz[near].mean(0)
        away = xyz[near] - middle
        shares = torch.tensor([len(xyz), len(away)]) / depth_SQ.shape[1]
        rows.append((xyz.mean(0), contact, middle, away.T @ away / len(away), shares))
    centre, contact, middle, covariance, share = (torch.stack(column) for column in zip(*rows, strict=True))
    return Moving(
        pixels=pixels_SQ,
        part=part_SQ,
        centre=centre,
        contact=contact,
        middle=middle,
        covariance=covariance,
        share=share,
    )
