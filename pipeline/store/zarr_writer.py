"""A shard as one ZIP of stored entries that holds a Zarr v3 group, the same bytes for the same clips.

Tokens, cells, images and offsets are one uncompressed chunk each, aligned in the file so that a reader can map
them. Points are compressed a frame at a time (sharding codec; `pipeline.store.frame_codecs`).
"""

import json
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from zarr.codecs import BloscCodec
from zarr.storage import MemoryStore

from data_specs.arrays import Array
from data_specs.records import ClipRecord, exclusive_sum
from data_specs.shards import CLIP_OFFSET, EXTRA, SCHEMA_VERSION
from pipeline.store.claims import EXTRA_OFFSET
from pipeline.store.columns import record_arrays
from pipeline.store.frame_codecs import CODECS, LEVEL

ALIGNMENT = 64
_ALIGN_FIELD = 0xD935  # the ZIP extra field that Android's zipalign defines for padding
_ZIP64_FIELD = 20
_LOCAL_HEADER = 30
_EPOCH = (1980, 1, 1, 0, 0, 0)


def write_zarr(path: Path, records: Sequence[ClipRecord]) -> dict[str, int]:
    """Write the clips to a new file; the bytes that each array takes in it. Clips must hold the same arrays."""
    entries: dict[str, Any] = {}
    attributes = {
        "schema_version": SCHEMA_VERSION,
        "clips": [{"key": r.key, "split": r.split, "text": r.text} for r in records],
    }
    group = zarr.create_group(MemoryStore(entries), zarr_format=3, attributes=attributes)
    columns = _columns(records)
    for name, column in columns.items():
        _add(group, name, column)
    data = {name: bytes(buffer.to_bytes()) for name, buffer in entries.items()}
    for name in (name for name in CODECS if columns[name].size):
        data[f"{name}/zarr.json"] = _with_filters(data[f"{name}/zarr.json"], name, columns[name])
    # metadata first: a remote reader gets all of it by one request
    order = sorted(data, key=lambda name: (not name.endswith("zarr.json"), name))
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for name in order:
            _store(archive, name, data[name])
    return {name: _chunk_bytes(data, name) for name in columns}


def _columns(records: Sequence[ClipRecord]) -> dict[str, Array]:
    """The arrays of all clips end to end, offsets made absolute."""
    per_clip = [record_arrays(record) for record in records]
    columns = {CLIP_OFFSET.name: exclusive_sum(np.array([len(record) for record in records]))}
    for name in per_clip[0]:
        parts = [arrays[name] for arrays in per_clip]
        if name.endswith("/offset"):
            columns[name] = exclusive_sum(np.concatenate([np.diff(part) for part in parts]))
        else:
            columns[name] = np.concatenate(parts)
        if name.startswith(EXTRA):
            ends = exclusive_sum(np.array([len(part) for part in parts]))
            columns[EXTRA_OFFSET + name.removeprefix(EXTRA)] = ends
    return columns


def _add(group: "zarr.Group", name: str, column: Array) -> None:
    *folders, _ = name.split("/")
    for depth in range(len(folders)):
        group.require_group("/".join(folders[: depth + 1]))
    if name in CODECS and column.size:
        filtered, width = CODECS[name].filtered(column), column.dtype.itemsize
        codec = BloscCodec(cname="zstd", clevel=LEVEL, shuffle="shuffle" if width > 1 else "noshuffle", typesize=width)
        group.create_array(
            name,
            data=filtered,
            chunks=(1, *filtered.shape[1:]),
            shards=filtered.shape,
            compressors=codec,
            config={"write_empty_chunks": True},
        )
    else:
        # a chunk has at least one row, also of an array that has none
        chunk = tuple(max(side, 1) for side in column.shape)
        group.create_array(name, data=column, chunks=chunk, compressors=None, config={"write_empty_chunks": True})


def _with_filters(metadata: bytes, name: str, column: Array) -> bytes:
    """The metadata of an array that was written filtered already, with its filters named and its shape before them.

    zarr could filter by itself, but hands a transposed frame to `numcodecs.delta`, which takes it in the order of the
    memory, and so not transposed.
    """
    values = json.loads(metadata)
    values["shape"] = values["chunk_grid"]["configuration"]["chunk_shape"] = list(column.shape)
    sharding = values["codecs"][0]["configuration"]
    sharding["chunk_shape"] = [1, *column.shape[1:]]
    sharding["codecs"] = [*CODECS[name].codecs(column.dtype), *sharding["codecs"]]
    return json.dumps(values, indent=2).encode()


def _store(archive: zipfile.ZipFile, name: str, data: bytes) -> None:
    entry = zipfile.ZipInfo(name, _EPOCH)
    entry.external_attr = 0o644 << 16
    entry.create_system = 3
    if not name.endswith("zarr.json"):
        assert archive.fp is not None
        zip64 = _ZIP64_FIELD if len(data) > zipfile.ZIP64_LIMIT else 0
        start = archive.fp.tell() + _LOCAL_HEADER + len(name.encode()) + zip64 + 4
        padding = -start % ALIGNMENT
        entry.extra = _ALIGN_FIELD.to_bytes(2, "little") + padding.to_bytes(2, "little") + bytes(padding)
    archive.writestr(entry, data)


def _chunk_bytes(data: Mapping[str, bytes], name: str) -> int:
    return sum(len(value) for entry, value in data.items() if entry.startswith(f"{name}/c/"))
