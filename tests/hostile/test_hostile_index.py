"""Indexes and sidecars that say what no text, no digest and no name is: found by `make fuzz`."""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from store_factory import FORMATS, small_store

from pipeline.store import open_store
from pipeline.store.layout import StoreLayout
from pipeline.store.verify import verify


def change_index(store: Path, column: str, value: bytes) -> None:
    """Another first value in a column of texts."""
    table = pq.read_table(store / "index.parquet")
    values = [value, *(text.encode() for text in table[column].to_pylist()[1:])]
    at = table.column_names.index(column)
    table = table.set_column(at, table.schema.field(column), pa.array(values, pa.binary()).view(pa.string()))
    pq.write_table(table, store / "index.parquet")


@pytest.mark.parametrize(
    ("column", "value", "sentence"),
    [
        ("text", b"pick up \xb2", "cannot be read"),
        ("key", b"\xff", "cannot be read"),
        ("digest", b"x" * 64, "64 hexadecimal digits"),
        ("digest", b"ab", "64 hexadecimal digits"),
    ],
)
def test_an_index_that_says_nonsense_is_named_and_not_used(tmp_path: Path, column, value, sentence) -> None:
    small_store(tmp_path)
    digest = open_store(str(tmp_path)).digest
    change_index(tmp_path, column, value)
    assert [damage.shard for damage in verify(StoreLayout.open(str(tmp_path))) if sentence in damage.problem] == [
        "index.parquet"
    ]
    assert open_store(str(tmp_path)).digest == digest  # of the sidecars


@pytest.mark.parametrize("store_format", FORMATS)
def test_an_array_with_a_line_break_in_its_name_is_told_in_a_line(tmp_path: Path, store_format) -> None:
    small_store(tmp_path, store_format)
    sidecar = tmp_path / "shards" / "000000.json"
    values = json.loads(sidecar.read_text())
    values["arrays"]["a\nb"] = next(iter(values["arrays"].values()))
    sidecar.write_text(json.dumps(values))
    told = [str(damage) for damage in verify(StoreLayout.open(str(tmp_path)))]
    assert any(r"an array has the name 'a\nb'" in line for line in told)
    assert not any("\n" in line for line in told)
