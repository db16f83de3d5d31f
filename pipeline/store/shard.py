"""A shard as it is read, whatever its format: rows of named arrays by clip."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np

from data_specs.arrays import Array
from data_specs.shards import Format, offset_name
from pipeline.store.errors import ShardError
from pipeline.store.files import ByteSource


class ShardReader(ABC):
    """Rows of a shard's arrays. Arrays it returns may be views of the file: read-only, valid for as long as they live.

    `name` is the shard's, `lengths` i8 [n] the frames of each clip, `arrays` the names of what it holds.
    """

    name: str
    lengths: Array
    arrays: tuple[str, ...]

    @abstractmethod
    def offset(self, name: str, clip: int) -> Array:
        """The offset array `name` of a clip: i8 [F+1] from 0. ShardError where it cannot be trusted."""

    @abstractmethod
    def length(self, name: str, clip: int) -> int:
        """Rows that a clip has in array `name`."""

    @abstractmethod
    def rows(self, name: str, clip: int, start: int, stop: int) -> Array:
        """Rows start:stop, counted from the clip's first, of array `name`."""

    def clip_array(self, name: str, clip: int) -> Array:
        """A whole array of a clip."""
        if name.endswith("/offset"):
            return self.offset(name, clip)
        return self.rows(name, clip, 0, self.length(name, clip))

    def clip_arrays(self, clip: int, names: Iterable[str] | None = None) -> dict[str, Array]:
        """Arrays of a clip by name; all of them by default."""
        return {name: self.clip_array(name, clip) for name in (self.arrays if names is None else names)}

    def frame(self, name: str, clip: int, index: int) -> Array:
        """What array `name` holds of a frame: its ragged rows [n, ...], or its one row [1, ...]."""
        ragged = offset_name(name)
        if ragged is None:
            return self.rows(name, clip, index, index + 1)
        offset = self.offset(ragged, clip)
        return self.rows(name, clip, int(offset[index]), int(offset[index + 1]))

    def row_shape(self, name: str, clip: int) -> tuple[int, ...]:
        """Shape of a row of array `name` of a clip."""
        return self.rows(name, clip, 0, 0).shape[1:]

    def unpack(self, name: str, clip: int, frames: Sequence[int], out: Array, rows: Sequence[int]) -> None:
        """Write the row of each of a clip's frames to `out[row]`, converted to its dtype.

        Threads may do so at once, for different rows.
        """
        for frame, row in zip(frames, rows, strict=True):
            out[row] = self.rows(name, clip, frame, frame + 1)[0]

    def _need(self, name: str) -> None:
        if name not in self.arrays:
            raise ShardError(self.name, name, "is not in the shard")


class Extent(NamedTuple):
    """Where the rows of some clips of an uncompressed array are: each clip's first byte i8 [n]; what a row is."""

    start: Array
    dtype: "np.dtype[Any]"
    shape: tuple[int, ...]


class FileShard(ShardReader):
    """A shard in a file, with the places of its bytes. What it gives has been checked to lie inside the array.

    `whole` says that all clips are placed as fast as one.
    """

    whole: bool

    @abstractmethod
    def extent(self, name: str, clips: Array) -> Extent:
        """Where clips i8 [n] begin in array `name`, which is not compressed. ShardError for one of another shape."""

    @abstractmethod
    def frame_rows(self, offset: str, clips: Array) -> tuple[Array, Array]:
        """First row, counted from the clip's first, and number of rows, i8 [F] each, of all frames of some clips."""


def as_array(data: memoryview, dtype: np.dtype[np.generic], shape: tuple[int, ...]) -> Array:
    """Bytes as a read-only array, without a copy."""
    array = np.frombuffer(data, dtype=dtype).reshape(shape)
    if array.flags.writeable:
        array.flags.writeable = False
    return array


def open_shard(source: ByteSource, name: str, store_format: Format) -> FileShard:
    """Open a shard's data file. ShardError when its structure is damaged."""
    if store_format == "zarr":
        from pipeline.store.zarr_reader import ZarrShard

        return ZarrShard(source, name)
    from pipeline.store.tar import TarShard

    return TarShard(source, name)
