"""`SHA256SUMS`: the checksum of every other file of a store, as `sha256sum --check` reads it.

Shards are checked by their sidecars as well; this file covers the sidecars, the manifest, the index and the rest, and
says which files there were. It is written last, after every run.
"""

import hashlib
import json
import re
from collections.abc import Iterator, Mapping

from data_specs.shards import LANGUAGE, Manifest
from pipeline.store.errors import ShardError, StoreError, TooLarge
from pipeline.store.files import StoreFiles
from pipeline.store.layout import INDEX, MANIFEST, REJECTED, SUMS, StoreLayout, manifest_bytes, sidecar_name
from pipeline.store.metadata import MAX_TEXT_FILE, parse_manifest

_COPY = "# manifest "
"""Begins a line with a copy of the manifest, which is in no other file; to `sha256sum` a comment."""

_LINE = re.compile(r"([0-9a-f]{64})  ([^\n]+)")


def write_sums(layout: StoreLayout) -> None:
    """Write the file anew: from the sidecars for the shards, which are not read again, and from what is there."""
    files, sums = layout.files, {}
    for name in (MANIFEST, INDEX, REJECTED, LANGUAGE):
        if files.exists(name):
            sums[name] = _sha256(files.read_bytes(name))
    for shard, data in layout.sidecar_files():
        sums[sidecar_name(shard)] = _sha256(data)
        sidecar = layout.parsed(shard, data)
        if sidecar.file is not None:
            sums[layout.data_name(shard)] = sidecar.file.sha256
    copy = json.dumps(layout.manifest.model_dump(mode="json"), allow_nan=False)
    files.write_bytes(SUMS, "".join([f"{_COPY}{copy}\n", *(f"{sums[n]}  {n}\n" for n in sorted(sums))]).encode())


def kept_manifest(url: str) -> Manifest | None:
    """The manifest by its copy, where that is whole; None where there is none. For a store whose own is damaged."""
    try:
        data = StoreFiles(url).read_bytes(SUMS, limit=MAX_TEXT_FILE)
    except (FileNotFoundError, TooLarge):
        return None
    first, _, rest = data.decode("utf-8", errors="replace").partition("\n")
    try:
        manifest = parse_manifest(first.removeprefix(_COPY).encode(), SUMS)
    except StoreError:
        return None
    return manifest if f"{_sha256(manifest_bytes(manifest))}  {MANIFEST}\n" in rest else None


def read_sums(layout: StoreLayout) -> dict[str, str]:
    """SHA-256 by file name. FileNotFoundError where there is no such file, StoreError where it is damaged."""
    copy, *lines = layout.files.read_bytes(SUMS, limit=MAX_TEXT_FILE).decode("utf-8", errors="replace").split("\n")
    found = [_LINE.fullmatch(line) for line in lines[:-1]]
    if not copy.startswith(_COPY) or not lines or lines[-1] or not all(found):
        raise StoreError(f"{SUMS} is cut off or damaged")
    return {match[2]: match[1] for match in found if match}


def sum_problems(layout: StoreLayout) -> Iterator[tuple[str, str]]:
    """(file, problem) of every small file that is not as it was listed; what is missing where nothing else misses it.

    Of data files only their names and the checksums in their sidecars are compared.
    """
    try:
        sums = read_sums(layout)
    except FileNotFoundError:
        yield SUMS, "is missing; --resume or `cla merge` writes it anew"
        return
    except StoreError as error:
        yield SUMS, f"{error}; --resume writes it anew"
        return
    if kept_manifest(layout.url) is None:
        yield SUMS, f"its copy of {MANIFEST} is damaged; --resume writes it anew"
    known = {MANIFEST, INDEX, REJECTED, LANGUAGE, SUMS}
    shards = layout.committed()
    small = [name for name in (MANIFEST, INDEX, REJECTED, LANGUAGE) if name in sums or layout.files.exists(name)]
    sidecars = [sidecar_name(shard) for shard in shards]
    for name in small:
        try:
            content = layout.files.read_bytes(name)
        except FileNotFoundError:
            if name == LANGUAGE:
                yield name, f"is listed in {SUMS} and missing"
            continue
        except TooLarge as error:
            yield name, str(error)
            continue
        yield from _compared(name, content, sums)
    try:
        for shard, content in layout.sidecar_files(shards):
            yield from _compared(sidecar_name(shard), content, sums)
    except ShardError as error:
        yield sidecar_name(error.shard), error.problem
    of_shards = {*sidecars, *(layout.data_name(shard) for shard in shards)}
    for name in sorted(sums.keys() - of_shards - known):
        shard = re.sub(r"^shards/|\.json$", "", name)
        if name == sidecar_name(shard):
            yield name, f"is listed in {SUMS} and missing: shard {shard} is lost"
        elif layout.shard_of(name) is None:
            yield SUMS, f"lists {name}, which is no part of a store"


def _compared(name: str, content: bytes, sums: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    if name not in sums:
        yield name, f"is not listed in {SUMS}: a run was stopped before its end; --resume mends that"
    elif _sha256(content) != sums[name]:
        yield name, f"its SHA-256 is not the one in {SUMS}"


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
