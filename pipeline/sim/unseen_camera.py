"""Where an agent camera stands that no recording was made from.

Recordings are made from within 13 degrees of the middle of the table's front, 0.72 to 0.82 m away and 0.46 to 0.56 m
high (`pipeline.sim.layout`). Unseen cameras stand 20 to 37 degrees to a side, and may be nearer, farther, lower or
higher, with the workspace in view.
"""

from dataclasses import replace

import numpy as np

from pipeline.sim.layout import Look

AZIMUTH = (0.35, 0.65)
"""Radians to either side; those of recordings are below 0.22."""

DISTANCE, HEIGHT = (0.68, 0.88), (0.40, 0.64)
"""Metres from the middle of the table, level and up."""


def unseen_camera(look: Look, rng: np.random.Generator) -> Look:
    """`look` with the agent camera elsewhere; its target, its field of view and all else as they were."""
    azimuth = rng.choice([-1.0, 1.0]) * rng.uniform(*AZIMUTH)
    distance, height = rng.uniform(*DISTANCE), rng.uniform(*HEIGHT)
    position = (float(distance * np.cos(azimuth)), float(distance * np.sin(azimuth)), float(height))
    return replace(look, camera_position=position)
