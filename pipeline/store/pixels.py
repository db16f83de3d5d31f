"""Decodes the stored images of a batch, for models that read pixels."""

import io

import numpy as np
import torch
from torch import Tensor

from data_specs.arrays import Array
from data_specs.batches import FrameBatch, ImageBatch, PairBatch
from pipeline.foreign_images import BadPicture, picture
from pipeline.store.errors import StoreError

STORED = ("JPEG", "PNG")
"""What a store's pictures may be."""


def decode_images(images: ImageBatch) -> Tensor:
    """The frames u1 [B,H,W,3] of a batch of encoded images that are all of one size. StoreError for a damaged one."""
    frames: list[Array] = []
    for i in range(len(images.offset) - 1):
        try:
            with picture(io.BytesIO(images.encoded(i)), STORED) as image:
                frames.append(np.asarray(image.convert("RGB")))
        except BadPicture as error:
            raise StoreError(
                f"A stored picture {error}: `cla inspect-shards STORE --verify` names its shard."
            ) from error
        if frames[-1].shape != frames[0].shape:
            raise StoreError(
                f"Stored pictures have sizes {frames[0].shape[:2]} and {frames[-1].shape[:2]}, expected one:"
                " `cla inspect-shards STORE --verify` names damaged shards."
            )
    return torch.from_numpy(np.stack(frames))


def with_pixels(frames: FrameBatch) -> FrameBatch:
    """The frames with `pixels` decoded where they have images, and without the images; else as they are."""
    if frames.rgb is None:
        return frames
    return frames.without_images().with_pixels(decode_images(frames.rgb))


def pairs_with_pixels(pairs: PairBatch) -> PairBatch:
    """`with_pixels` of both frames."""
    return PairBatch(first=with_pixels(pairs.first), second=with_pixels(pairs.second))
