"""Checks a store: every checksum, every rule of the schema, every row of the index; names each damaged part."""

import hashlib
import json
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from data_specs.shards import LANGUAGE, ClipRow, Sidecar
from pipeline.store.columns import record_digest, record_from_arrays
from pipeline.store.errors import ShardError, StoreError, TooLarge
from pipeline.store.files import TEMPORARY, ByteSource
from pipeline.store.index import index_table, read_index
from pipeline.store.language import language_problems
from pipeline.store.layout import (
    INDEX,
    MANIFEST,
    REJECTED,
    SHARDS,
    SUMS,
    StoreLayout,
    current_rejections,
    rejected_bytes,
    sidecar_name,
)
from pipeline.store.metadata import MAX_TEXT_FILE
from pipeline.store.rules import record_problems
from pipeline.store.shard import ShardReader, open_shard
from pipeline.store.sums import sum_problems
from pipeline.store.writer import array_entry

_PIECE = 1 << 22
_ROWS, _DIGITS = 1 << 14, 16
_SHOWN = 3
"""Problems of one array of one shard that are listed; a damaged array breaks many rules at once."""


@dataclass(frozen=True, kw_only=True)
class Damage:
    """Something that is not as it was committed.

    `shard` is a shard's name, or a file's name where no shard is concerned; `array` is empty where it is not one array.
    """

    shard: str
    array: str
    problem: str

    def __str__(self) -> str:
        return f"{self.shard}{f' {self.array}' if self.array else ''}: {self.problem}"


def verify(layout: StoreLayout, *, threads: int = 2) -> list[Damage]:
    """Every damage of a store, by shard; empty for a store that is whole.

    Data files are read once for their SHA-256 and once through their arrays, `threads` shards at a time.
    """
    damages = list(_foreign_files(layout))
    # of a million clips the sidecars would take gigabytes: they are read again instead of kept
    whole: list[str] = []
    texts: set[str] = set()
    for shard in layout.committed():
        try:
            texts.update(row.text for row in layout.sidecar(shard).rows)
            whole.append(shard)
        except ShardError as error:
            damages.append(_damage(error))
    with ThreadPoolExecutor(threads) as pool:
        for found in pool.map(lambda shard: list(verify_shard(layout, layout.sidecar(shard))), whole):
            damages += found
    damages += _index_problems(layout, whole)
    damages += [Damage(shard=LANGUAGE, array="", problem=problem) for problem in language_problems(layout, texts)]
    named = {damage.shard for damage in damages}
    damages += [damage for damage in _sum_damages(layout) if damage.shard not in named]
    return damages


def _sum_damages(layout: StoreLayout) -> Iterator[Damage]:
    """What the checksums find; a sidecar counts as its shard."""
    for name, problem in sum_problems(layout):
        shard = name.removeprefix(f"{SHARDS}/").removesuffix(".json")
        of_shard = name == sidecar_name(shard)
        if of_shard:
            yield Damage(shard=shard, array="", problem=f"{name}: {problem}")
        else:
            yield Damage(shard=name, array="", problem=problem)


def verify_shard(layout: StoreLayout, sidecar: Sidecar) -> Iterator[Damage]:
    """Every damage of one shard."""
    if sidecar.file is None:
        if sidecar.rows:
            yield Damage(shard=sidecar.shard, array="", problem="its sidecar lists clips but no data file")
        return
    try:
        source = layout.source(sidecar.shard)
        found = list(file_problems(sidecar, source))
        try:
            reader = open_shard(source, sidecar.shard, layout.manifest.format)
        except ShardError as error:
            yield from found
            yield _damage(error)
            return
        inside = list(_array_problems(sidecar, reader))
        inside += _clip_problems(layout, sidecar, reader, named={damage.array for damage in inside})
    except ShardError as error:
        yield _damage(error)
        return
    except (OSError, StoreError) as error:
        yield Damage(shard=sidecar.shard, array="", problem=f"its data file cannot be read ({error})")
        return
    if found and not inside:
        found = [Damage(shard=d.shard, array="", problem=f"{d.problem}, outside of the arrays' data") for d in found]
    yield from found
    yield from inside


def file_problems(sidecar: Sidecar, source: ByteSource, *, sums: bool = True) -> Iterator[Damage]:
    """What tells a data file from the one that was committed: its size and, with `sums`, its SHA-256."""
    assert sidecar.file is not None
    if source.size != sidecar.file.bytes:
        problem = f"{sidecar.file.name} has {source.size:,} bytes, {sidecar.file.bytes:,} were committed"
        yield Damage(shard=sidecar.shard, array="", problem=problem)
        return
    if not sums:
        return
    digest = hashlib.sha256()
    for start in range(0, source.size, _PIECE):
        digest.update(source.read(start, min(_PIECE, source.size - start)))
    if digest.hexdigest() != sidecar.file.sha256:
        problem = f"the SHA-256 of {sidecar.file.name} is not the committed one"
        yield Damage(shard=sidecar.shard, array="", problem=problem)


def _array_problems(sidecar: Sidecar, reader: ShardReader) -> Iterator[Damage]:
    """Arrays whose values, dtype or shape are not those that were committed."""
    for name in sorted(set(reader.arrays) ^ set(sidecar.arrays)):
        where = "the data file" if name in reader.arrays else "the sidecar"
        yield Damage(shard=sidecar.shard, array=name, problem=f"is only in {where}")
    for name, committed in sidecar.arrays.items():
        if name not in reader.arrays:
            continue
        try:
            found = array_entry(reader, name)
        except ShardError as error:
            yield _damage(error)
            continue
        if (found.dtype, found.shape) != (committed.dtype, committed.shape):
            problem = f"is {found.dtype} {found.shape}, {committed.dtype} {committed.shape} was committed"
            yield Damage(shard=sidecar.shard, array=name, problem=problem)
        elif found.crc32 != committed.crc32:
            yield Damage(
                shard=sidecar.shard, array=name, problem="its values are not those that were committed (CRC-32)"
            )


