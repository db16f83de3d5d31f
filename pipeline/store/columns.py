"""Between a clip's record and its named arrays: `tokens/feat` is `record.tokens.feat`."""

import hashlib
import zlib
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from data_specs.arrays import Array
from data_specs.records import Cameras, Cells, ClipRecord, Images, Points, Tokens
from data_specs.shards import ARRAYS, EXTRA, OFFSETS

_FAMILIES: dict[str, type[Any]] = {
    "tokens": Tokens,
    "cells": Cells,
    "points": Points,
    "camera": Cameras,
    "rgb": Images,
}


def record_arrays(record: ClipRecord) -> dict[str, Array]:
    """The arrays of a record by name, in schema order, extra ones last; absent optional ones are left out."""
    arrays: dict[str, Array] = {}
    for name in ARRAYS:
        value: Any = record
        for part in name.split("/"):
            value = getattr(value, part)
        if value is not None:
            arrays[name] = value
    for name in sorted(record.extra):
        arrays[EXTRA + name] = record.extra[name]
    return arrays


def record_from_arrays(key: str, split: str, text: str, arrays: Mapping[str, Array]) -> ClipRecord:
    """The record of these arrays. KeyError for an array that is missing and not optional."""
    values: dict[str, Any] = {}
    for family, build in _FAMILIES.items():
        prefix = f"{family}/"
        values[family] = build(
            **{name.removeprefix(prefix): arrays[name] for name in ARRAYS if name.startswith(prefix)}
        )
    for name, spec in ARRAYS.items():
        if "/" not in name:
            values[name] = arrays.get(name) if spec.optional else arrays[name]
    extra = {name.removeprefix(EXTRA): array for name, array in arrays.items() if name.startswith(EXTRA)}
    return ClipRecord(key=key, split=split, text=text, extra=extra, **values)


def leading_dim(name: str) -> str:
    """Symbol of the first dimension of an array: F, T, M, B, or F+1; E for an extra array, rows of which are free."""
    return "E" if name.startswith(EXTRA) else str(ARRAYS[name].dims[0])


def offset_name(name: str) -> str | None:
    """The offset array that cuts `name` into frames, or None where row i is frame i."""
    return OFFSETS.get(leading_dim(name))


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
    digest = hashlib.sha256()
    for key, clip in sorted(clips):
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
