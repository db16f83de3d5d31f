"""One stored or passed array: its name, dtype, dimensions, units, and the check that it is so.

Dimension names used everywhere:
    F frames of a clip or shard     T tokens, the sum of N' over the frames     P points kept a frame (8,192)
    M (cell, token) pairs           S state dimensions                          A action dimensions
    B bytes of all encoded images
"""

from collections.abc import MutableMapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]


@dataclass(frozen=True, kw_only=True)
class ArraySpec:
    """Name, dtype and shape of an array; `dims` mixes symbols ("T", "F+1") with fixed sizes (512).

    `doc` is the sentence a person reads about it, `units` its physical units, "1" where it has none; `also` are further
    dtypes that it may have.
    """

    name: str
    dtype: str
    dims: tuple[str | int, ...]
    units: str
    doc: str
    optional: bool = False
    also: tuple[str, ...] = ()

    def takes(self, dtype: "np.dtype[Any]") -> bool:
        """Whether the array may have this dtype."""
        return any(dtype == np.dtype(name) for name in (self.dtype, *self.also))

    def shape(self, sizes: MutableMapping[str, int]) -> tuple[int, ...]:
        """The shape under `sizes`; KeyError for a symbol that is not bound yet."""
        return tuple(_size(dim, sizes) for dim in self.dims)

    def check(self, array: Array, sizes: MutableMapping[str, int]) -> None:
        """Raise ValueError unless `array` fits; a plain symbol met for the first time is bound in `sizes`."""
        if not self.takes(array.dtype):
            raise ValueError(f"{self.name} has dtype {array.dtype}, expected {np.dtype(self.dtype)}")
        if array.ndim != len(self.dims):
            raise ValueError(f"{self.name} has shape {array.shape}, expected dimensions {self.dims}")
        for axis, (dim, actual) in enumerate(zip(self.dims, array.shape, strict=True)):
            if isinstance(dim, str) and dim.isidentifier():
                sizes.setdefault(dim, actual)
            expected = _size(dim, sizes)
            if actual != expected:
                raise ValueError(
                    f"{self.name} has {actual} along axis {axis} ({dim}), expected {expected} from the other arrays"
                )


def _size(dim: str | int, sizes: MutableMapping[str, int]) -> int:
    if isinstance(dim, int):
        return dim
    if dim.endswith("+1"):
        return sizes[dim[:-2]] + 1
    return sizes[dim]
