"""Videos worth extracting, for tests of the pipeline: a disc that moves over a gradient."""

from pathlib import Path

import numpy as np
from video_files import write_video


def disc_video(path: Path, *, frames: int = 6, rate: int = 4, seed: int = 0, size: int = 96) -> Path:
    """Write a video of `frames` pictures at `rate` a second; another seed, another colour and path."""
    generator = np.random.default_rng(seed)
    colour, start, step = generator.integers(80, 255, 3), generator.uniform(0.2, 0.4, 2), generator.uniform(0, 0.06, 2)
    row, column = np.mgrid[:size, :size] / size
    pictures = []
    for i in range(frames):
        picture = np.stack([60 + 90 * row, 80 + 60 * column, 90 + 0 * row], -1)
        at = start + i * step
        picture[(column - at[0]) ** 2 + (row - at[1]) ** 2 < 0.02] = colour
        pictures.append(picture.astype(np.uint8))
    return write_video(path, codec="mpeg4", frames=pictures, rate=rate)
