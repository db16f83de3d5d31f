"""How the arrays of points are compressed, a frame at a time: differences from point to point, then blosc with zstd.

Points are sorted by (token, pixel), so that neighbours in the array are neighbours in the picture. Bytes a frame of
8,192 points, on films of the tabletop world through VP9, depth of a trained VGGT; plain zstd, then as here: pixel 9,993
and 5,700; depth 13,034 and 12,300; conf 5,153 and 4,050. Colours are compressed plane by plane, since the noise of a
camera hides equal triplets: 11,700 and 11,300 for the films, 20,700 and 15,600 with noise of two steps.

Every step is a codec that plain zarr has (`transpose`, `numcodecs.delta`, `bytes`, `blosc`).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numcodecs import blosc  # type: ignore[import-untyped]

from data_specs.arrays import Array

LEVEL = 7
"""Of blosc's zstd: above it a few bytes are saved, and writing takes ten times as long."""

PLANES = (0, 2, 1)
"""Of the colours [1,P,3] of a frame, a plane after the other."""


@dataclass(frozen=True)
class FrameCodec:
    """The steps by which a frame's row is compressed, before blosc: colours plane by plane, differences."""

    planes: bool = False
    delta: bool = False

    def filtered(self, column: Array) -> Array:
        """A column [F,P] or [F,P,3] as its frames go to blosc: [F,P] or, by planes, [F,3,P]."""
        turned = np.ascontiguousarray(column.transpose(PLANES) if self.planes else column)
        if not self.delta:
            return turned
        flat = turned.reshape(len(turned), -1)
        out = flat.copy()
        np.subtract(flat[:, 1:], flat[:, :-1], out=out[:, 1:])  # unsigned: wraps around, and back
        return out.reshape(turned.shape)

    def decompress(self, data: memoryview, row: Array, dtype: "np.dtype[Any]") -> None:
        """Write a compressed frame of `dtype` to `row` [P] or [P,3]; RuntimeError or ValueError where it is damaged."""
        in_place = not self.planes and row.dtype == dtype and row.flags.c_contiguous
        shape = row.shape[::-1] if self.planes else row.shape
        whole = row if in_place else np.empty(shape, dtype=dtype)
        blosc.decompress(data, whole)
        if self.delta:
            flat = whole.reshape(-1)
            np.add.accumulate(flat, dtype=dtype, out=flat)
        if not in_place:
            row[...] = whole.T if self.planes else whole

    def codecs(self, dtype: "np.dtype[Any]") -> list[dict[str, Any]]:
        """The steps as Zarr v3 metadata, in the order in which a writer takes them."""
        steps: list[dict[str, Any]] = []
        if self.planes:
            steps.append({"name": "transpose", "configuration": {"order": list(PLANES)}})
        if self.delta:
            steps.append({"name": "numcodecs.delta", "configuration": {"dtype": dtype.str}})
        return steps

    @classmethod
    def of(cls, codecs: Sequence[Mapping[str, Any]], dtype: "np.dtype[Any]") -> "FrameCodec":
        """What the metadata of a frame's codecs say. ValueError for steps that no version of this program wrote."""
        names = [str(codec["name"]) for codec in codecs]
        found = cls(planes="transpose" in names, delta="numcodecs.delta" in names)
        expected = [step["name"] for step in found.codecs(dtype)]
        steps = [dict(codec) for codec in codecs[: len(expected)]]
        if names != [*expected, "bytes", "blosc"] or steps != found.codecs(dtype):
            raise ValueError(f"frames are encoded with {names}, expected {[*expected, 'bytes', 'blosc']}")
        return found


CODECS = {
    "points/pixel": FrameCodec(delta=True),
    "points/rgb": FrameCodec(planes=True, delta=True),
    "points/depth": FrameCodec(delta=True),
    "points/conf": FrameCodec(delta=True),
}
"""What new shards are written with."""
