"""A shard as one tar that plain `webdataset.WebDataset` reads: a sample a clip, the same bytes for the same clips.

Members of clip KEY, contiguous and in schema order: `KEY.json` (key, split, text, frames, schema version),
`KEY.tokens.feat.npy` and so on for every array, and `KEY.points.npz` (deflate) for the four arrays of the points.
WebDataset takes the key up to the first dot; keys hold none.
"""

import io
import json
import re
import tarfile
import zipfile
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from data_specs.arrays import Array
from data_specs.records import ClipRecord
from data_specs.shards import ARRAYS, CLIP_OFFSET, EXTRA, SCHEMA_VERSION, offset_name
from pipeline.foreign import UNREADABLE, shortened, unreadable
from pipeline.store.claims import MAX_MEMBERS, MAX_ROW, bytes_of, check_claim, member_problem
from pipeline.store.columns import missing_partners, record_arrays
from pipeline.store.errors import ShardError
from pipeline.store.files import ByteSource, SourceIO
from pipeline.store.rules import offset_problem
from pipeline.store.shard import Extent, FileShard, as_array

_POINTS = "points.npz"
_HEAD = re.compile(rb"\{'descr': '([<|][fiub]\d)', 'fortran_order': False, 'shape': \(([\d, ]*)\), \}\s*")
_MAX_HEADER = 1 << 20
"""Bytes of a header of a tar file or an array: ours have 512 and 128."""

MAX_CLIP = 4 << 30
"""Bytes of an array of points of a clip, unpacked: 40 thousand frames of 65,535 points."""

_KEPT = 8
"""Decompressed arrays of points that are kept, for frames of one clip read one after the other."""


def write_tar(path: Path, records: Sequence[ClipRecord]) -> dict[str, int]:
    """Write the clips to a new file; the bytes that each array takes in it."""
    sizes = {CLIP_OFFSET.name: 0}
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as archive:
        for record in records:
            meta = {
                "schema_version": SCHEMA_VERSION,
                "key": record.key,
                "split": record.split,
                "text": record.text,
                "frames": len(record),
            }
            _add(archive, f"{record.key}.json", json.dumps(meta).encode())
            arrays = record_arrays(record)
            points = {name: array for name, array in arrays.items() if name.startswith("points/")}
            packed, compressed = _pack(points)
            for name, array in arrays.items():
                if name not in points:
                    data = _npy(array)
                    _add(archive, f"{record.key}.{name.replace('/', '.')}.npy", data)
                    sizes[name] = sizes.get(name, 0) + len(data)
            _add(archive, f"{record.key}.{_POINTS}", packed)
            for name, size in compressed.items():
                sizes[name] = sizes.get(name, 0) + size
    return sizes


def _add(archive: tarfile.TarFile, name: str, data: bytes) -> None:
    entry = tarfile.TarInfo(name)  # owner 0, time 0, mode 644: nothing of the machine
    entry.size = len(data)
    archive.addfile(entry, io.BytesIO(data))


def _npy(array: Array) -> bytes:
    buffer = io.BytesIO()
    np.lib.format.write_array(buffer, np.ascontiguousarray(array), version=(1, 0), allow_pickle=False)
    return buffer.getvalue()


