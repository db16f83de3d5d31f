"""Pieces of HDF5 files and what they unpack to: HDF5 gives a piece as much memory as its bytes unpack to.

A piece of 1 MB that says of itself to have 2 kB may become 1 GB. Deflate makes at most 1,032 bytes of one, so that only
large pieces need to be looked into.
"""

import math
import zlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import h5py

DEFLATE, SHUFFLE, CHECKSUM = 1, 2, 3
"""Numbers of the filters that are undone: gzip, and two that change no sizes."""

MAX_PIECE = 256 << 20
"""Bytes of a piece, unpacked."""

_MOST_OF_ONE = 1032
"""Bytes that deflate makes of one at most."""


def storage_problem(data: "h5py.Dataset") -> str | None:
    """Why a dataset is not read, by its kind, or None: elsewhere, no numbers, in large pieces, or packed otherwise."""
    if data.is_virtual or data.external:
        return "is kept in another file, expected it in this one"
    if data.dtype.kind not in "fiub" or data.shape is None:
        return f"holds {data.dtype}, expected numbers; record the episode again"
    if data.chunks is None:
        return None
    if (size := _nominal(data)) > MAX_PIECE:
        return f"is stored in pieces of {size:,} bytes, expected at most {MAX_PIECE:,}"
    plist = data.id.get_create_plist()
    filters = [plist.get_filter(number)[0] for number in range(plist.get_nfilters())]
    if len(set(filters)) < len(filters) or not set(filters) <= {DEFLATE, SHUFFLE, CHECKSUM}:
        return f"is packed by the filters {filters}, expected gzip: convert it with h5repack -f GZIP=4"
    return None


def unpacking_problem(data: "h5py.Dataset", row: int | None = None) -> str | None:
    """Why the pieces of a dataset, or those of a row, must not be unpacked, or None."""
    if data.chunks is None or not data.id.get_create_plist().get_nfilters():
        return None
    large: list[tuple[tuple[int, ...], int]] = []

    def look(place: tuple[int, ...], size: int, mask: int) -> None:
        if size * _MOST_OF_ONE > MAX_PIECE:
            large.append((place, mask))

    if row is None:
        if data.id.get_storage_size() * _MOST_OF_ONE > MAX_PIECE:
            data.id.chunk_iter(lambda info: look(info.chunk_offset, info.size, info.filter_mask))
    else:
        for selection in data.iter_chunks((slice(row, row + 1), *(slice(0, side) for side in data.shape[1:]))):
            place = tuple(part.start // side * side for part, side in zip(selection, data.chunks, strict=True))
            info = data.id.get_chunk_info_by_coord(place)
            look(place, info.size or 0, info.filter_mask)
    for place, mask in large:
        if mask or _unpacks_to_more(data.id.read_direct_chunk(place)[1], _nominal(data)):
            return f"has a piece at {place} that unpacks to more than the {_nominal(data):,} bytes of a piece"
    return None


def _nominal(data: "h5py.Dataset") -> int:
    return int(math.prod(data.chunks) * data.dtype.itemsize)


def _unpacks_to_more(packed: Any, most: int) -> bool:
    return len(zlib.decompressobj().decompress(packed, most + 1)) > most
