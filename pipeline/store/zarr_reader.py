"""Reads a zarr shard without a copy: the uncompressed arrays are views of the mapped file, points decode by frame.

It reads what `zarr_writer` writes, by the Zarr v3 specification (regular grid of one chunk, `bytes` codec, or
`sharding_indexed` around blosc), without zarr's event loop and threads, which do not go well with forked workers.
"""

import struct
import zipfile
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from data_specs.arrays import Array
from data_specs.records import exclusive_sum
from data_specs.shards import ARRAYS, CLIP_OFFSET, EXTRA, array_spec, offset_name
from pipeline.foreign import UNREADABLE, parse_json, shortened
from pipeline.store.claims import (
    EXTRA_OFFSET,
    MAX_DIRECTORY,
    MAX_METADATA,
    MAX_ROW,
    bytes_of,
    check_claim,
    member_problem,
    plain_type,
)
from pipeline.store.columns import leading_dim, missing_partners
from pipeline.store.errors import ShardError
from pipeline.store.files import ByteSource, SourceIO
from pipeline.store.frame_codecs import FrameCodec
from pipeline.store.rules import offset_problem
from pipeline.store.shard import Extent, FileShard, as_array

_MISSING = 2**64 - 1
_LOCAL_HEADER, _ENCRYPTED = 30, 1
_BLOSC_HEAD = struct.Struct("<IIII")
"""Versions and flags, bytes of the values, bytes of a block, bytes of the whole chunk with this head."""


class _Directory(SourceIO):
    """A file of which `zipfile` may read its directory, and no more at a time than a bound."""

    def read(self, size: int | None = -1) -> bytes:
        """So many bytes, or all to the end. ValueError for more than a directory has."""
        left = max(0, self._source.size - self._at)
        wanted = left if size is None or size < 0 else min(size, left)
        if wanted > MAX_DIRECTORY:
            raise ValueError(f"its directory claims {wanted:,} bytes, expected at most {MAX_DIRECTORY:,}")
        data = bytes(self._source.read(self._at, wanted))
        self._at += wanted
        return data


class _Column(Protocol):
    shape: tuple[int, ...]

    def read(self, start: int, stop: int) -> Array: ...


class _Raw:
    """An uncompressed array in the file."""

    def __init__(self, source: ByteSource, start: int, dtype: "np.dtype[Any]", shape: tuple[int, ...]) -> None:
        self.shape, self.start, self.dtype, self._source = shape, start, dtype, source
        self.row = bytes_of(dtype, shape[1:])

    def read(self, start: int, stop: int) -> Array:
        data = self._source.read(self.start + start * self.row, (stop - start) * self.row)
        return as_array(data, self.dtype, (stop - start, *self.shape[1:]))


class _ByFrame:
    """An array of which each row is compressed by itself."""

    def __init__(
        self,
        source: ByteSource,
        start: int,
        size: int,
        dtype: "np.dtype[Any]",
        shape: tuple[int, ...],
        codec: FrameCodec,
    ) -> None:
        self.shape, self._source, self._start, self._size, self._dtype = shape, source, start, size, dtype
        self._codec = codec
        self._bytes = bytes_of(dtype, shape[1:])
        if self._bytes > MAX_ROW:
            raise ValueError(f"claims {self._bytes:,} bytes a frame, expected at most {MAX_ROW:,}")
        self._index: Array | None = None

    def read(self, start: int, stop: int) -> Array:
        out = np.empty((stop - start, *self.shape[1:]), dtype=self._dtype)
        for i in range(stop - start):
            self.decode(start + i, out[i])
        return out

    def decode(self, frame: int, row: Array) -> None:
        """Decompress a frame into `row`, converted to its dtype. ValueError where it is damaged."""
        begin, size = self._table()[frame].tolist()
        if begin == size == _MISSING:
            row[...] = 0
            return
        if begin + size > self._size:
            raise ValueError(f"frame {frame} lies outside of the array's data")
        data = self._source.read(self._start + begin, size)
        _, expanded, _, packed = _BLOSC_HEAD.unpack_from(data) if size >= _BLOSC_HEAD.size else (0, 0, 0, 0)
        if (expanded, packed) != (self._bytes, size):
            raise ValueError(f"frame {frame} has {expanded} bytes in {packed}, expected {self._bytes} in {size}")
        try:
            self._codec.decompress(data, row, self._dtype)
        except UNREADABLE as error:
            raise ValueError(f"frame {frame} does not decompress ({shortened(error)})") from error

    def _table(self) -> Array:
        """Where each frame begins and its bytes, u8 [F,2]: the end of the chunk, before a CRC-32C."""
        if self._index is None:
            size = self.shape[0] * 16
            if size + 4 > self._size:
                raise ValueError("the index of its frames is cut off")
            data = self._source.read(self._start + self._size - size - 4, size)
            self._index = np.frombuffer(data, dtype="<u8").reshape(-1, 2)
        return self._index


