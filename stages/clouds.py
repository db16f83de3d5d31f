"""Stored points as coordinates: depth levels and pixels through the camera, into the world or the normalised space.

Shape legend: B frames of the batch, P points a frame, T tokens of all frames.
"""

import torch
from torch import Tensor

from data_specs.batches import CameraBatch, CloudBatch, FrameBatch, PointBatch, TokenBatch
from stages.points import unproject_pixels


def unpack_clouds(
    batch: FrameBatch, *, width: int, normalised: bool = False, chosen: Tensor | None = None
) -> CloudBatch:
    """Coordinates, colours, confidence and tokens of the points of a batch with `points`, `camera` and `tokens`.

    depth = near + level / 65535 * (far - near), likewise the confidence; xyz by `stages.points.unproject_pixels`.

    Args:
        batch: the frames.
        width: of the frames in pixels.
        normalised: coordinates of the normalised space, not of the world.
        chosen: i8 [n], increasing: these places of every frame's points only.
    """
    points, camera, tokens = _columns(batch)
    place = torch.arange(points.pixel.shape[1], device=points.pixel.device) if chosen is None else chosen
    rgb, conf = points.rgb[:, place], points.conf[:, place]
    xyz = _unproject(points.pixel[:, place], points.depth[:, place], camera, width)
    if normalised:
        xyz = (xyz - camera.normalisation[:, None, :3]) * camera.normalisation[:, None, 3:]
    low, high = camera.conf_range[:, :1], camera.conf_range[:, 1:]
    token, kept = owners(tokens, place)
    padding = token < 0
    return CloudBatch(
        xyz=xyz.masked_fill(padding[..., None], 0.0),
        rgb=rgb,
        conf=(low + conf.float() / 255 * (high - low)).masked_fill(padding, 0.0),
        token=token,
        kept=kept,
    )


def coordinates(batch: FrameBatch, *, width: int) -> tuple[Tensor, Tensor]:
    """World coordinates f4 [B,P,3] of all points, and how many of each frame are real [B]; they come first."""
    points, camera, tokens = _columns(batch)
    return _unproject(points.pixel, points.depth, camera, width), _ends(tokens).diff()


def _columns(batch: FrameBatch) -> tuple[PointBatch, CameraBatch, TokenBatch]:
    if batch.points is None or batch.camera is None:
        raise ValueError("clouds need the columns points and camera: ask for columns=('points', 'camera', 'tokens')")
    return batch.points, batch.camera, batch.need_tokens()


def _unproject(pixel: Tensor, level: Tensor, camera: CameraBatch, width: int) -> Tensor:
    near, far = camera.range[:, :1], camera.range[:, 1:]
    depth = near + level.float() / 65535 * (far - near)
    return unproject_pixels(pixel.long(), depth, camera.intrinsic, camera.extrinsic, width)


def _ends(tokens: TokenBatch) -> Tensor:
    """Points before each frame, and of all [B+1]."""
    ends_T = tokens.count.long().cumsum(0)
    return torch.cat([ends_T.new_zeros(1), ends_T])[tokens.offset]


def owners(tokens: TokenBatch, place: Tensor) -> tuple[Tensor, Tensor]:
    """The token of the points at these places i8 [n] or [B,n], from the first of its frame, -1 in padding: [B,n]; how
    many of them are real [B].

    Points are sorted by token, so that the running sum of the counts says where the points of each end.
    """
    before = _ends(tokens)
    at_Bn = (before[:-1, None] + place).contiguous()
    token_Bn = torch.searchsorted(tokens.count.long().cumsum(0), at_Bn, right=True) - tokens.offset[:-1, None]
    padding = place >= before.diff()[:, None]
    return token_Bn.masked_fill(padding, -1), (~padding).sum(1)