def _pack(arrays: dict[str, Array]) -> tuple[bytes, dict[str, int]]:
    """An `.npz` without the time of writing, and the compressed bytes of each array."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, array in arrays.items():
            entry = zipfile.ZipInfo(f"{name.removeprefix('points/')}.npy", (1980, 1, 1, 0, 0, 0))
            archive.writestr(entry, _npy(array), zipfile.ZIP_DEFLATED)
        sizes = {name: info.compress_size for name, info in zip(arrays, archive.infolist(), strict=True)}
    return buffer.getvalue(), sizes


class TarShard(FileShard):
    """A shard of format `webdataset`. Raises ShardError when the tar, a header or an offset is damaged.

    Offsets of a clip are checked when the clip is first touched. Over a remote file the whole tar is walked to find
    its members: prefer zarr shards for random access from afar.
    """

    whole = False

    def __init__(self, source: ByteSource, name: str) -> None:
        self.name = name
        self._source = source
        self._members = self._walk()
        self.keys = tuple(self._members)
        self._offsets: dict[tuple[str, int], Array] = {}
        self._points: OrderedDict[tuple[str, int], Array] = OrderedDict()
        self._heads: dict[tuple[str, int], tuple[int, np.dtype[Any], tuple[int, ...]]] = {}
        found = {array for members in self._members.values() for array in members}
        self.arrays = tuple([n for n in ARRAYS if n in found] + sorted(found - set(ARRAYS) - {"json"}))
        needed = [array for array, spec in ARRAYS.items() if not spec.optional]
        for array in [*(array for array in needed if array not in found), *missing_partners(found)]:
            raise ShardError(self.name, array, "is missing")
        self.lengths = np.array([self._shape("time", clip)[0] for clip in range(len(self.keys))], dtype=np.int64)

    def offset(self, name: str, clip: int) -> Array:
        """Rows of a clip's frames, checked at first."""
        known = self._offsets.get((name, clip))
        if known is None:
            known = np.array(self._rows(name, clip, 0, self._shape(name, clip)[0]))
            rows = next(self._shape(n, clip)[0] for n in self.arrays if n != name and offset_name(n) == name)
            if len(known) != self.lengths[clip] + 1:
                problem: str | None = f"has {len(known)} entries for {self.lengths[clip]} frames"
            else:
                problem = offset_problem(known, rows)
            if problem:
                raise ShardError(self.name, name, f"clip {self.keys[clip]}: {problem}")
            self._offsets[name, clip] = known
        return known

    def length(self, name: str, clip: int) -> int:
        """Rows of a clip."""
        self._need(name)
        return self._shape(name, clip)[0]

    def rows(self, name: str, clip: int, start: int, stop: int) -> Array:
        """Rows of a clip: a view of the file, or decompressed points."""
        self._need(name)
        if name.startswith("points/"):
            return self._clip_points(name, clip)[start:stop]
        return self._rows(name, clip, start, stop)

    def unpack(self, name: str, clip: int, frames: Sequence[int], out: Array, rows: Sequence[int]) -> None:
        """Rows of a clip, which is decompressed as a whole."""
        out[rows] = self.clip_array(name, clip)[frames]

    def extent(self, name: str, clips: Array) -> Extent:
        """Each clip's array is a member of its own."""
        self._need(name)
        ragged = offset_name(name)
        found: list[tuple[int, np.dtype[Any], tuple[int, ...]]] = []
        for clip in clips.tolist():
            start, dtype, shape = self._head(name, clip)
            rows = int(self.lengths[clip]) if ragged is None else int(self.offset(ragged, clip)[-1])
            if shape[0] != rows and not name.startswith(EXTRA):
                raise self._damaged(name, clip, f"has {shape[0]} rows, expected {rows}")
            if found and found[0][1:] != (dtype, shape[1:]):
                raise self._damaged(name, clip, f"has rows {dtype} {shape[1:]}, other clips {found[0][1:]}")
            found.append((start, dtype, shape[1:]))
        return Extent(np.array([start for start, _, _ in found], dtype=np.int64), *found[0][1:])

    def frame_rows(self, offset: str, clips: Array) -> tuple[Array, Array]:
        """From the offsets of each clip."""
        ends = [self.offset(offset, clip) for clip in clips.tolist()]
        return np.concatenate([end[:-1] for end in ends]), np.concatenate([np.diff(end) for end in ends])

    def _rows(self, name: str, clip: int, start: int, stop: int) -> Array:
        begin, dtype, shape = self._head(name, clip)
        row = bytes_of(dtype, shape[1:])
        data = self._source.read(begin + start * row, (stop - start) * row)
        return as_array(data, dtype, (stop - start, *shape[1:]))

    def _shape(self, name: str, clip: int) -> tuple[int, ...]:
        if name.startswith("points/"):
            return (int(self.lengths[clip]),)
        return self._head(name, clip)[2]

    def _head(self, name: str, clip: int) -> tuple[int, "np.dtype[Any]", tuple[int, ...]]:
        """Start of the data, dtype and shape of an `.npy` member."""
        known = self._heads.get((name, clip))
        if known is None:
            start, size = self._member(name, clip)
            try:
                head, dtype, shape = _read_head(self._source.read(start, min(size, 4096)))
            except (ValueError, TypeError) as error:
                raise self._damaged(name, clip, f"its .npy header is damaged ({error})") from error
            try:
                check_claim(name, dtype, shape)
            except ValueError as error:
                raise self._damaged(name, clip, str(error)) from None
            expected = bytes_of(dtype, shape)
            if size - head != expected:
                raise self._damaged(name, clip, f"has {size - head} bytes of data, its shape {shape} needs {expected}")
            known = self._heads[name, clip] = (start + head, dtype, shape)
        return known

    def _clip_points(self, name: str, clip: int) -> Array:
        known = self._points.get((name, clip))
        if known is None:
            start, size = self._member(name, clip)
            try:
                with zipfile.ZipFile(io.BytesIO(self._source.read(start, size))) as archive:
                    data = _unpacked(archive, f"{name.removeprefix('points/')}.npy", int(self.lengths[clip]))
                head, dtype, shape = _read_head(data)
                check_claim(name, dtype, shape)
                known = as_array(memoryview(data)[head:], dtype, shape)
            except UNREADABLE as error:
                raise self._damaged(name, clip, f"does not decompress ({shortened(error)})") from error
            if len(known) != self.lengths[clip]:
                raise self._damaged(name, clip, f"is {known.dtype} {known.shape} for {self.lengths[clip]} frames")
            self._points[name, clip] = known
            while len(self._points) > _KEPT:
                self._points.popitem(last=False)
        return known

    def _member(self, name: str, clip: int) -> tuple[int, int]:
        members = self._members[self.keys[clip]]
        if name not in members:
            raise self._damaged(name, clip, "is missing")
        return members[name]

    def _damaged(self, name: str, clip: int, problem: str) -> ShardError:
        return ShardError(self.name, name, f"clip {self.keys[clip]}: {problem}")

    def _walk(self) -> dict[str, dict[str, tuple[int, int]]]:
        """Start and size of every member's data, by key and array."""
        members: dict[str, dict[str, tuple[int, int]]] = {}
        seen = set[str]()
        try:
            with tarfile.open(fileobj=_Headers(self._source), mode="r:") as archive:
                for entry in archive:
                    if problem := _entry_problem(entry, seen):
                        raise ShardError(self.name, None, problem)
                    key, _, suffix = entry.name.partition(".")
                    where = (entry.offset_data, entry.size)
                    if entry.offset_data + entry.size > self._source.size:
                        raise ShardError(self.name, _array_name(suffix), f"{entry.name} is cut off")
                    names = (
                        [n for n in ARRAYS if n.startswith("points/")] if suffix == _POINTS else [_array_name(suffix)]
                    )
                    members.setdefault(key, {}).update(dict.fromkeys(names, where))
        except unreadable(tarfile.TarError) as error:
            if isinstance(error, ShardError):
                raise
            raise ShardError(self.name, None, f"is no whole tar file ({shortened(error)})") from error
        if not members:
            raise ShardError(self.name, None, "is an empty tar file")
        return members


