"""Films without a simulator: a camera that looks at a slanted wall, with depth and cameras known exactly."""

import numpy as np

from pipeline.train.frozen.filming import Film

SIDE = 28
NORMAL, OFFSET = np.array([0.2, -0.1, 1.0]), 1.5
"""The wall: NORMAL . x = OFFSET in the world, which is the camera of frame 0."""


def wall_film(seed: int = 0, *, frames: int = 8, side: int = SIDE) -> Film:
    """Every frame sees the wall from a place of its own, in colours that say how far it is."""
    rng = np.random.default_rng(seed)
    focal = side * rng.uniform(0.9, 1.2)
    intrinsic = np.array([[focal, 0, side / 2], [0, focal, side / 2], [0, 0, 1.0]])
    columns, rows = np.meshgrid(np.arange(side), np.arange(side))
    rays = np.stack([(columns - side / 2) / focal, (rows - side / 2) / focal, np.ones((side, side))], axis=-1)
    depths, extrinsics = [], []
    for frame in range(frames):
        angle = 0.02 * frame
        rotation = np.array([[np.cos(angle), 0, np.sin(angle)], [0, 1.0, 0], [-np.sin(angle), 0, np.cos(angle)]])
        eye = frame * np.array([0.02, 0.01, -0.015])
        world_rays = rays @ rotation  # R^T applied to each ray
        depths.append((OFFSET - NORMAL @ eye) / (world_rays @ NORMAL))
        extrinsics.append(np.concatenate([rotation, -(rotation @ eye)[:, None]], axis=1))
    depth = np.stack(depths)
    shade = np.clip(255 * (depth - 1) / 2, 0, 255)
    rgb = np.stack([shade, 0 * shade + 40 * (seed % 5), 255 - shade], axis=-1)
    return Film(
        rgb=rgb.astype(np.uint8),
        depth=np.rint(depth * 1e4).astype(np.uint16),
        intrinsic=np.repeat(intrinsic[None], frames, axis=0).astype(np.float32),
        extrinsic=np.stack(extrinsics).astype(np.float32),
    )
