"""Features of tokens in one byte a channel: `feat` i1 [T,C] with `scale` f2 [B,C] of each frame's channels.

A value is `feat * scale` of its frame, rounded to float16. Scales are of a frame, so that a frame can be read alone and
what is stored of it depends on nothing else.
"""

import numpy as np
import torch
from torch import Tensor

from data_specs.arrays import Array

LEVELS = 127
GREATEST = np.float16(515.5)
"""Scale of which 127 are still a float16."""


def quantise(feat_TC: Array, offset: Array) -> tuple[Array, Array]:
    """Features f2 [T,C] of the frames that `offset` i8 [B+1] cuts them into → i1 [T,C] and scales f2 [B,C].

    Scales are rounded up, so that no value is cut off: the error is at most half a scale, and float16's rounding.
    """
    values = feat_TC.astype(np.float32)
    out = np.zeros(values.shape, np.int8)
    scales = np.zeros((len(offset) - 1, values.shape[1]), np.float16)
    for b, (start, stop) in enumerate(zip(offset[:-1].tolist(), offset[1:].tolist(), strict=True)):
        exact = np.abs(values[start:stop]).max(0, initial=0.0) / LEVELS
        scale = exact.astype(np.float16)
        scale = np.where(scale.astype(np.float32) < exact, np.nextafter(scale, np.float16(np.inf)), scale)
        scale = np.minimum(scale, GREATEST)
        divisor = np.where(scale > 0, scale, np.float16(1)).astype(np.float32)
        out[start:stop] = np.rint(values[start:stop] / divisor).clip(-LEVELS, LEVELS)
        scales[b] = scale
    return out, scales


def float_features(feat_TC: Tensor, scale_BC: Tensor, offset: Tensor, out: Tensor | None = None) -> Tensor:
    """Quantised features i1 [T,C], scales f2 [B,C], offsets i8 [B+1] of B frames → f2 [T,C], in `out` if given.

    Products of whole numbers under 128 with a float16, rounded once: the same bits on every machine.
    """
    out = torch.empty(feat_TC.shape, dtype=torch.float16) if out is None else out
    out.copy_(feat_TC)
    for scale, start, stop in zip(scale_BC, offset[:-1].tolist(), offset[1:].tolist(), strict=True):
        out[start:stop] *= scale
    return out
