"""Small decoded clips with exact sensor geometry: a ball that moves over a textured floor, seen from above."""

import numpy as np

from data_specs.records import Clip


def moving_ball(key: str = "ball", frames: int = 3, size: int = 224, holes: int = 0) -> Clip:
    """A clip with depth and camera; `holes` pixels of each frame have no depth (half of them NaN, half 0)."""
    focal, height = size * 0.9, 1.2
    intrinsic = np.array([[focal, 0, (size - 1) / 2], [0, focal, (size - 1) / 2], [0, 0, 1]], np.float32)
    # a camera at `height` that looks straight down: x right, y toward the lower image edge, z down
    extrinsic = np.array([[1, 0, 0, 0], [0, -1, 0, 0], [0, 0, -1, height]], np.float32)
    row, column = np.mgrid[:size, :size]
    rgb = np.empty((frames, size, size, 3), np.uint8)
    depth = np.empty((frames, size, size), np.float32)
    generator = np.random.default_rng(0)
    for i in range(frames):
        dx, dy = (column - size * (0.3 + 0.1 * i)) / size, (row - size * 0.5) / size
        bump = np.sqrt(np.clip(0.15**2 - dx**2 - dy**2, 0, None))
        depth[i] = height - bump
        rgb[i] = np.stack([100 + 50 * np.sin(column / 9), 90 + 50 * np.sin(row / 7), 80 + 0 * row], -1)
        rgb[i][bump > 0] = (200, 60, 40)
        if holes:
            at = generator.choice(size * size, holes, replace=False)
            depth[i].reshape(-1)[at[::2]] = np.nan
            depth[i].reshape(-1)[at[1::2]] = 0
    return Clip(
        key=key,
        split="train",
        text="push the ball",
        rgb=rgb,
        time=np.arange(frames) / 4,
        depth=depth,
        intrinsic=np.repeat(intrinsic[None], frames, 0),
        extrinsic=np.repeat(extrinsic[None], frames, 0),
    )
