"""A film without a simulator: a block slides over a floor in front of a wall, seen by a camera that stands still."""

import numpy as np

from pipeline.sim.render import DEPTH_STEP
from pipeline.train.frozen.filming import Film

SIDE = 56
BLOCK = 15
"""Pixels of the block's sides."""
STEP = 3
"""Pixels that it slides to the right a frame."""
NEAR = 0.6
"""Its depth, metres; what is behind it is between 0.8 and 1.6."""


def sliding_film(*, frames: int = 6, still: bool = False, seed: int = 0) -> Film:
    """The camera looks along the world's y axis; its image's down is the world's -z."""
    rng = np.random.default_rng(seed)
    rows = np.arange(SIDE)[:, None] + np.zeros((1, SIDE))
    depth = np.repeat(np.where(rows < 20, 1.6, 1.6 - 0.8 * (rows - 20) / 36)[None], frames, axis=0)
    rgb = np.repeat(rng.integers(80, 120, (1, SIDE, SIDE, 3)), frames, axis=0)
    for frame in range(frames):
        where = block_pixels(0 if still else frame)
        depth[frame][where] = NEAR
        rgb[frame][where] = (200, 30, 30)
    intrinsic = np.array([[SIDE, 0, SIDE / 2], [0, SIDE, SIDE / 2], [0, 0, 1.0]])
    extrinsic = np.array([[1.0, 0, 0, 0], [0, 0, -1, 0.5], [0, 1, 0, 0]])
    return Film(
        rgb=rgb.astype(np.uint8),
        depth=np.rint(depth / DEPTH_STEP).astype(np.uint16),
        intrinsic=np.repeat(intrinsic[None], frames, axis=0).astype(np.float32),
        extrinsic=np.repeat(extrinsic[None], frames, axis=0).astype(np.float32),
    )


def block_pixels(frame: int) -> tuple[slice, slice]:
    """Rows and columns of the block."""
    left = 8 + STEP * frame
    return slice(22, 22 + BLOCK), slice(left, left + BLOCK)
