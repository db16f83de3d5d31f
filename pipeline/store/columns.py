"""Between a clip's record and its named arrays: `tokens/feat` is `record.tokens.feat`."""

import hashlib
import zlib
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from data_specs.arrays import Array
from data_specs.records import Cameras, Cells, ClipRecord, Images, Points, Tokens
from data_specs.shards import ARRAYS, EXTRA, VIEWS, VISION, array_spec

_FAMILIES: dict[str, type[Any]] = {
    "tokens": Tokens,
    "cells": Cells,
    "points": Points,
    "camera": Cameras,
    "rgb": Images,
}


def record_arrays(record: ClipRecord) -> dict[str, Array]:
    """The arrays of a record by name, in schema order, then the others by name; absent optional ones are left out."""
    arrays: dict[str, Array] = {}
    for name in ARRAYS:
        value: Any = record
        for part in name.split("/"):
            value = getattr(value, part)
        if value is not None:
            arrays[name] = value
    others = {EXTRA + name: array for name, array in record.extra.items()}
    others |= {VISION + name: array for name, array in record.vision.items()}
    for name, images in record.views.items():
        others |= {f"{VIEWS}{name}/data": images.data, f"{VIEWS}{name}/offset": images.offset}
    return arrays | {name: others[name] for name in sorted(others)}


def record_from_arrays(key: str, split: str, text: str, arrays: Mapping[str, Array]) -> ClipRecord:
    """The record of these arrays. KeyError for an array that is missing and not optional."""
    values: dict[str, Any] = {}
    for family, build in _FAMILIES.items():
        prefix = f"{family}/"
        values[family] = build(
            **{
                name.removeprefix(prefix): arrays.get(name) if spec.optional else arrays[name]
                for name, spec in ARRAYS.items()
                if name.startswith(prefix)
            }
        )
    for name, spec in ARRAYS.items():
        if "/" not in name:
            values[name] = arrays.get(name) if spec.optional else arrays[name]
    values["extra"] = {name.removeprefix(EXTRA): array for name, array in arrays.items() if name.startswith(EXTRA)}
    values["vision"] = {name.removeprefix(VISION): array for name, array in arrays.items() if name.startswith(VISION)}
    values["views"] = {
        name: Images(data=arrays[f"{VIEWS}{name}/data"], offset=arrays[f"{VIEWS}{name}/offset"])
        for name in view_names(arrays)
    }
    return ClipRecord(key=key, split=split, text=text, **values)


def view_names(arrays: Iterable[str]) -> list[str]:
    """The further cameras that arrays of these names are of, sorted."""
    return sorted({name.removeprefix(VIEWS).rpartition("/")[0] for name in arrays if name.startswith(VIEWS)})


def missing_partners(arrays: Iterable[str]) -> list[str]:
    """What lacks of the pictures of further cameras: their data or their offsets."""
    found = set(arrays)
    return [
        name
        for view in view_names(found)
        for part in ("data", "offset")
        if (name := f"{VIEWS}{view}/{part}") not in found
    ]


def leading_dim(name: str) -> str:
    """Symbol of the first dimension of an array: F, T, M, B, or F+1; E for an extra array, rows of which are free."""
    if name.startswith(EXTRA):
        return "E"
    spec = array_spec(name)
    if spec is None:
        raise KeyError(name)
    return str(spec.dims[0])


def record_digest(record: ClipRecord) -> str:
    """SHA-256 of a clip: key, split, text, and each array's name, dtype, shape and bytes in schema order.

    Arrays are frame-major with offsets that start at 0, so it says the same in every format and shard size.
    """
    digest = hashlib.sha256()
    for text in (record.key, record.split, record.text):
        digest.update(_framed(text.encode()))
    for name, array in record_arrays(record).items():
        digest.update(_framed(f"{name} {array.dtype.str} {array.shape}".encode()))
        digest.update(raw_bytes(array))
    return digest.hexdigest()


def content_digest(clips: Iterable[tuple[str, str]]) -> str:
    """SHA-256 of a store from its clips' (key, digest), in any order."""
    return digest_of_sorted(sorted(clips))


def digest_of_sorted(clips: Iterable[tuple[str, str]]) -> str:
    """The same of clips that come in the order of their keys."""
    digest = hashlib.sha256()
    for key, clip in clips:
        digest.update(_framed(key.encode()))
        digest.update(bytes.fromhex(clip))
    return digest.hexdigest()


def update_crc(crc: int, array: Array) -> int:
    """CRC-32 of an array's bytes after those that gave `crc`."""
    return zlib.crc32(raw_bytes(array), crc)


def raw_bytes(array: Array) -> memoryview:
    """The bytes of an array in C order, without a copy where it already is."""
    return memoryview(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)


def _framed(data: bytes) -> bytes:
    return len(data).to_bytes(8, "little") + data
