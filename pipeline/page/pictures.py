"""Pictures for the page: colour maps, depth drawn from the stored points, and data URIs.

Shape legend: n points of a frame, W side of the square frame in pixels.
"""

import base64
import io

import numpy as np
from PIL import Image

from data_specs.arrays import Array

# Anchors at equal steps, dark to light in even steps of lightness, so that equal differences look equal.
_ANCHORS = {
    "depth": "fcf6b4 fbd98a fbb56c f78d5f e9655f cb4a70 a03a7d 732f7e 472777 1d1a4f 0a0a20",
    "conf": "1b1d4e 2b3f86 2c6596 2a8694 2fa68a 5cc277 9fd96a e9ec72",
}

HOLE = 255
"""Palette index of a pixel that no stored point is near; it is transparent."""

REACH = 4
"""How far, in pixels, a stored point's depth is spread to its neighbours."""


def colour_map(name: str) -> Array:
    """The map `depth` (near is light, far is dark) or `conf` (low is dark, high is light): u1 [256,3]."""
    anchors = np.array([list(bytes.fromhex(colour)) for colour in _ANCHORS[name].split()], dtype=np.float64)
    at = np.linspace(0, len(anchors) - 1, 256)
    table = np.stack([np.interp(at, np.arange(len(anchors)), anchors[:, axis]) for axis in range(3)], axis=1)
    return np.rint(table).astype(np.uint8)


def depth_picture(pixel_n: Array, depth_n: Array, low: float, high: float, width: int) -> bytes:
    """A PNG [W,W] of the depth of the stored points, each spread over the empty pixels up to `REACH` away.

    Where two points reach a pixel at once the nearer surface wins; pixels out of reach stay transparent.
    """
    canvas = np.full((width, width), np.inf)
    canvas.reshape(-1)[pixel_n] = depth_n
    for step in range(REACH):
        canvas = _spread(canvas, diagonal=step % 2 == 1)
    level = np.clip((canvas - low) / max(high - low, 1e-12), 0, 1)
    # 255 levels of the map, the last index stands for a hole
    index = np.where(np.isfinite(canvas), np.rint(np.nan_to_num(level) * (HOLE - 1)), HOLE).astype(np.uint8)
    image = Image.fromarray(index, mode="P")
    image.putpalette(colour_map("depth").tobytes())
    buffer = io.BytesIO()
    image.save(buffer, "PNG", transparency=HOLE, optimize=True)
    return buffer.getvalue()


def _spread(canvas: Array, *, diagonal: bool) -> Array:
    """Give every empty pixel the least value of its four neighbours, or of all eight."""
    padded = np.pad(canvas, 1, constant_values=np.inf)
    steps = [(0, 1), (1, 0), (1, 2), (2, 1)] + ([(0, 0), (0, 2), (2, 0), (2, 2)] if diagonal else [])
    height, width = canvas.shape
    near = np.minimum.reduce([padded[y : y + height, x : x + width] for y, x in steps])
    return np.where(np.isfinite(canvas), canvas, near)


def media_type(data: bytes) -> str | None:
    """`image/jpeg` or `image/png` by the first bytes, None when it is neither: nothing else may stand in a store."""
    if data.startswith(b"\xff\xd8\xff"):
        return "image/jpeg"
    return "image/png" if data.startswith(b"\x89PNG\r\n\x1a\n") else None


def image_uri(data: bytes) -> str | None:
    """`data` as a data URI, None when it is not an image."""
    kind = media_type(data)
    return None if kind is None else f"data:{kind};base64,{base64.b64encode(data).decode()}"


def packed(array: Array) -> str:
    """The little-endian bytes of an array in base64, for a typed array of the page."""
    return base64.b64encode(np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("<")).tobytes()).decode()
