"""Light on surfaces: sRGB in, linear light inside, sRGB out. Positions in metres, arrays of N hit points.

Ambient light from above and below, one soft lamp with a diffuse (Lambert) and a glossy (Blinn-Phong) part, and
procedural patterns computed from where a ray hits.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Singles = NDArray[np.float32]

PLAIN, WOOD, TILES = 0, 1, 2
_SHININESS = 40.0
_LEVELS = 4096


@dataclass(frozen=True, kw_only=True, eq=False)
class Surface:
    """Per geom: linear colour `rgb` f4 [G,3], `gloss` f4 [G], `pattern` [G]."""

    rgb: Singles
    gloss: Singles
    pattern: NDArray[np.int64]


@dataclass(frozen=True, kw_only=True, eq=False)
class Light:
    """The lamp's `position` f4 [3] and linear `rgb` f4 [3], and the strength of the ambient light."""

    position: Singles
    rgb: Singles
    ambient: float


def to_linear(srgb: NDArray[np.floating]) -> Singles:
    """Linear light of sRGB values in [0, 1] (IEC 61966-2-1)."""
    srgb = np.asarray(srgb, dtype=np.float64)
    return np.where(srgb <= 0.04045, srgb / 12.92, ((srgb + 0.055) / 1.055) ** 2.4).astype(np.float32)


def _srgb_table() -> NDArray[np.uint8]:
    linear = np.arange(_LEVELS) / (_LEVELS - 1)
    srgb = np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
    return np.asarray(np.rint(255 * srgb), dtype=np.uint8)


_TO_SRGB = _srgb_table()


def to_srgb(linear: Singles) -> NDArray[np.uint8]:
    """u1 sRGB of linear light; brighter than 1 is white."""
    level = (np.clip(linear, 0.0, 1.0) * (_LEVELS - 1) + 0.5).astype(np.int32)
    return np.asarray(_TO_SRGB[level])


def shade(
    point_N3: Singles,
    normal_N3: Singles,
    to_eye_N3: Singles,
    geom_N: NDArray[np.int32],
    lit_N: Singles,
    surface: Surface,
    light: Light,
) -> Singles:
    """Linear colour f4 [N,3] of hit points; `lit_N` is the part of the lamp that each of them sees."""
    to_light = light.position - point_N3
    distance = np.sqrt(np.einsum("ij,ij->i", to_light, to_light))
    to_light /= distance[:, None]
    facing = np.maximum(np.einsum("ij,ij->i", normal_N3, to_light), 0.0)
    # Inverse square, 1 at a lamp's usual distance from the table, held back so that the far wall is not black.
    falloff = 1.0 / (0.45 + 0.55 * (distance / 1.6) ** 2)
    half = to_light + to_eye_N3
    half /= np.sqrt(np.einsum("ij,ij->i", half, half))[:, None]
    glint = np.maximum(np.einsum("ij,ij->i", normal_N3, half), 0.0) ** _SHININESS
    diffuse = lit_N * facing * falloff
    ambient = np.float32(light.ambient) * (0.72 + 0.28 * normal_N3[:, 2])
    albedo = surface.rgb[geom_N] * _patterns(point_N3, surface.pattern[geom_N])[:, None]
    gloss = surface.gloss[geom_N] * glint * lit_N
    return np.asarray(
        albedo * (ambient[:, None] + (0.75 * diffuse)[:, None] * light.rgb) + gloss[:, None] * light.rgb,
        dtype=np.float32,
    )


def _patterns(point_N3: Singles, pattern_N: NDArray[np.int64]) -> Singles:
    """Brightness f4 [N] of the surfaces' patterns."""
    out = np.ones(len(point_N3), dtype=np.float32)
    wood = pattern_N == WOOD
    if wood.any():
        out[wood] = _wood(point_N3[wood, 0], point_N3[wood, 1])
    tiles = pattern_N == TILES
    if tiles.any():
        squares = np.floor(point_N3[tiles, 0] / 0.4) + np.floor(point_N3[tiles, 1] / 0.4)
        out[tiles] = np.where(squares % 2 == 0, 1.0, 0.9)
    return out


def _wood(x: Singles, y: Singles) -> Singles:
    """Planks along y, 12 cm wide, each with its own tone and a grain that wanders."""
    plank = np.floor(x / 0.12)
    tone = 0.05 * np.sin(12.9898 * plank + 1.7)
    wander = 0.006 * np.sin(7.0 * y + 2.1 * plank) + 0.003 * np.sin(19.0 * y + 5.0 * plank)
    grain = 0.030 * np.sin(420.0 * (x + wander)) + 0.022 * np.sin(173.0 * (x + 1.6 * wander) + 2.0 * plank)
    seam = np.where(np.abs(x / 0.12 - plank - 0.5) > 0.49, -0.13, 0.0)
    return np.asarray(1.0 + tone + grain + seam, dtype=np.float32)
