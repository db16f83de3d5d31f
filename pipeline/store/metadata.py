"""Reads what a store says of itself, its manifest and the sidecars of its shards, and lets nothing in that is not so.

A store may come from anywhere: sizes are bounded, checksums are checksums and not paths, times are times.
"""

import math
import re
from collections.abc import Iterator
from typing import TypeVar

from pydantic import BaseModel, ValidationError

from data_specs.shards import SCHEMA_VERSION, Manifest, Sidecar
from pipeline.foreign import BadJson, parse_json, shortened
from pipeline.store.claims import MAX_SIZES
from pipeline.store.errors import StoreError, StoreRequestError

MAX_TEXT_FILE = 256 << 20
"""Bytes of a manifest, a sidecar, a list of rejected clips or of checksums: a million clips' sums have 3 million."""

MAX_KEY = 4096
"""Characters of a clip's key."""

SpecT = TypeVar("SpecT", bound=BaseModel)

_SHA256 = re.compile(r"[0-9a-f]{64}")
_WHOLE = 1 << 62


def parse_manifest(data: bytes, where: str) -> Manifest:
    """The manifest that `data` is. StoreRequestError for another schema version, StoreError for a damaged one."""
    manifest = _parse(Manifest, data, where)
    for name in ("C", "P", "W"):
        if name not in manifest.sizes:
            raise StoreError(f"{where} does not fit the schema: sizes lacks {name}.")
    for name, size in manifest.sizes.items():
        least = 1 if name in ("C", "W") else 0  # a store may have no points, no state, no actions
        if not least <= size <= MAX_SIZES:
            raise StoreError(
                f"{where} does not fit the schema: sizes.{name} is {size}, expected {least} to {MAX_SIZES}."
            )
    return manifest


def parse_sidecar(data: bytes, where: str) -> Sidecar:
    """The sidecar that `data` is. StoreRequestError for another schema version, StoreError for a damaged one."""
    sidecar = _parse(Sidecar, data, where)
    if problem := next(_sidecar_problems(sidecar), None):
        raise StoreError(f"{where} does not fit the schema: {problem}.")
    return sidecar


def _sidecar_problems(sidecar: Sidecar) -> Iterator[str]:
    if sidecar.file is not None:
        if not _SHA256.fullmatch(sidecar.file.sha256):
            yield f"file.sha256 is {shortened(repr(sidecar.file.sha256), 80)}, expected 64 hexadecimal digits"
        if not 0 <= sidecar.file.bytes < _WHOLE:
            yield f"file.bytes is {shortened(sidecar.file.bytes, 30)}"
        if not sidecar.file.name.isprintable() or "/" in sidecar.file.name:
            yield f"file.name is {shortened(repr(sidecar.file.name), 80)}, expected a name in the folder of shards"
    for row in sidecar.rows:
        key = shortened(repr(row.key), 80)
        if not row.key or len(row.key) > MAX_KEY:
            yield f"a clip has the key {key}"
        if row.frames != len(row.time) or not row.frames or not all(map(math.isfinite, row.time)):
            yield f"clip {key} has {row.frames} frames and {len(row.time)} times, expected as many finite ones"
        if not _SHA256.fullmatch(row.digest):
            yield f"clip {key} has the digest {shortened(repr(row.digest), 80)}, expected 64 hexadecimal digits"
    for name, entry in sidecar.arrays.items():
        numbers = (*entry.shape, entry.bytes, entry.crc32, entry.nonfinite)
        if any(not 0 <= number < _WHOLE for number in numbers) or len(entry.shape) > 8:
            yield f"array {shortened(repr(name), 80)} has numbers that no array has"
        if not name or not name.isprintable():
            yield f"an array has the name {shortened(repr(name), 80)}"


def _parse(spec: type[SpecT], data: bytes, where: str) -> SpecT:
    """JSON as `spec`, the schema version first: a store of another version is refused before it is misread."""
    try:
        values = parse_json(data, limit=MAX_TEXT_FILE)
    except BadJson as error:
        raise StoreError(f"{where} {error}.") from error
    version = values.get("schema_version") if isinstance(values, dict) else None
    if not isinstance(version, int):
        raise StoreRequestError(f"{where} names no schema version: it is not part of a store.")
    if version != SCHEMA_VERSION:
        remedy = (
            "install the version of concerto-laq that wrote it"
            if version > SCHEMA_VERSION
            else "extract it anew, or install the older version of concerto-laq that wrote it"
        )
        raise StoreRequestError(
            f"{where} has schema version {shortened(version, 30)}, this program reads version {SCHEMA_VERSION}:"
            f" {remedy}."
        )
    try:
        return spec.model_validate_json(data)
    except ValidationError as error:
        first = error.errors()[0]
        at = ".".join(str(part) for part in first["loc"])
        raise StoreError(f"{where} does not fit the schema: {shortened(at)}: {first['msg'].lower()}.") from error
