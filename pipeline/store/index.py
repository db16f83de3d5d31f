"""`index.parquet`: a row a clip, rebuilt from the sidecars at any time."""

import io
import json
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from data_specs.shards import SCHEMA_VERSION, ClipRow, Sidecar
from pipeline.bounded_parquet import BadTable, open_parquet
from pipeline.foreign import BadJson, parse_json, shortened, unreadable
from pipeline.store.columns import digest_of_sorted
from pipeline.store.errors import ShardError, StoreError

_TOGETHER = 1 << 16
"""Rows that are Python's objects at a time."""

_DIGEST = "^[0-9a-f]{64}$"

INDEX_SCHEMA = pa.schema(
    [
        pa.field("key", pa.string(), nullable=False),
        pa.field("split", pa.string(), nullable=False),
        pa.field("text", pa.string(), nullable=False),
        pa.field("shard", pa.string(), nullable=False),
        pa.field("row", pa.int32(), nullable=False),
        pa.field("frames", pa.int32(), nullable=False),
        pa.field("first_time", pa.float64(), nullable=False),
        pa.field("last_time", pa.float64(), nullable=False),
        pa.field("time", pa.list_(pa.field("item", pa.float64(), nullable=False)), nullable=False),
        pa.field("digest", pa.string(), nullable=False),
    ]
)
"""Columns of the index: `row` is the clip's place in its shard, `time` the times of its frames in seconds."""


def index_table(sidecars: Iterable[Sidecar]) -> Any:
    """The index as a `pyarrow.Table`, sorted by key, so that it is the same for every shard size but for shard and row.

    Takes the sidecars one by one and keeps columns of them, some 350 bytes a clip of 16 frames.

    Raises ShardError when a key is in two shards.
    """
    shards: list[str] = []
    batches = list(_batches(sidecars, shards))
    metadata = {"cla_schema_version": str(SCHEMA_VERSION), "cla_shards": json.dumps(sorted(shards))}
    table = pa.Table.from_batches(batches, schema=INDEX_SCHEMA)
    order = pc.sort_indices(table, sort_keys=[(name, "ascending") for name in ("key", "shard", "row")])
    if not pc.equal(order, pa.array(np.arange(len(table), dtype=np.uint64))).to_numpy(zero_copy_only=False).all():
        table = table.take(order)
    _refuse_twice(table)
    return table.combine_chunks().replace_schema_metadata(metadata)


def _batches(sidecars: Iterable[Sidecar], shards: list[str]) -> Iterator[Any]:
    """The rows of all sidecars; the shards' names are added to `shards`."""
    rows: list[tuple[str, int, ClipRow]] = []
    for sidecar in sidecars:
        shards.append(sidecar.shard)
        rows += ((sidecar.shard, i, row) for i, row in enumerate(sidecar.rows))
        if len(rows) >= _TOGETHER:
            yield _batch(rows)
            rows = []
    yield _batch(rows)  # perhaps of nothing: a table has at least one


def _batch(rows: Sequence[tuple[str, int, ClipRow]]) -> Any:
    return pa.RecordBatch.from_pydict(
        {
            "key": [row.key for *_, row in rows],
            "split": [row.split for *_, row in rows],
            "text": [row.text for *_, row in rows],
            "shard": [shard for shard, *_ in rows],
            "row": [i for _, i, _ in rows],
            "frames": [row.frames for *_, row in rows],
            "first_time": [row.time[0] for *_, row in rows],
            "last_time": [row.time[-1] for *_, row in rows],
            "time": [list(row.time) for *_, row in rows],
            "digest": [row.digest for *_, row in rows],
        },
        schema=INDEX_SCHEMA,
    )


def _refuse_twice(table: Any) -> None:
    """ShardError where two rows of a sorted table have one key."""
    keys = table["key"]
    same = pc.equal(keys[:-1], keys[1:]).to_numpy(zero_copy_only=False) if len(table) > 1 else np.zeros(0, dtype=bool)
    if same.any():
        at = int(same.argmax())
        key, shard, second = keys[at].as_py(), table["shard"][at].as_py(), table["shard"][at + 1].as_py()
        raise ShardError(second, None, f"holds clip {key!r}, which shard {shard} holds already")


def index_digest(table: Any) -> str:
    """SHA-256 of the content of a store, as `content_digest` has it, from the `key` and `digest` of a sorted table."""
    return digest_of_sorted(
        pair
        for batch in table.to_batches(max_chunksize=_TOGETHER)
        for pair in zip(batch["key"].to_pylist(), batch["digest"].to_pylist(), strict=True)
    )


def index_bytes(table: Any) -> bytes:
    """The file: the same bytes for the same table."""
    sink = io.BytesIO()
    pq.write_table(table, sink, compression="zstd", version="2.6", use_dictionary=["split", "text", "shard"])
    return sink.getvalue()


def read_index(data: bytes | memoryview, columns: Sequence[str] | None = None) -> Any:
    """The table of a file, or some columns of it. StoreError when it is not one of ours."""
    try:
        file = open_parquet(pa.BufferReader(pa.py_buffer(data)), columns)
        schema = file.schema_arrow
        if not schema.equals(INDEX_SCHEMA) or b"cla_shards" not in (schema.metadata or {}):
            raise StoreError("index.parquet has other columns than this version writes")
        # no threads of Arrow's: with them every second short process aborted at its end (pyarrow 26.0.1)
        table = file.read(columns=None if columns is None else list(columns), use_threads=False)
        table.validate(full=True)  # Parquet does not look whether a text is UTF-8
    except BadTable as error:
        raise StoreError(f"index.parquet {error}") from error
    except unreadable(pa.ArrowException) as error:
        raise StoreError(f"index.parquet cannot be read ({shortened(error)})") from error
    if (
        "digest" in table.column_names
        and not pc.all(pc.match_substring_regex(table["digest"], _DIGEST), min_count=0).as_py()
    ):
        raise StoreError("index.parquet has digests that are not of 64 hexadecimal digits")
    return table


def index_shards(table: Any) -> list[str]:
    """Names of the shards that an index was made from, those without clips included. StoreError when it has no list."""
    try:
        names = parse_json(table.schema.metadata[b"cla_shards"])
    except BadJson as error:
        raise StoreError(f"index.parquet has a list of shards that {error}") from None
    if not isinstance(names, list) or not all(isinstance(name, str) and name.isprintable() for name in names):
        raise StoreError("index.parquet has no list of shards")
    return names