class _Headers(SourceIO):
    """A file of which `tarfile` may read headers, and no more at a time than a bound: they may claim any length."""

    def read(self, size: int | None = -1) -> bytes:
        """So many bytes, as far as the file goes. ValueError for more than a header has."""
        left = max(0, self._source.size - self._at)
        wanted = left if size is None or size < 0 else size
        if wanted > _MAX_HEADER:
            raise ValueError(f"a header claims {wanted:,} bytes, expected at most {_MAX_HEADER:,}")
        data = bytes(self._source.read(self._at, min(wanted, left)))
        self._at += len(data)
        return data


def _entry_problem(entry: tarfile.TarInfo, seen: set[str]) -> str | None:
    """What no shard of ours has: links, devices, names that lead elsewhere or come twice, sizes below 0."""
    problem = member_problem(entry.name)
    if not entry.isreg() or entry.issparse():
        problem = problem or f"member {entry.name[:60]!r} is a link, a device or a folder, expected plain files"
    elif entry.size < 0:
        problem = problem or f"member {entry.name[:60]!r} has {entry.size} bytes"
    elif entry.name in seen:
        problem = problem or f"member {entry.name[:60]!r} is there twice"
    elif len(seen) >= MAX_MEMBERS:
        problem = problem or f"has more than {MAX_MEMBERS:,} members"
    seen.add(entry.name)
    return problem


def _unpacked(archive: zipfile.ZipFile, name: str, frames: int) -> bytes:
    """A member of an `.npz`. ValueError for one that claims more than so many frames have, or by another method."""
    info = archive.getinfo(name)
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise ValueError(f"method {info.compress_type}, expected deflate")
    if info.file_size > min(frames * MAX_ROW, MAX_CLIP) + _MAX_HEADER:
        raise ValueError(f"{name} claims {info.file_size:,} bytes for {frames} frames")
    return archive.read(info)


def _array_name(suffix: str) -> str:
    return suffix.removesuffix(".npy").replace(".", "/")


def _read_head(data: bytes | memoryview) -> tuple[int, "np.dtype[Any]", tuple[int, ...]]:
    """Where the data of an `.npy` file begins, its dtype and shape; ValueError for anything but plain numbers.

    numpy's own reader evaluates the header as Python source, which CPython 3.11 cannot do in two threads at once
    (gh-106905); a header that `_npy` wrote needs no more than a pattern.
    """
    if bytes(data[:8]) != b"\x93NUMPY\x01\x00":
        raise ValueError("not an .npy file of version 1.0")
    start = 10 + int.from_bytes(data[8:10], "little")
    head = _HEAD.fullmatch(bytes(data[10:start]))
    if head is None:
        raise ValueError("expected numbers in C order")
    dtype, sides = head.groups()
    return start, np.dtype(dtype.decode()), tuple(int(side) for side in sides.replace(b",", b" ").split())
