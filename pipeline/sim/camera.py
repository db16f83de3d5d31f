"""Pinhole cameras: where they are and where their pixels look. OpenCV axes: x right, y down, z forward."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.config import suggest
from pipeline.sim.geometry import Floats

VIEWS = ("agent", "wrist")


@dataclass(frozen=True, kw_only=True, eq=False)
class Camera:
    """`position` [3] metres, `rotation` [3,3] world-to-camera (its rows are right, down, forward), `fov` of the
    height in degrees.
    """

    position: Floats
    rotation: Floats
    fov: float

    def intrinsic(self, height: int, width: int) -> NDArray[np.float32]:
        """f4 [3,3]; pixel (0, 0) has its centre at (0, 0), as in OpenCV, so the middle is ((W-1)/2, (H-1)/2)."""
        focal = 0.5 * height / np.tan(0.5 * np.deg2rad(self.fov))
        return np.array([[focal, 0, 0.5 * (width - 1)], [0, focal, 0.5 * (height - 1)], [0, 0, 1]], dtype=np.float32)

    def extrinsic(self) -> NDArray[np.float32]:
        """f4 [3,4] camera-from-world."""
        translation = -self.rotation @ self.position
        return np.concatenate([self.rotation, translation[:, None]], axis=1).astype(np.float32)

    def rays(self, pixels_N2: Floats, height: int, width: int) -> tuple[Floats, Floats]:
        """Unit directions [N,3] through `pixels_N2` (column, row) and their cosines [N] with the optical axis."""
        intrinsic = self.intrinsic(height, width).astype(np.float64)
        x = (pixels_N2[:, 0] - intrinsic[0, 2]) / intrinsic[0, 0]
        y = (pixels_N2[:, 1] - intrinsic[1, 2]) / intrinsic[1, 1]
        cosine = 1.0 / np.sqrt(x * x + y * y + 1.0)
        right, down, forward = self.rotation
        directions = (x[:, None] * right + y[:, None] * down + forward) * cosine[:, None]
        return np.ascontiguousarray(directions), cosine


def look_at(position: Floats, target: Floats, up: Floats, fov: float) -> Camera:
    """A camera at `position` looking at `target` with `up` upwards in the picture."""
    forward = (target - position) / np.linalg.norm(target - position)
    right = np.cross(forward, up)
    right /= np.linalg.norm(right)
    return Camera(
        position=np.asarray(position, dtype=np.float64),
        rotation=np.stack([right, np.cross(forward, right), forward]),
        fov=fov,
    )


def check_view(view: str) -> str:
    """`view` if there is such a camera; ValueError with the choices otherwise."""
    if view in VIEWS:
        return view
    raise ValueError(f"Unknown view {view!r}; choose from {', '.join(VIEWS)}.{suggest(view, VIEWS)}")
