"""Decodes the stored images of a batch, for models that read pixels."""

import io

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from data_specs.batches import FrameBatch, ImageBatch, PairBatch


def decode_images(images: ImageBatch) -> Tensor:
    """The frames u1 [B,H,W,3] of a batch of encoded images that are all of one size."""
    frames = []
    for i in range(len(images.offset) - 1):
        with Image.open(io.BytesIO(images.encoded(i))) as image:
            frames.append(np.asarray(image.convert("RGB")))
    return torch.from_numpy(np.stack(frames))


def with_pixels(frames: FrameBatch) -> FrameBatch:
    """The frames with `pixels` decoded where they have images, and without the images; else as they are."""
    if frames.rgb is None:
        return frames
    return frames.without_images().with_pixels(decode_images(frames.rgb))


def pairs_with_pixels(pairs: PairBatch) -> PairBatch:
    """`with_pixels` of both frames."""
    return PairBatch(first=with_pixels(pairs.first), second=with_pixels(pairs.second))
