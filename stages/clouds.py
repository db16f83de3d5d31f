"""Stored points as coordinates: depth levels and pixels through the camera, into the world or the normalised space.

Shape legend: B frames of the batch, P points a frame, T tokens of all frames.
"""

import torch
from torch import Tensor

from data_specs.batches import CloudBatch, FrameBatch, TokenBatch
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
    points, camera, tokens = batch.points, batch.camera, batch.need_tokens()
    if points is None or camera is None:
        raise ValueError("clouds need the columns points and camera: ask for columns=('points', 'camera', 'tokens')")
    place = torch.arange(points.pixel.shape[1], device=points.pixel.device) if chosen is None else chosen
    pixel, level, rgb, conf = (x[:, place] for x in (points.pixel, points.depth, points.rgb, points.conf))
    near, far = camera.range[:, :1], camera.range[:, 1:]
    depth = near + level.float() / 65535 * (far - near)
    xyz = unproject_pixels(pixel.long(), depth, camera.intrinsic, camera.extrinsic, width)
    if normalised:
        xyz = (xyz - camera.normalisation[:, None, :3]) * camera.normalisation[:, None, 3:]
    low, high = camera.conf_range[:, :1], camera.conf_range[:, 1:]
    token, kept = _owners(tokens, place)
    padding = token < 0
    return CloudBatch(
        xyz=xyz.masked_fill(padding[..., None], 0.0),
        rgb=rgb,
        conf=(low + conf.float() / 255 * (high - low)).masked_fill(padding, 0.0),
        token=token,
        kept=kept,
    )


def _owners(tokens: TokenBatch, place_n: Tensor) -> tuple[Tensor, Tensor]:
    """The token of the points at these places i8 [B,n], from the first of its frame, -1 in padding; real ones [B].

    Points are sorted by token, so that the running sum of the counts says where the points of each end.
    """
    ends_T = tokens.count.long().cumsum(0)
    before = torch.cat([ends_T.new_zeros(1), ends_T])[tokens.offset]  # points before each frame, [B+1]
    total_B = before.diff()
    at_Bn = (before[:-1, None] + place_n).contiguous()
    token_Bn = torch.searchsorted(ends_T, at_Bn, right=True) - tokens.offset[:-1, None]
    padding = place_n >= total_B[:, None]
    return token_Bn.masked_fill(padding, -1), (~padding).sum(1)