def _clip_problems(layout: StoreLayout, sidecar: Sidecar, reader: ShardReader, *, named: set[str]) -> Iterator[Damage]:
    """Clips that break a rule of the schema, or differ from their row in the sidecar.

    Where an array is named as damaged already, that it cannot be read or changes the digest is not said again.
    """
    if len(reader.lengths) != len(sidecar.rows):
        problem = f"holds {len(reader.lengths)} clips, its sidecar lists {len(sidecar.rows)}"
        yield Damage(shard=sidecar.shard, array="", problem=problem)
        return
    listed: dict[str, int] = {}
    for i, row in enumerate(sidecar.rows):
        try:
            problems = list(_one_clip(layout, reader, i, row))
        except ShardError as error:
            problems = [] if error.array in named else [(error.array or "", error.problem)]
        if named:
            problems = [(array, problem) for array, problem in problems if array]
        for array, problem in problems:
            listed[array] = listed.get(array, 0) + 1
            if listed[array] <= _SHOWN:
                yield Damage(shard=sidecar.shard, array=array, problem=f"clip {row.key}: {problem}")
    for array, count in listed.items():
        if count > _SHOWN:
            yield Damage(shard=sidecar.shard, array=array, problem=f"and {count - _SHOWN} more problems")


def _one_clip(layout: StoreLayout, reader: ShardReader, i: int, row: ClipRow) -> Iterator[tuple[str, str]]:
    record = record_from_arrays(row.key, row.split, row.text, reader.clip_arrays(i))
    yield from record_problems(record, layout.manifest.sizes)
    if len(record) != row.frames or tuple(record.time.tolist()) != row.time:
        yield "time", "frames and times are not those of the sidecar"
    elif record_digest(record) != row.digest:
        yield "", "its content digest is not the committed one"


def _index_problems(layout: StoreLayout, shards: Sequence[str]) -> Iterator[Damage]:
    """Where `index.parquet` and `rejected.jsonl` say something else than the sidecars."""
    try:
        expected = index_table(layout.sidecars(shards))
    except ShardError as error:
        yield _damage(error)
        return
    try:
        found = read_index(layout.files.read_bytes(INDEX))
        if found.schema.metadata != expected.schema.metadata:
            yield Damage(shard=INDEX, array="", problem="is of other shards than the sidecars")
        if not found.equals(expected):
            keys = sorted({key for key, _ in _rows(found) ^ _rows(expected)})
            shown = ", ".join(keys[:_SHOWN]) or "the order of rows"
            yield Damage(shard=INDEX, array="", problem=f"{len(keys)} clips differ from the sidecars: {shown}")
    except FileNotFoundError:
        yield Damage(shard=INDEX, array="", problem="is missing; --resume or `cla merge` writes it anew")
    except StoreError as error:
        yield Damage(shard=INDEX, array="", problem=str(error))
    try:
        rejected = layout.files.read_bytes(REJECTED, limit=MAX_TEXT_FILE)
        same = rejected == rejected_bytes(current_rejections(layout.sidecars(shards)))
        problem = "" if same else "says something else than the sidecars"
    except TooLarge as error:
        problem = str(error)
    except FileNotFoundError:
        problem = "is missing; --resume or `cla merge` writes it anew"
    if problem:
        yield Damage(shard=REJECTED, array="", problem=problem)


def _rows(table: Any) -> set[tuple[str, str]]:
    """The rows of an index: the key of each, and a digest of all of it."""
    return {
        (row["key"], hashlib.sha256(json.dumps(row).encode()).hexdigest()[:_DIGITS])
        for batch in table.to_batches(max_chunksize=_ROWS)
        for row in batch.to_pylist()
    }


def _foreign_files(layout: StoreLayout) -> Iterator[Damage]:
    """Files that no sidecar and no rule accounts for. Temporary files of a writer at work or killed are no damage."""
    committed = layout.committed()
    known = {f"{SHARDS}/{name}" for shard in committed for name in _names_of(layout, shard)}
    known |= {MANIFEST, INDEX, REJECTED, LANGUAGE, SUMS, SHARDS}
    names = layout.files.names() + [f"{SHARDS}/{name}" for name in layout.files.names(SHARDS)]
    uncommitted = layout.data_name("")[len(SHARDS) + 1 :]
    for name in names:
        if name in known or TEMPORARY in name:
            continue
        if name.startswith(f"{SHARDS}/") and name.endswith(uncommitted):
            shard = name[len(SHARDS) + 1 : -len(uncommitted)]
            problem = "has no sidecar: it was lost, or the run was stopped before the commit (--resume mends that)"
            yield Damage(shard=shard, array="", problem=problem)
        else:
            yield Damage(shard=name, array="", problem="is no part of the store")


def _names_of(layout: StoreLayout, shard: str) -> tuple[str, str]:
    return sidecar_name(shard)[len(SHARDS) + 1 :], layout.data_name(shard)[len(SHARDS) + 1 :]


def _damage(error: ShardError) -> Damage:
    return Damage(shard=error.shard, array=error.array or "", problem=error.problem)
