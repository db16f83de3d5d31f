"""What a shard's file says of its arrays, held against bounds before anything of that size is read or allocated."""

import math
from typing import Any

import numpy as np

from data_specs.shards import CLIP_OFFSET, array_spec

EXTRA_OFFSET = "extra_offset/"
"""Prefix of a zarr shard's arrays that say where each clip begins in its extra ones, i8 [n+1]."""

MAX_ROWS = 1 << 40
"""Rows of an array; their products with the sizes of rows stay within 63 bits."""

MAX_ROW = 64 << 20
"""Bytes of a frame's row of a compressed array: 8,192 points have 25 thousand."""

MAX_DIRECTORY = 16 << 20
"""Bytes of a ZIP file's directory: ours have 5 thousand."""

MAX_METADATA = 1 << 20
"""Bytes of an array's zarr.json: ours have one thousand."""

MAX_MEMBERS = 2_000_000
"""Members of a tar shard, which holds some 25 a clip."""

MAX_SIZES = 1 << 16
"""Greatest of a manifest's sizes: points a frame, channels, pixels along a side."""

PLAIN = frozenset(
    ("bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64", "float16", "float32", "float64")
)
"""Types of numbers that an array may have."""


def plain_type(name: Any) -> "np.dtype[Any]":
    """A type by the name that Zarr gives it. ValueError for anything but plain numbers: Python's objects, records."""
    if not isinstance(name, str) or name not in PLAIN:
        raise ValueError(f"data of type {str(name)[:60]!r}, expected plain numbers")
    return np.dtype(name).newbyteorder("<")


def check_claim(name: str, dtype: "np.dtype[Any]", shape: tuple[int, ...]) -> None:
    """ValueError unless array `name` may have this type and shape, whatever the file has of it."""
    expected = CLIP_OFFSET if name == CLIP_OFFSET.name else array_spec(name)
    offsets = name.endswith("/offset") or name.startswith(EXTRA_OFFSET)
    if expected is not None and not expected.takes(dtype):
        raise ValueError(f"has dtype {dtype}, expected {np.dtype(expected.dtype)}")
    if dtype.kind not in "fiub" or (offsets and dtype != np.dtype("<i8")):
        raise ValueError(f"has dtype {dtype}, expected {'<i8' if offsets else 'plain numbers'}")
    if not shape or any(not 0 <= side <= MAX_ROWS for side in shape):
        raise ValueError(f"has the shape {_shown(shape)}, expected sides of 0 to {MAX_ROWS:,}")
    if math.prod(max(side, 1) for side in shape) * dtype.itemsize >= 1 << 62:
        raise ValueError(f"claims the shape {_shown(shape)}, which no file holds")
    if expected is not None and len(shape) != len(expected.dims):
        raise ValueError(f"has the shape {_shown(shape)}, expected dimensions {expected.dims}")
    for side, dim in zip(shape, expected.dims if expected is not None else (), strict=False):
        if isinstance(dim, int) and side != dim:
            raise ValueError(f"has the shape {_shown(shape)}, expected dimensions {expected.dims if expected else ()}")


def bytes_of(dtype: "np.dtype[Any]", shape: tuple[int, ...]) -> int:
    """Bytes of an array; Python's integers, which do not wrap around."""
    return math.prod(shape) * dtype.itemsize


def member_problem(name: str) -> str | None:
    """What is wrong with the name of an archive's member, or None. Nothing is ever unpacked to where a name says."""
    parts = name.split("/")
    if not name.isprintable() or not name or len(name) > 1024:
        return f"has a member called {name[:60]!r}, which is no name"
    if name.startswith("/") or "\\" in name or ".." in parts or ":" in parts[0]:
        return f"has a member called {name[:60]!r}, which lies outside of the shard"
    return None


def _shown(shape: tuple[int, ...]) -> str:
    text = str(shape)
    return text if len(text) <= 80 else text[:77] + "..."