class ZarrShard(FileShard):
    """A shard of format `zarr`. Raises ShardError when its directory, metadata or offsets are damaged."""

    whole = True

    def __init__(self, source: ByteSource, name: str) -> None:
        self.name = name
        self._source = source
        self._entries = self._directory()
        self._columns = self._open_columns()
        self._offsets = {n: self._offset_column(n) for n in self._columns if n.endswith("/offset")}
        self._check_lengths()
        self._first = self._offsets[CLIP_OFFSET.name]
        self.lengths = np.diff(self._first)
        self._extra = {
            n: self._columns[EXTRA_OFFSET + n.removeprefix(EXTRA)].read(0, len(self._first))
            for n in self._columns
            if n.startswith(EXTRA)
        }
        hidden = (CLIP_OFFSET.name, EXTRA_OFFSET)
        self.arrays = tuple(
            [n for n in ARRAYS if n in self._columns]
            + sorted(n for n in self._columns if n not in ARRAYS and not n.startswith(hidden))
        )

    def offset(self, name: str, clip: int) -> Array:
        """Rows of a clip's frames, from 0."""
        part = self._offsets[name][int(self._first[clip]) : int(self._first[clip + 1]) + 1]
        return np.asarray(part - part[0])

    def length(self, name: str, clip: int) -> int:
        """Rows of a clip."""
        start, stop = self._span(name, clip)
        return stop - start

    def rows(self, name: str, clip: int, start: int, stop: int) -> Array:
        """Rows of a clip: a view of the file, or decompressed points."""
        base, end = self._span(name, clip)
        assert 0 <= start <= stop <= end - base, (name, clip, start, stop)
        try:
            return self._columns[name].read(base + start, base + stop)
        except ValueError as error:
            raise ShardError(self.name, name, str(error)) from error

    def row_shape(self, name: str, clip: int) -> tuple[int, ...]:
        """Shape of a row of the shard."""
        self._need(name)
        return self._columns[name].shape[1:]

    def unpack(self, name: str, clip: int, frames: Sequence[int], out: Array, rows: Sequence[int]) -> None:
        """Decompress frames straight into `out`."""
        column = self._columns[name]
        if not isinstance(column, _ByFrame):
            super().unpack(name, clip, frames, out, rows)
            return
        first = int(self._first[clip])
        try:
            for frame, row in zip(frames, rows, strict=True):
                column.decode(first + frame, out[row])
        except ValueError as error:
            raise ShardError(self.name, name, str(error)) from error

    def extent(self, name: str, clips: Array) -> Extent:
        """Clips lie one after the other in a column."""
        self._need(name)
        column = self._columns[name]
        assert isinstance(column, _Raw), f"{name} is compressed"
        ragged = offset_name(name)
        first = self._extra[name] if name.startswith(EXTRA) else self._first
        row = first[clips] if ragged is None else self._offsets[ragged][first[clips]]
        return Extent(column.start + row * column.row, column.dtype, column.shape[1:])

    def frame_rows(self, offset: str, clips: Array) -> tuple[Array, Array]:
        """From the offsets of the shard."""
        first, count = self._first[clips], self.lengths[clips]
        frame = np.repeat(first - exclusive_sum(count)[:-1], count) + np.arange(count.sum())
        ends = self._offsets[offset]
        return ends[frame] - np.repeat(ends[first], count), ends[frame + 1] - ends[frame]

    def _span(self, name: str, clip: int) -> tuple[int, int]:
        self._need(name)
        if name.startswith(EXTRA):
            return int(self._extra[name][clip]), int(self._extra[name][clip + 1])
        start, stop = int(self._first[clip]), int(self._first[clip + 1])
        ragged = offset_name(name)
        if ragged is None:
            return start, stop
        return int(self._offsets[ragged][start]), int(self._offsets[ragged][stop])

    def _directory(self) -> dict[str, tuple[int, int]]:
        """(start of the local header, bytes) of each entry."""
        try:
            with zipfile.ZipFile(_Directory(self._source)) as archive:
                infos = archive.infolist()
        except UNREADABLE as error:
            raise ShardError(self.name, None, f"is no whole ZIP file ({shortened(error)})") from error
        seen = set[str]()
        for info in infos:
            problem = member_problem(info.filename)
            if info.compress_type != zipfile.ZIP_STORED or info.flag_bits & _ENCRYPTED:
                problem = problem or f"entry {info.filename} is compressed or encrypted, expected stored"
            if info.filename in seen:
                problem = problem or f"entry {info.filename} is there twice"
            if problem:
                raise ShardError(self.name, None, problem)
            seen.add(info.filename)
        return {info.filename: (info.header_offset, info.file_size) for info in infos}

    def _data(self, entry: str, array: str | None) -> tuple[int, int]:
        """Start and size of an entry's data."""
        if entry not in self._entries:
            raise ShardError(self.name, array, f"{entry} is missing")
        header, size = self._entries[entry]
        if not 0 <= header <= self._source.size - _LOCAL_HEADER:
            raise ShardError(self.name, array, f"the header of {entry} lies outside of the file")
        fixed = self._source.read(header, _LOCAL_HEADER)
        if bytes(fixed[:4]) != b"PK\x03\x04":
            raise ShardError(self.name, array, f"the header of {entry} is damaged")
        start = header + _LOCAL_HEADER + int.from_bytes(fixed[26:28], "little")
        start += int.from_bytes(fixed[28:30], "little")
        if start + size > self._source.size:
            raise ShardError(self.name, array, f"{entry} is cut off")
        return start, size

    def _open_columns(self) -> dict[str, _Column]:
        columns = {}
        for entry in self._entries:
            name = entry.removesuffix("/zarr.json")
            if name == entry or entry == "zarr.json":
                continue
            start, size = self._data(entry, name)
            try:
                if size > MAX_METADATA:
                    raise ValueError(f"it has {size:,} bytes, expected at most {MAX_METADATA:,}")
                meta = parse_json(self._source.read(start, size), limit=MAX_METADATA)
                if meta["node_type"] == "array":
                    columns[name] = self._open_column(name, meta)
            except UNREADABLE as error:
                raise ShardError(self.name, name, f"its metadata is damaged ({shortened(error)})") from error
        needed = [name for name, spec in {**ARRAYS, CLIP_OFFSET.name: CLIP_OFFSET}.items() if not spec.optional]
        for name in [*(name for name in needed if name not in columns), *missing_partners(columns)]:
            raise ShardError(self.name, name, "is missing")
        return columns

    def _open_column(self, name: str, meta: Mapping[str, Any]) -> _Column:
        shape, dtype = tuple(int(side) for side in meta["shape"]), plain_type(meta["data_type"])
        try:
            check_claim(name, dtype, shape)
        except ValueError as error:
            raise ShardError(self.name, name, str(error)) from None
        if 0 in shape:  # Zarr writes no chunk for it
            return _Raw(self._source, 0, dtype, shape)
        start, size = self._data(f"{name}/c{'/0' * len(shape)}", name)
        codecs = [codec["name"] for codec in meta["codecs"]]
        if codecs == ["sharding_indexed"]:
            if name.endswith("/offset"):
                raise ShardError(self.name, name, "is compressed, expected plain bytes")
            codec = FrameCodec.of(meta["codecs"][0]["configuration"]["codecs"], dtype)
            return _ByFrame(self._source, start, size, dtype, shape, codec)
        if codecs != ["bytes"]:
            raise ShardError(self.name, name, f"is encoded with {codecs}, expected 'bytes' or 'sharding_indexed'")
        if meta["codecs"][0].get("configuration", {}).get("endian", "little") != "little":
            raise ShardError(self.name, name, "has its most significant bytes first, expected the least")
        if size != bytes_of(dtype, shape):
            raise ShardError(self.name, name, f"has {size} bytes of data, its shape {shape} needs another number")
        return _Raw(self._source, start, dtype, shape)

    def _offset_column(self, name: str) -> Array:
        column = self._columns[name]
        return column.read(0, column.shape[0])

    def _check_lengths(self) -> None:
        clips = self._offsets[CLIP_OFFSET.name]
        frames = self._columns["time"].shape[0]
        found = offset_problem(clips, frames)
        if found:
            raise ShardError(self.name, CLIP_OFFSET.name, found)
        for name, column in self._columns.items():
            ragged = offset_name(name)
            if ragged is not None and (found := offset_problem(self._offsets[ragged], column.shape[0])):
                raise ShardError(self.name, ragged, found)
            if array_spec(name) is not None:
                rows = {"F": frames, "F+1": frames + 1}.get(leading_dim(name), column.shape[0])
                if column.shape[0] != rows:
                    raise ShardError(self.name, name, f"has {column.shape[0]} rows, expected {rows}")
            if name.startswith(EXTRA):
                ends = self._columns.get(EXTRA_OFFSET + name.removeprefix(EXTRA))
                found = "has no offsets" if ends is None else None
                if ends is not None:
                    found = offset_problem(ends.read(0, ends.shape[0]), column.shape[0])
                if found or (ends is not None and ends.shape != clips.shape):
                    raise ShardError(self.name, name, found or "its offsets have another length than the clips")
