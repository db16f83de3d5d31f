"""`index.parquet`: a row a clip, rebuilt from the sidecars at any time."""

import io
import itertools
import json
from collections.abc import Sequence
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from data_specs.shards import SCHEMA_VERSION, Sidecar
from pipeline.bounded_parquet import BadTable, open_parquet
from pipeline.foreign import BadJson, parse_json, shortened, unreadable
from pipeline.store.errors import ShardError, StoreError

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


def index_table(sidecars: Sequence[Sidecar]) -> Any:
    """The index as a `pyarrow.Table`, sorted by key, so that it is the same for every shard size but for shard and row.

    Raises ShardError when a key is in two shards.
    """
    rows = sorted((row.key, sidecar.shard, i, row) for sidecar in sidecars for i, row in enumerate(sidecar.rows))
    for (key, shard, *_), (other, second, *_) in itertools.pairwise(rows):
        if key == other:
            raise ShardError(second, None, f"holds clip {key!r}, which shard {shard} holds already")
    shards = sorted(sidecar.shard for sidecar in sidecars)
    metadata = {"cla_schema_version": str(SCHEMA_VERSION), "cla_shards": json.dumps(shards)}
    return pa.Table.from_pydict(
        {
            "key": [key for key, *_ in rows],
            "split": [row.split for *_, row in rows],
            "text": [row.text for *_, row in rows],
            "shard": [shard for _, shard, *_ in rows],
            "row": [i for _, _, i, _ in rows],
            "frames": [row.frames for *_, row in rows],
            "first_time": [row.time[0] for *_, row in rows],
            "last_time": [row.time[-1] for *_, row in rows],
            "time": [list(row.time) for *_, row in rows],
            "digest": [row.digest for *_, row in rows],
        },
        schema=INDEX_SCHEMA.with_metadata(metadata),
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
        return file.read(columns=None if columns is None else list(columns), use_threads=False)
    except BadTable as error:
        raise StoreError(f"index.parquet {error}") from error
    except unreadable(pa.ArrowException) as error:
        raise StoreError(f"index.parquet cannot be read ({shortened(error)})") from error


def index_shards(table: Any) -> list[str]:
    """Names of the shards that an index was made from, those without clips included. StoreError when it has no list."""
    try:
        names = parse_json(table.schema.metadata[b"cla_shards"])
    except BadJson as error:
        raise StoreError(f"index.parquet has a list of shards that {error}") from None
    if not isinstance(names, list) or not all(isinstance(name, str) and name.isprintable() for name in names):
        raise StoreError("index.parquet has no list of shards")
    return names
